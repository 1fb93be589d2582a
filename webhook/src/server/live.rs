//! The settings of the moment: one immutable value, made of documents and of what is known of the cluster, and swapped as a whole.
//!
//! ```text
//! files ──watch──▶ texts ─┐
//! ConfigMaps ────▶ texts ─┴─read─▶ base ─┐
//! ProxyConfigs, nodes, namespaces ───────┴─▶ Current ──▶ reviews
//! ```
//!
//! Documents are read again only when the text of one has changed. What cannot be taken leaves the last good settings in use; before
//! the first ones there are none, and nothing is injected with defaults in their place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use serde_json::Value;

use super::watch::{Look, Watched};
use weir_injector::settings::{
    Documents, Namespaces, NativeSidecars, Nodes, Platform, ProxyConfigResources, Settings, SettingsError,
};
use weir_injector::yaml;

/// The settings of the moment; none before the first that could be made.
pub type Current = Arc<ArcSwapOption<Settings>>;

/// Longest list of reasons that is shown.
const REASONS_BYTES: usize = 4096;

/// One of the documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// `values` of the injector.
    Values,
    /// `mesh`.
    Mesh,
    /// `config` of the injector.
    Config,
}

impl Document {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Values, Self::Mesh, Self::Config];

    /// Key of the ConfigMap that has it, as Istio calls it.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Mesh => "mesh",
            Self::Config => "config",
        }
    }
}

/// What is known of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Nobody gives it; what is built in holds.
    BuiltIn,
    /// It is not there (yet), for this reason.
    Missing(String),
    /// It says this.
    Given {
        /// Where it is: a path, or the name of a ConfigMap.
        place: String,
        /// The text.
        bytes: Vec<u8>,
    },
}

/// What flags of the process put over the documents.
#[derive(Debug, Clone, Default)]
pub struct Fixed {
    /// Revision that is written to pods, where it is not that of the values.
    pub revision: Option<String>,
    /// See [`NativeSidecars`].
    pub native_sidecars: NativeSidecars,
}

/// What is known of the cluster; `None` for what is followed and not known yet.
#[derive(Debug, Clone)]
pub struct Live {
    /// Nodes.
    pub nodes: Option<Nodes>,
    /// Namespaces.
    pub namespaces: Option<Namespaces>,
    /// `ProxyConfig` resources.
    pub proxy_configs: Option<ProxyConfigResources>,
}

impl Default for Live {
    /// Nothing is followed.
    fn default() -> Self {
        Self {
            nodes: Some(Nodes::default()),
            namespaces: Some(Namespaces::default()),
            proxy_configs: Some(ProxyConfigResources::default()),
        }
    }
}

/// What came of making settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// Nothing was to be made.
    Same,
    /// New documents are in use; what in them was passed over.
    InUse(Vec<SettingsError>),
    /// The same documents are in use, with news of the cluster.
    Updated,
    /// The documents are refused, for this reason; the last good ones stay in use.
    Refused(String),
    /// There are no settings yet, for this reason.
    Waiting(String),
}

/// Makes the settings of the moment.
#[derive(Debug)]
pub struct Maker {
    texts: [Text; 3],
    fixed: Fixed,
    live: Live,
    /// What the documents say, as far as they were good.
    base: Option<Settings>,
    /// Some text is new.
    unread: bool,
    /// Something else is new.
    unmade: bool,
    problem: Option<String>,
    /// What was passed over in documents that are read, but not in use yet.
    passed_over: Option<Vec<SettingsError>>,
    current: Current,
}

/// A maker that several tasks feed.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Maker>>);

impl Shared {
    /// Nobody waits while it is held.
    pub fn lock(&self) -> MutexGuard<'_, Maker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maker {
    /// With these texts in the order of [`Document::ALL`]; nothing is made yet.
    pub fn new(texts: [Text; 3], fixed: Fixed, live: Live) -> Self {
        Self {
            texts,
            fixed,
            live,
            base: None,
            unread: true,
            unmade: true,
            problem: None,
            passed_over: None,
            current: Arc::new(ArcSwapOption::empty()),
        }
    }

    /// For several tasks.
    pub fn shared(self) -> Shared {
        Shared(Arc::new(Mutex::new(self)))
    }

    /// Where the settings of the moment are.
    pub fn current(&self) -> &Current {
        &self.current
    }

    /// A document is this now.
    pub fn text(&mut self, document: Document, text: Text) {
        let known = &mut self.texts[document as usize];
        if *known != text {
            *known = text;
            self.unread = true;
        }
    }

    /// What is known of the cluster, to change it.
    pub fn live(&mut self) -> &mut Live {
        self.unmade = true;
        &mut self.live
    }

