//! From the command line to what the server runs on: files read, certificate made or checked, all before a socket is bound.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::certs::{self, Bundle, CertsError};
use super::listen::Limits;
use super::tls::ServerCert;
use super::watch::Watched;
use crate::args::{ListenAddr, NativeSidecarsArg, ServeArgs};
use crate::cluster;
use crate::settings::{Documents, NativeSidecars, Settings};
use crate::yaml;

/// Validity of a certificate that is made at start. The process is replaced long before.
const OWN_DAYS: u16 = 365;

/// Everything resolved.
#[derive(Debug)]
pub struct Config {
    /// TLS port.
    pub https_addr: ListenAddr,
    /// Plain port.
    pub http_addr: Option<ListenAddr>,
    /// Bounds of connections.
    pub limits: Limits,
    /// Bound of a request.
    pub request_timeout: std::time::Duration,
    /// How often files are looked at.
    pub reload_interval: std::time::Duration,
    /// See [`ServeArgs::shutdown_delay`].
    pub shutdown_delay: std::time::Duration,
    /// What is served over TLS, and where it comes from.
    pub certificate: Watched<Option<ServerCert>>,
    /// What is injected, and where it comes from.
    pub settings: Watched<Settings>,
    /// What is done with the API server; `None` where nothing asks for it.
    pub cluster: Option<cluster::Settings>,
}

