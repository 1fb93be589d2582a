//! The injector settings in use: one immutable value, built from documents and from the state of the cluster, and swapped as a whole.
//!
//! ```text
//! files ──file_watch──▶ documents ─┐
//! ConfigMaps ─────────▶ documents ─┴─parse─▶ settings of the documents ─┐
//! ProxyConfigs, nodes, namespaces ──────────────────────────────────────┴─▶ CurrentSettings ──▶ reviews
//! ```
//!
//! Documents are parsed again only when one has changed. A rejected change keeps the last good settings; before the first ones nothing
//! is injected, instead of injecting with defaults.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use serde_json::Value;
use tracing::info;
use weir_injector::assertions::CaptureAssertion;
use weir_injector::settings::{
    Documents, FieldError, Namespaces, NativeSidecars, Nodes, Platform, ProxyConfigResources, Settings, Templates,
    set_cni_mode,
};
use weir_injector::yaml;

use crate::file_watch::{FileChange, WatchedFiles};

/// The settings in use; none before the first that could be built.
pub type CurrentSettings = Arc<ArcSwapOption<Settings>>;

/// Longest rejection that is shown, in bytes.
const MAX_REJECTION_BYTES: usize = 4096;

/// One of the documents that settings are built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingsDocument {
    /// `values` of the injector.
    Values,
    /// `mesh`.
    Mesh,
    /// `config` of the injector.
    Config,
    /// Capture assertions.
    Assertions,
}

impl SettingsDocument {
    /// All documents.
    pub const ALL: [Self; 4] = [Self::Values, Self::Mesh, Self::Config, Self::Assertions];

    /// Returns the document's key in ConfigMaps.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Mesh => "mesh",
            Self::Config => "config",
            Self::Assertions => "assertions",
        }
    }
}

/// Whether a document is available, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentState {
    /// The document is not configured; built-in defaults apply.
    BuiltIn,
    /// The document is configured, but not available, for this reason.
    Missing(String),
    /// The document is available.
    Present {
        /// A path, or the name of a ConfigMap.
        origin: String,
        /// The text.
        bytes: Vec<u8>,
    },
}

/// Flags of the process that override the documents.
#[derive(Debug, Clone, Default)]
pub struct FlagOverrides {
    /// Revision written to pods, instead of that of the values.
    pub revision: Option<String>,
    /// See [`NativeSidecars`].
    pub native_sidecars: NativeSidecars,
    /// CNI mode, instead of that of the values.
    pub cni_mode: Option<bool>,
}

/// State of the cluster; `None` for what is watched and not synced yet.
#[derive(Debug, Clone)]
pub struct ClusterState {
    /// Versions of the nodes.
    pub nodes: Option<Nodes>,
    /// The namespaces.
    pub namespaces: Option<Namespaces>,
    /// `ProxyConfig` resources.
    pub proxy_configs: Option<ProxyConfigResources>,
}

impl Default for ClusterState {
    /// Returns the state without any watch.
    fn default() -> Self {
        Self {
            nodes: Some(Nodes::default()),
            namespaces: Some(Namespaces::default()),
            proxy_configs: Some(ProxyConfigResources::default()),
        }
    }
}

/// Result of building settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingsUpdate {
    /// There was nothing to build.
    Unchanged,
    /// New documents are in use; these of their keys are ignored.
    Applied(Vec<FieldError>),
    /// The same documents are in use, with a new state of the cluster.
    ClusterUpdated,
    /// The documents were rejected for this reason; the last good ones stay in use.
    Rejected(String),
    /// There are no settings yet, for this reason.
    Pending(String),
}

/// Builds settings whenever one of their inputs changes.
#[derive(Debug)]
pub struct SettingsBuilder {
    documents: [DocumentState; 4],
    overrides: FlagOverrides,
    cluster: ClusterState,
    /// Settings of the last good documents.
    documents_settings: Option<Settings>,
    documents_changed: bool,
    cluster_changed: bool,
    rejection: Option<String>,
    /// Ignored keys of good documents that are not in use yet.
    ignored_keys: Option<Vec<FieldError>>,
    current: CurrentSettings,
}

