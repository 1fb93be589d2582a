//! From the command line to what the server runs on: files read, certificate made or checked, all before a socket is bound.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::certs::{self, Bundle, CertsError};
use super::clients::ClientCa;
use super::listen::Limits;
use super::live::{Document, Files, Fixed, Live, Made, Maker, Text};
use super::tls::ServerCert;
use super::watch::Watched;
use crate::args::{Followable, ListenAddr, NativeSidecarsArg, ServeArgs};
use crate::cluster;
use crate::cluster::configuration::{MapName, Wanted};
use weir_injector::settings::NativeSidecars;

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
    /// See [`ServeArgs::max_in_flight`].
    pub max_in_flight: std::num::NonZeroUsize,
    /// See [`ServeArgs::log_max_per_second`].
    pub log_max_per_second: u32,
    /// How often files are looked at.
    pub reload_interval: std::time::Duration,
    /// See [`ServeArgs::shutdown_delay`].
    pub shutdown_delay: std::time::Duration,
    /// What is served over TLS, and where it comes from.
    pub certificate: Watched<Option<ServerCert>>,
    /// Who may call, where certificates of clients are asked for.
    pub clients: Option<ClientFile>,
    /// What is injected, and where it comes from.
    pub settings: Files,
    /// What is done with the API server; `None` where nothing asks for it.
    pub cluster: Option<cluster::Settings>,
}

