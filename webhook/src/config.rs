//! Resolves the command line: reads files, generates or checks the certificate, all before a socket is bound.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use weir_injector::settings::NativeSidecars;

use crate::args::{CniModeArg, NativeSidecarsArg, ServeArgs, WatchTarget};
use crate::certs::{self, CertsError, GeneratedCerts};
use crate::client_auth::ClientCa;
use crate::controllers::settings_watch::{ConfigMapRef, WatchConfig};
use crate::controllers::{ControllerConfig, ControllerConfigError};
use crate::file_watch::WatchedFiles;
use crate::settings_builder::{
    ClusterState, DocumentState, FlagOverrides, SettingsBuilder, SettingsDocument, SettingsFiles, SettingsUpdate,
};
use crate::tls::ServerCert;

/// Lifetime of a certificate that is generated at start. The process is replaced long before.
const SELF_SIGNED_DAYS: u16 = 365;

/// The resolved command line.
#[derive(Debug)]
pub struct Config {
    /// The flags.
    pub flags: ServeArgs,
    /// The serving certificate; `None` as long as controllers have not issued one.
    pub certificate: WatchedFiles<Option<ServerCert>>,
    /// CAs of clients, with client authentication.
    pub client_ca: Option<WatchedFiles<ClientCa>>,
    /// Files of the injector settings, and their builder.
    pub settings: SettingsFiles,
    /// Configuration of the controllers; `None` if no flag needs one.
    pub controllers: Option<ControllerConfig>,
}