/// A builder that several tasks feed.
#[derive(Debug, Clone)]
pub struct SharedSettingsBuilder(Arc<Mutex<SettingsBuilder>>);

impl SharedSettingsBuilder {
    /// Locks the builder. Do not hold the lock across an await.
    pub fn lock(&self) -> MutexGuard<'_, SettingsBuilder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SettingsBuilder {
    /// Takes the documents in the order of [`SettingsDocument::ALL`]; builds nothing yet.
    pub fn new(documents: [DocumentState; 4], overrides: FlagOverrides, cluster: ClusterState) -> Self {
        Self {
            documents,
            overrides,
            cluster,
            documents_settings: None,
            documents_changed: true,
            cluster_changed: true,
            rejection: None,
            ignored_keys: None,
            current: Arc::new(ArcSwapOption::empty()),
        }
    }

    /// Wraps the builder for several tasks.
    pub fn into_shared(self) -> SharedSettingsBuilder {
        SharedSettingsBuilder(Arc::new(Mutex::new(self)))
    }

    /// Returns the settings in use.
    pub fn current(&self) -> &CurrentSettings {
        &self.current
    }

    /// Returns why the current documents are not in use.
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    /// Replaces a document.
    pub fn set_document(&mut self, document: SettingsDocument, state: DocumentState) {
        let known = &mut self.documents[document as usize];
        if *known != state {
            *known = state;
            self.documents_changed = true;
        }
    }

    /// Returns the state of the cluster, to change it.
    pub fn cluster_state_mut(&mut self) -> &mut ClusterState {
        self.cluster_changed = true;
        &mut self.cluster
    }

    /// Builds settings if something has changed, and puts them in use.
    pub fn build(&mut self) -> SettingsUpdate {
        let documents_changed = std::mem::take(&mut self.documents_changed);
        let cluster_changed = std::mem::take(&mut self.cluster_changed);
        if !documents_changed && !cluster_changed {
            return SettingsUpdate::Unchanged;
        }
        if documents_changed {
            match parse_documents(&self.documents, &self.overrides) {
                Ok(settings) => {
                    self.ignored_keys = Some(settings.ignored_keys.clone());
                    (self.documents_settings, self.rejection) = (Some(settings), None);
                }
                Err(reason) => self.rejection = Some(truncate(reason)),
            }
        }
        let Some(settings) = &self.documents_settings else {
            return SettingsUpdate::Pending(self.rejection.clone().unwrap_or_default());
        };
        let ClusterState { nodes: Some(nodes), namespaces: Some(namespaces), proxy_configs: Some(proxy_configs) } =
            &self.cluster
        else {
            return SettingsUpdate::Pending(format!("caches not synced yet: {}", self.cluster.unsynced()));
        };
        let rejected = self.rejection.clone().filter(|_| documents_changed);
        if !cluster_changed && let Some(reason) = rejected {
            return SettingsUpdate::Rejected(reason);
        }
        let mut settings = settings.clone();
        settings.nodes = nodes.clone();
        settings.namespaces = namespaces.clone();
        settings.proxy_configs = proxy_configs.clone();
        let settings = Arc::new(settings);
        self.current.store(Some(Arc::clone(&settings)));
        match (rejected, self.ignored_keys.take()) {
            (Some(reason), _) => SettingsUpdate::Rejected(reason),
            (None, Some(ignored_keys)) => {
                log_templates(&settings.injection.templates);
                SettingsUpdate::Applied(ignored_keys)
            }
            (None, None) => SettingsUpdate::ClusterUpdated,
        }
    }
}

/// Logs which templates are rendered from the documents, and which built-in ones stand in where these have no text.
fn log_templates(templates: &Templates) {
    let rendered = templates.rendered_names().collect::<Vec<_>>().join(",");
    let builtin = templates.builtin_names().collect::<Vec<_>>().join(",");
    info!(rendered, builtin, "loaded injection templates");
}

impl ClusterState {
    fn unsynced(&self) -> String {
        let caches = [
            ("nodes", self.nodes.is_none()),
            ("namespaces", self.namespaces.is_none()),
            ("proxyconfigs", self.proxy_configs.is_none()),
        ];
        caches.into_iter().filter_map(|(name, unsynced)| unsynced.then_some(name)).collect::<Vec<_>>().join(", ")
    }
}