    /// Makes settings of what is known now, where something is new.
    pub fn make(&mut self) -> Made {
        if !self.unread && !self.unmade {
            return Made::Same;
        }
        let (read, made) = (std::mem::take(&mut self.unread), std::mem::take(&mut self.unmade));
        if read {
            match read_all(&self.texts, &self.fixed) {
                Ok(base) => {
                    self.passed_over = Some(base.passed_over.clone());
                    (self.base, self.problem) = (Some(base), None);
                }
                Err(reason) => self.problem = Some(shorten(reason)),
            }
        }
        let Some(base) = &self.base else {
            return Made::Waiting(self.problem.clone().unwrap_or_default());
        };
        let Live { nodes: Some(nodes), namespaces: Some(namespaces), proxy_configs: Some(proxy_configs) } = &self.live
        else {
            return Made::Waiting(format!("what is followed of the cluster is not known yet: {}", self.live.missing()));
        };
        let refused = self.problem.clone().filter(|_| read);
        if !made && let Some(reason) = refused {
            return Made::Refused(reason);
        }
        let mut settings = base.clone();
        settings.nodes = nodes.clone();
        settings.namespaces = namespaces.clone();
        settings.proxy_configs = proxy_configs.clone();
        self.current.store(Some(Arc::new(settings)));
        match (refused, self.passed_over.take()) {
            (Some(reason), _) => Made::Refused(reason),
            (None, Some(passed_over)) => Made::InUse(passed_over),
            (None, None) => Made::Updated,
        }
    }

    /// Why the documents as they are now are not in use, if so.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

impl Live {
    fn missing(&self) -> String {
        let parts = [
            ("nodes", self.nodes.is_none()),
            ("namespaces", self.namespaces.is_none()),
            ("proxyconfigs", self.proxy_configs.is_none()),
        ];
        parts.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect::<Vec<_>>().join(", ")
    }
}

fn shorten(mut reason: String) -> String {
    if reason.len() > REASONS_BYTES {
        reason.truncate(reason.floor_char_boundary(REASONS_BYTES));
        reason.push_str(" ...");
    }
    reason
}

/// Reads the documents; of what is wrong with them, all findings.
fn read_all(texts: &[Text; 3], fixed: &Fixed) -> Result<Settings, String> {
    let mut findings = Vec::new();
    let mut parse = |text: &Text| match text {
        Text::BuiltIn => None,
        Text::Missing(reason) => {
            if !findings.contains(reason) {
                findings.push(reason.clone());
            }
            None
        }
        Text::Given { place, bytes } => match parse(bytes) {
            Ok(document) => Some(document),
            Err(error) => {
                findings.push(format!("{place}: {error}"));
                None
            }
        },
    };
    let [values, mesh, config] = texts.each_ref().map(&mut parse);
    if !findings.is_empty() {
        return Err(findings.join("; "));
    }
    let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
    let mut settings = Settings::from_all(documents)
        .map_err(|findings| findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    if let Some(revision) = &fixed.revision {
        settings.revision.clone_from(revision);
    }
    settings.native_sidecars = fixed.native_sidecars;
    // Istio's chart makes the variable PLATFORM of its controller of this value.
    if values.is_some_and(|values| values["global"]["platform"] == "openshift") {
        settings.platform = Platform::OpenShift;
    }
    Ok(settings)
}

fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    yaml::from_str(text).map_err(|error| error.to_string())
}

/// Texts of files, looked at again and again.
#[derive(Debug)]
pub struct Files {
    documents: Vec<Document>,
    watched: Watched<Vec<Vec<u8>>>,
    maker: Shared,
}

impl Files {
    /// Reads the files for the first time and gives their texts to the maker.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(files: Vec<(Document, PathBuf)>, maker: Shared) -> Result<Self, String> {
        let (documents, paths) = files.into_iter().unzip();
        let watched = Watched::open(paths, Box::new(|bytes: &[Vec<u8>]| Ok(bytes.to_vec())))?;
        let files = Self { documents, watched, maker };
        files.hand_over();
        Ok(files)
    }

    /// Looks again. Blocks on the file system.
    pub fn look(&mut self) -> Made {
        match self.watched.look() {
            Look::Same => Made::Same,
            Look::Replaced | Look::Restored => {
                self.hand_over();
                let made = self.maker.lock().make();
                // A file that is there again with the same text: what was told about it is over.
                if made == Made::Same { Made::InUse(Vec::new()) } else { made }
            }
            Look::Refused(reason) => Made::Refused(reason),
        }
    }

    fn hand_over(&self) {
        let texts = self.watched.current().load();
        let mut maker = self.maker.lock();
        for ((document, path), bytes) in self.documents.iter().zip(self.watched.files()).zip(texts.iter()) {
            maker.text(*document, Text::Given { place: path.display().to_string(), bytes: bytes.clone() });
        }
    }

    /// Which files.
    pub fn files(&self) -> &[PathBuf] {
        self.watched.files()
    }

    /// What they are read for.
    pub fn maker(&self) -> &Shared {
        &self.maker
    }
}

#[cfg(test)]
mod tests;