/// CAs of clients, and which of their clients may call.
#[derive(Debug)]
pub struct ClientFile {
    /// The CAs.
    pub ca: Watched<ClientCa>,
    /// Names of those who may; none for all.
    pub names: Vec<String>,
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
        let mut cluster = cluster::Settings::resolve(args)?;
        // Settings first: a refused file must leave no freshly made certificate behind.
        let settings = settings(args, cluster.as_mut())?;
        let clients = clients(args)?;
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
            max_in_flight: args.max_in_flight,
            log_max_per_second: args.log_max_per_second,
            shutdown_delay: args.shutdown_delay,
            certificate,
            clients,
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

fn clients(args: &ServeArgs) -> Result<Option<ClientFile>, ConfigError> {
    let Some(path) = &args.client_ca_file else { return Ok(None) };
    let name = path.display().to_string();
    let build = move |bytes: &[Vec<u8>]| {
        let pem = bytes.first().map(Vec::as_slice).unwrap_or_default();
        ClientCa::from_pem(pem).map_err(|reason| format!("the CA of clients in {name} cannot be used: {reason}"))
    };
    let ca = Watched::open(vec![path.clone()], Box::new(build)).map_err(ConfigError::Certificate)?;
    Ok(Some(ClientFile { ca, names: args.client_name.clone() }))
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

/// Where documents are, read as far as they are files; what is in the cluster is noted in `cluster` and comes later.
fn settings(args: &ServeArgs, cluster: Option<&mut cluster::Settings>) -> Result<Files, ConfigError> {
    let flags = &args.cluster;
    let follows = |what| flags.watch.contains(&what);
    let (nodes, namespaces) = (follows(Followable::Nodes), follows(Followable::Namespaces));
    let proxy_configs = follows(Followable::ProxyConfigs);
    let fixed = Fixed {
        revision: Some(args.revision.clone()).filter(|revision| !revision.is_empty()),
        native_sidecars: match args.native_sidecars {
            NativeSidecarsArg::Auto if nodes => NativeSidecars::ByNodes,
            NativeSidecarsArg::Auto => NativeSidecars::default(),
            NativeSidecarsArg::True => NativeSidecars::On,
            NativeSidecarsArg::False => NativeSidecars::Off,
        },
    };
    let own = cluster.as_ref().map_or("", |cluster| cluster.namespace.as_str());
    let namespace = flags.istio_namespace.as_deref().unwrap_or(own);
    let named = |name: &Option<String>, documents: &[Document]| {
        let map = |name: &String| MapName {
            namespace: namespace.to_owned(),
            name: name.clone(),
            documents: documents.to_vec(),
        };
        name.as_ref().map(map)
    };
    let maps: Vec<MapName> = [
        named(&flags.injector_config_map, &[Document::Values, Document::Config]),
        named(&flags.mesh_config_map, &[Document::Mesh]),
    ]
    .into_iter()
    .flatten()
    .collect();
    let texts = Document::ALL.map(|document| {
        let map = maps.iter().find(|map| map.documents.contains(&document));
        map.map_or(Text::BuiltIn, MapName::pending)
    });
    let given = Live::default();
    let live = Live {
        nodes: given.nodes.filter(|_| !nodes),
        namespaces: given.namespaces.filter(|_| !namespaces),
        proxy_configs: given.proxy_configs.filter(|_| !proxy_configs),
    };
    let maker = Maker::new(texts, fixed, live).shared();
    if let Some(cluster) = cluster
        && flags.follows()
    {
        cluster.followed = Some(Wanted { maker: maker.clone(), maps, proxy_configs, nodes, namespaces });
    }
    let files = [(Document::Values, &args.values), (Document::Mesh, &args.mesh), (Document::Config, &args.config)];
    let files = files.into_iter().filter_map(|(document, path)| Some((document, path.clone()?))).collect();
    let files = Files::open(files, maker.clone()).map_err(ConfigError::Settings)?;
    let made = maker.lock().make();
    match made {
        // Without a cluster nothing could come that would change it.
        Made::Waiting(reason) if !flags.follows() => Err(ConfigError::Settings(reason)),
        _ => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;
    use weir_injector::settings::Settings;

    fn resolve(flags: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from(["weir-webhook"].iter().chain(flags)).unwrap();
        Config::resolve(&cli.serve).map_err(|error| error.to_string())
    }

    fn settings_of(config: &Config) -> std::sync::Arc<Settings> {
        config.settings.maker().lock().current().load_full().unwrap()
    }

    #[test]
    fn without_flags_everything_is_built_in() {
        let config = resolve(&[]).unwrap();
        assert_eq!(settings_of(&config).native_sidecars, NativeSidecars::On);
        assert!(config.certificate.current().load().as_ref().as_ref().unwrap().not_after() > SystemTime::now());
        assert!(config.cluster.is_none());
    }

    #[test]
    fn shipped_manifests_say_what_is_built_in() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/config");
        let (values, mesh) = (config.join("values.yaml"), config.join("mesh.yaml"));
        let shipped = resolve(&["--values", values.to_str().unwrap(), "--mesh", mesh.to_str().unwrap()]).unwrap();
        let text = |config: &Config| format!("{:#?}", settings_of(config));
        assert_eq!(text(&shipped), text(&resolve(&[]).unwrap()));
    }

    #[test]
    fn a_mesh_document_alone_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = dir.path().join("mesh");
        fs::write(&mesh, "trustDomain: example.org").unwrap();
        let config = resolve(&["--mesh", mesh.to_str().unwrap()]).unwrap();
        assert_eq!(settings_of(&config).mesh.trust_domain, "example.org");
    }

    #[test]
    fn process_flags_survive_a_change_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let values = dir.path().join("values");
        fs::write(&values, "{}").unwrap();
        let path = values.to_str().unwrap();
        let mut config = resolve(&["--values", path, "--revision", "canary", "--native-sidecars", "false"]).unwrap();
        fs::write(&values, "global: {tag: other}").unwrap();
        assert_eq!(config.settings.look(), Made::InUse(Vec::new()));
        let settings = settings_of(&config);
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
        assert_eq!(settings_of(&config_of).injection.policy, "disabled");
        fs::write(&config, "templates: {mine: 'metadata: {{ nosuch }}'}").unwrap();
        let Made::Refused(reason) = config_of.settings.look() else { panic!("taken") };
        assert!(reason.contains("config: templates.mine: line 1: function \"nosuch\" is not known"), "{reason}");
        assert_eq!(settings_of(&config_of).injection.policy, "disabled");
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