fn truncate(mut reason: String) -> String {
    if reason.len() > MAX_REJECTION_BYTES {
        reason.truncate(reason.floor_char_boundary(MAX_REJECTION_BYTES));
        reason.push_str(" ...");
    }
    reason
}

/// Parses the documents, or returns everything that is wrong with them.
fn parse_documents(documents: &[DocumentState; 4], overrides: &FlagOverrides) -> Result<Settings, String> {
    let mut errors = Vec::new();
    let mut parse = |document: &DocumentState| match document {
        DocumentState::BuiltIn => None,
        DocumentState::Missing(reason) => {
            if !errors.contains(reason) {
                errors.push(reason.clone());
            }
            None
        }
        DocumentState::Present { origin, bytes } => {
            parse_yaml(bytes).map_err(|error| errors.push(format!("{origin}: {error}"))).ok()
        }
    };
    let [mut values, mesh, config, assertions] = documents.each_ref().map(&mut parse);
    let assertions = CaptureAssertion::read_all(&assertions.unwrap_or_default()).unwrap_or_else(|faults| {
        errors.extend(faults.iter().map(|fault| format!("assertions: {fault}")));
        Vec::new()
    });
    if !errors.is_empty() {
        return Err(errors.join("; "));
    }
    if let Some(enabled) = overrides.cni_mode {
        set_cni_mode(values.get_or_insert_with(Settings::builtin_values), enabled);
    }
    let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
    let mut settings = Settings::from_documents(documents)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    if let Some(revision) = &overrides.revision {
        settings.revision.clone_from(revision);
    }
    settings.native_sidecars = overrides.native_sidecars;
    settings.assertions = assertions;
    // Istio's chart sets the variable PLATFORM of its controller from this value.
    if values.is_some_and(|values| values["global"]["platform"] == "openshift") {
        settings.platform = Platform::OpenShift;
    }
    Ok(settings)
}

fn parse_yaml(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    yaml::from_str(text).map_err(|error| error.to_string())
}

/// Documents in files, submitted to a builder whenever they change.
#[derive(Debug)]
pub struct SettingsFiles {
    documents: Vec<SettingsDocument>,
    watched: WatchedFiles<Vec<Vec<u8>>>,
    builder: SharedSettingsBuilder,
}

impl SettingsFiles {
    /// Reads the files for the first time and submits them to the builder.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn open(files: Vec<(SettingsDocument, PathBuf)>, builder: SharedSettingsBuilder) -> Result<Self, String> {
        let (documents, paths) = files.into_iter().unzip();
        let watched = WatchedFiles::open(paths, Box::new(|bytes: &[Vec<u8>]| Ok(bytes.to_vec())))?;
        let files = Self { documents, watched, builder };
        files.submit();
        Ok(files)
    }

    /// Reads the files again, blocking, and builds settings if one has changed.
    pub fn poll(&mut self) -> Option<SettingsUpdate> {
        match self.watched.poll()? {
            FileChange::Reloaded => {
                self.submit();
                let update = self.builder.lock().build();
                // The same text after an error, which is over.
                Some(if update == SettingsUpdate::Unchanged { SettingsUpdate::Applied(Vec::new()) } else { update })
            }
            FileChange::Rejected(reason) if self.builder.lock().current().load().is_none() => {
                Some(SettingsUpdate::Pending(reason))
            }
            FileChange::Rejected(reason) => Some(SettingsUpdate::Rejected(reason)),
        }
    }

    fn submit(&self) {
        let texts = self.watched.current().load();
        let mut builder = self.builder.lock();
        for ((document, path), bytes) in self.documents.iter().zip(self.watched.files()).zip(texts.iter()) {
            let origin = path.display().to_string();
            builder.set_document(*document, DocumentState::Present { origin, bytes: bytes.clone() });
        }
    }

    /// Returns the builder that the files are submitted to.
    pub fn builder(&self) -> &SharedSettingsBuilder {
        &self.builder
    }
}

#[cfg(test)]
mod tests;