/// Why the server does not start. Nothing is bound by then.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A certificate that cannot serve.
    #[error("{0}")]
    Certificate(String),
    /// Values or mesh that cannot be followed.
    #[error("{0}")]
    Settings(String),
    /// One half of a pair.
    #[error("{} is there, but {} is not; a certificate needs its key", there.display(), missing.display())]
    HalfPair {
        /// What is there.
        there: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// A CA to hand out that is not ours.
    #[error("cannot copy the CA to --ca-out: {}: {reason}", path.display())]
    Ca {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        reason: std::io::Error,
    },
    /// Flags about the cluster that cannot be followed.
    #[error(transparent)]
    Cluster(#[from] cluster::SettingsError),
    /// Making or writing our own certificate failed.
    #[error(transparent)]
    Certs(#[from] CertsError),
}

impl Config {
    /// Reads and checks all that the flags name.
    ///
    /// # Errors
    /// The first thing that keeps the server from starting; of settings, all findings at once.
    pub fn resolve(args: &ServeArgs) -> Result<Self, ConfigError> {
        let cluster = cluster::Settings::resolve(args)?;
        // Settings first: a refused file must leave no freshly made certificate behind.
        let settings = settings(args)?;
        let certificate = certificate(args)?;
        Ok(Self {
            https_addr: args.https_addr,
            http_addr: args.http_addr.0,
            limits: Limits {
                connections: args.max_connections,
                handshake: args.handshake_timeout,
                idle: args.idle_timeout,
                drain: args.drain_timeout,
            },
            request_timeout: args.request_timeout,
            reload_interval: args.reload_interval(),
            shutdown_delay: args.shutdown_delay,
            certificate,
            settings,
            cluster,
        })
    }
}

fn certificate(args: &ServeArgs) -> Result<Watched<Option<ServerCert>>, ConfigError> {
    if args.cluster.ca_secret.is_some() {
        // It comes from the cluster.
        return Watched::open(Vec::new(), Box::new(|_| Ok(None))).map_err(ConfigError::Certificate);
    }
    if let (Some(cert), Some(key)) = (&args.tls_cert_file, &args.tls_key_file) {
        return watch_pair(cert.clone(), key.clone());
    }
    let Some(dir) = &args.cert_dir else {
        let made = certs::make(&args.dns, OWN_DAYS, SystemTime::now())?;
        write_ca(args.ca_out.as_deref(), &made.ca)?;
        return in_memory(&made);
    };
    let (cert, key) = (dir.join(certs::CERT_FILE), dir.join(certs::KEY_FILE));
    match (cert.exists(), key.exists()) {
        (true, true) => {
            if let Some(out) = &args.ca_out {
                let path = dir.join(certs::CA_FILE);
                let ca = std::fs::read_to_string(&path).map_err(|reason| ConfigError::Ca { path, reason })?;
                write_ca(Some(out), &ca)?;
            }
        }
        (false, false) => {
            let made = certs::make(&args.dns, OWN_DAYS, SystemTime::now())?;
            made.write(dir, false)?;
            write_ca(args.ca_out.as_deref(), &made.ca)?;
        }
        (true, false) => return Err(ConfigError::HalfPair { there: cert, missing: key }),
        (false, true) => return Err(ConfigError::HalfPair { there: key, missing: cert }),
    }
    watch_pair(cert, key)
}

fn write_ca(out: Option<&Path>, ca: &str) -> Result<(), CertsError> {
    out.map_or(Ok(()), |path| certs::write_file(path, ca, 0o644, true))
}

fn in_memory(made: &Bundle) -> Result<Watched<Option<ServerCert>>, ConfigError> {
    let cert = ServerCert::from_pem(made.cert.as_bytes(), made.key.as_bytes(), SystemTime::now())
        .map_err(|error| ConfigError::Certificate(error.to_string()))?;
    Watched::open(Vec::new(), Box::new(move |_| Ok(Some(cert.clone())))).map_err(ConfigError::Certificate)
}

fn watch_pair(cert: PathBuf, key: PathBuf) -> Result<Watched<Option<ServerCert>>, ConfigError> {
    let names = format!("certificate {}, key {}", cert.display(), key.display());
    let build = move |bytes: &[Vec<u8>]| match bytes {
        [cert, key] => {
            ServerCert::from_pem(cert, key, SystemTime::now()).map(Some).map_err(|error| format!("{names}: {error}"))
        }
        _ => Err(format!("{names}: two files are expected")),
    };
    Watched::open(vec![cert, key], Box::new(build)).map_err(ConfigError::Certificate)
}

fn settings(args: &ServeArgs) -> Result<Watched<Settings>, ConfigError> {
    let values = args.values.clone();
    let mesh = args.mesh.clone();
    let config = args.config.clone();
    let files: Vec<_> = values.iter().chain(&mesh).chain(&config).cloned().collect();
    let revision = Some(args.revision.clone()).filter(|revision| !revision.is_empty());
    let native = match args.native_sidecars {
        NativeSidecarsArg::Auto => NativeSidecars::default(),
        NativeSidecarsArg::True => NativeSidecars::On,
        NativeSidecarsArg::False => NativeSidecars::Off,
    };
    let build = move |bytes: &[Vec<u8>]| {
        let mut bytes = bytes.iter();
        let mut document = |path: &Option<PathBuf>| -> Result<Option<Value>, String> {
            // A document that is not named has no bytes to take.
            let Some((path, bytes)) = path.as_ref().and_then(|path| Some((path, bytes.next()?))) else {
                return Ok(None);
            };
            parse(bytes).map(Some).map_err(|error| format!("{}: {error}", path.display()))
        };
        let (values, mesh, config) = match (document(&values), document(&mesh), document(&config)) {
            (Ok(values), Ok(mesh), Ok(config)) => (values, mesh, config),
            (values, mesh, config) => {
                let findings: Vec<_> = [values.err(), mesh.err(), config.err()].into_iter().flatten().collect();
                return Err(findings.join("; "));
            }
        };
        let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
        let mut settings = Settings::from_all(documents)
            .map_err(|findings| findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        if let Some(revision) = &revision {
            settings.revision.clone_from(revision);
        }
        settings.native_sidecars = native;
        Ok(settings)
    };
    Watched::open(files, Box::new(build)).map_err(ConfigError::Settings)
}

fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    yaml::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::super::watch::Look;
    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from(["weir-webhook"].iter().chain(flags)).unwrap();
        Config::resolve(&cli.serve).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_everything_is_built_in() {
        let config = resolve(&[]).unwrap();
        assert_eq!(config.settings.current().load().native_sidecars, NativeSidecars::On);
        assert!(config.certificate.current().load().as_ref().as_ref().unwrap().not_after() > SystemTime::now());
        assert!(config.cluster.is_none());
    }

    #[test]
    fn shipped_manifests_say_what_is_built_in() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/config");
        let (values, mesh) = (config.join("values.yaml"), config.join("mesh.yaml"));
        let shipped = resolve(&["--values", values.to_str().unwrap(), "--mesh", mesh.to_str().unwrap()]).unwrap();
        let text = |config: &Config| format!("{:#?}", config.settings.current().load());
        assert_eq!(text(&shipped), text(&resolve(&[]).unwrap()));
    }

    #[test]
    fn a_mesh_document_alone_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = dir.path().join("mesh");
        fs::write(&mesh, "trustDomain: example.org").unwrap();
        let config = resolve(&["--mesh", mesh.to_str().unwrap()]).unwrap();
        assert_eq!(config.settings.current().load().mesh.trust_domain, "example.org");
    }

    #[test]
    fn process_flags_survive_a_change_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let values = dir.path().join("values");
        fs::write(&values, "{}").unwrap();
        let path = values.to_str().unwrap();
        let mut config = resolve(&["--values", path, "--revision", "canary", "--native-sidecars", "false"]).unwrap();
        fs::write(&values, "global: {tag: other}").unwrap();
        assert_eq!(config.settings.look(), Look::Replaced);
        let settings = config.settings.current().load();
        assert_eq!((settings.revision.as_str(), settings.native_sidecars), ("canary", NativeSidecars::Off));
        assert_eq!(settings.values.global.tag, "other");
    }

    #[test]
    fn refuses_broken_documents_naming_both() {
        let dir = tempfile::tempdir().unwrap();
        let (values, mesh) = (dir.path().join("values"), dir.path().join("mesh"));
        fs::write(&values, "a: [").unwrap();
        fs::write(&mesh, [0xff]).unwrap();
        let refused = resolve(&["--values", values.to_str().unwrap(), "--mesh", mesh.to_str().unwrap()]).unwrap_err();
        assert!(refused.contains(values.to_str().unwrap()), "{refused}");
        assert!(refused.contains("not UTF-8"), "{refused}");
    }

    #[test]
    fn templates_of_the_configuration_are_read_again_and_a_bad_one_keeps_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        fs::write(&config, "policy: disabled\ntemplates: {mine: 'metadata: {}'}").unwrap();
        let mut config_of = resolve(&["--config", config.to_str().unwrap()]).unwrap();
        assert_eq!(config_of.settings.current().load().injection.policy, "disabled");
        fs::write(&config, "templates: {mine: 'metadata: {{ nosuch }}'}").unwrap();
        let Look::Refused(reason) = config_of.settings.look() else { panic!("taken") };
        assert!(reason.contains("config: templates.mine: line 1: function \"nosuch\" is not known"), "{reason}");
        assert_eq!(config_of.settings.current().load().injection.policy, "disabled");
    }

    #[test]
    fn refuses_a_key_of_another_certificate_naming_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned()];
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for folder in [&one, &other] {
            certs::make(&names, 1, SystemTime::now()).unwrap().write(folder, false).unwrap();
        }
        let (cert, key) = (one.join("tls.crt"), other.join("tls.key"));
        let refused =
            resolve(&["--tls-cert-file", cert.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()]).unwrap_err();
        assert!(refused.contains("does not belong"), "{refused}");
        assert!(refused.contains(cert.to_str().unwrap()) && refused.contains(key.to_str().unwrap()), "{refused}");
    }

    #[test]
    fn fills_an_empty_certificate_folder_once() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, ca) = (dir.path().join("certs"), dir.path().join("ca.pem"));
        let flags = ["--cert-dir", folder.to_str().unwrap(), "--ca-out", ca.to_str().unwrap()];
        resolve(&flags).unwrap();
        let first = fs::read(folder.join("tls.crt")).unwrap();
        assert_eq!(fs::read(&ca).unwrap(), fs::read(folder.join("ca.crt")).unwrap());
        resolve(&flags).unwrap();
        assert_eq!(fs::read(folder.join("tls.crt")).unwrap(), first);

        fs::remove_file(folder.join("tls.key")).unwrap();
        let refused = resolve(&flags).unwrap_err();
        assert!(refused.contains("tls.key is not"), "{refused}");
    }
}