/// Error that keeps the server from starting. Nothing is bound by then.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A certificate is unusable.
    #[error("{0}")]
    Certificate(String),
    /// A settings document is unusable.
    #[error("{0}")]
    Settings(String),
    /// Only one file of a pair exists.
    #[error("{} exists, but {} does not; a certificate needs its key", present.display(), missing.display())]
    IncompleteKeyPair {
        /// The file that exists.
        present: PathBuf,
        /// The file that does not.
        missing: PathBuf,
    },
    /// The CA for `--ca-out` cannot be read.
    #[error("cannot copy the CA to --ca-out: {}: {reason}", path.display())]
    Ca {
        /// File of the CA.
        path: PathBuf,
        /// Error of the read.
        reason: std::io::Error,
    },
    /// Flags about the cluster are unusable.
    #[error(transparent)]
    Controllers(#[from] ControllerConfigError),
    /// A certificate cannot be generated or written.
    #[error(transparent)]
    Certs(#[from] CertsError),
}

impl Config {
    /// Reads and checks everything that the flags name.
    ///
    /// # Errors
    /// The first reason that keeps the server from starting; of settings, all at once.
    pub fn resolve(flags: ServeArgs) -> Result<Self, ConfigError> {
        let mut controllers = ControllerConfig::resolve(&flags)?;
        // Settings first: a rejected file must leave no freshly generated certificate behind.
        let settings = settings(&flags, controllers.as_mut())?;
        let client_ca = flags.client_ca_file.as_ref().map(|path| watch_client_ca(path.clone())).transpose()?;
        let certificate = certificate(&flags)?;
        Ok(Self { flags, certificate, client_ca, settings, controllers })
    }
}

fn certificate(flags: &ServeArgs) -> Result<WatchedFiles<Option<ServerCert>>, ConfigError> {
    if flags.cluster.ca_secret.is_some() {
        // A controller issues it.
        return Ok(WatchedFiles::constant(None));
    }
    if let (Some(cert), Some(key)) = (&flags.tls_cert_file, &flags.tls_key_file) {
        return watch_pair(cert.clone(), key.clone());
    }
    let Some(dir) = &flags.cert_dir else {
        let generated = certs::generate(&flags.dns, SELF_SIGNED_DAYS, SystemTime::now())?;
        write_ca(flags.ca_out.as_deref(), &generated.ca)?;
        return self_signed(&generated);
    };
    let (cert, key) = (dir.join(certs::CERT_FILE), dir.join(certs::KEY_FILE));
    match (cert.exists(), key.exists()) {
        (true, true) => {
            if let Some(out) = &flags.ca_out {
                let path = dir.join(certs::CA_FILE);
                let ca = std::fs::read_to_string(&path).map_err(|reason| ConfigError::Ca { path, reason })?;
                write_ca(Some(out), &ca)?;
            }
        }
        (false, false) => {
            let generated = certs::generate(&flags.dns, SELF_SIGNED_DAYS, SystemTime::now())?;
            generated.write(dir, false)?;
            write_ca(flags.ca_out.as_deref(), &generated.ca)?;
        }
        (true, false) => return Err(ConfigError::IncompleteKeyPair { present: cert, missing: key }),
        (false, true) => return Err(ConfigError::IncompleteKeyPair { present: key, missing: cert }),
    }
    watch_pair(cert, key)
}

fn watch_client_ca(path: PathBuf) -> Result<WatchedFiles<ClientCa>, ConfigError> {
    let name = path.display().to_string();
    let build = move |bytes: &[Vec<u8>]| {
        let pem = bytes.first().map(Vec::as_slice).unwrap_or_default();
        ClientCa::from_pem(pem).map_err(|reason| format!("cannot use client CA {name}: {reason}"))
    };
    WatchedFiles::open(vec![path], Box::new(build)).map_err(ConfigError::Certificate)
}

fn write_ca(out: Option<&Path>, ca: &str) -> Result<(), CertsError> {
    out.map_or(Ok(()), |path| certs::write_file(path, ca, 0o644, true))
}

fn self_signed(generated: &GeneratedCerts) -> Result<WatchedFiles<Option<ServerCert>>, ConfigError> {
    ServerCert::from_pem(generated.cert.as_bytes(), generated.key.as_bytes(), SystemTime::now())
        .map(|cert| WatchedFiles::constant(Some(cert)))
        .map_err(|error| ConfigError::Certificate(error.to_string()))
}

fn watch_pair(cert: PathBuf, key: PathBuf) -> Result<WatchedFiles<Option<ServerCert>>, ConfigError> {
    let names = format!("certificate {}, key {}", cert.display(), key.display());
    let build = move |bytes: &[Vec<u8>]| match bytes {
        [cert, key] => {
            ServerCert::from_pem(cert, key, SystemTime::now()).map(Some).map_err(|error| format!("{names}: {error}"))
        }
        _ => Err(format!("{names}: two files are expected")),
    };
    WatchedFiles::open(vec![cert, key], Box::new(build)).map_err(ConfigError::Certificate)
}

/// Finds the documents, and reads those in files; what is in the cluster is added to `controllers`, and follows later.
fn settings(flags: &ServeArgs, controllers: Option<&mut ControllerConfig>) -> Result<SettingsFiles, ConfigError> {
    let cluster = &flags.cluster;
    let watches = |target| cluster.watch.contains(&target);
    let (nodes, namespaces) = (watches(WatchTarget::Nodes), watches(WatchTarget::Namespaces));
    let proxy_configs = watches(WatchTarget::ProxyConfigs);
    let overrides = FlagOverrides {
        revision: Some(flags.revision.clone()).filter(|revision| !revision.is_empty()),
        native_sidecars: match flags.native_sidecars {
            NativeSidecarsArg::Auto if nodes => NativeSidecars::ByNodes,
            NativeSidecarsArg::Auto => NativeSidecars::default(),
            NativeSidecarsArg::True => NativeSidecars::On,
            NativeSidecarsArg::False => NativeSidecars::Off,
        },
        cni_mode: match flags.cni_mode {
            CniModeArg::Auto => None,
            CniModeArg::True => Some(true),
            CniModeArg::False => Some(false),
        },
    };
    let own = controllers.as_ref().map_or("", |controllers| controllers.namespace.as_str());
    let config_maps = config_maps(flags, cluster.istio_namespace.as_deref().unwrap_or(own));
    let documents = SettingsDocument::ALL.map(|document| {
        let map = config_maps.iter().find(|map| map.documents.contains(&document));
        map.map_or(DocumentState::BuiltIn, ConfigMapRef::pending_state)
    });
    let unwatched = ClusterState::default();
    let state = ClusterState {
        nodes: unwatched.nodes.filter(|_| !nodes),
        namespaces: unwatched.namespaces.filter(|_| !namespaces),
        proxy_configs: unwatched.proxy_configs.filter(|_| !proxy_configs),
    };
    let builder = SettingsBuilder::new(documents, overrides, state).into_shared();
    if let Some(controllers) = controllers
        && cluster.watches_settings()
    {
        let builder = builder.clone();
        controllers.watch = Some(WatchConfig { builder, config_maps, proxy_configs, nodes, namespaces });
    }
    let files = [
        (SettingsDocument::Values, &flags.values),
        (SettingsDocument::Mesh, &flags.mesh),
        (SettingsDocument::Config, &flags.config),
        (SettingsDocument::Assertions, &flags.assertions),
    ];
    let files = files.into_iter().filter_map(|(document, path)| Some((document, path.clone()?))).collect();
    let files = SettingsFiles::open(files, builder.clone()).map_err(ConfigError::Settings)?;
    let update = builder.lock().build();
    match update {
        // Without a watch, nothing could change that.
        SettingsUpdate::Pending(reason) if !cluster.watches_settings() => Err(ConfigError::Settings(reason)),
        _ => Ok(files),
    }
}

fn config_maps(flags: &ServeArgs, namespace: &str) -> Vec<ConfigMapRef> {
    let cluster = &flags.cluster;
    let config_map = |name: &Option<String>, documents: &[SettingsDocument]| {
        name.as_ref().map(|name| ConfigMapRef {
            namespace: namespace.to_owned(),
            name: name.clone(),
            documents: documents.to_vec(),
        })
    };
    let injector = config_map(&cluster.injector_config_map, &[SettingsDocument::Values, SettingsDocument::Config]);
    let mesh = config_map(&cluster.mesh_config_map, &[SettingsDocument::Mesh]);
    injector.into_iter().chain(mesh).collect()
}

#[cfg(test)]
mod tests;
