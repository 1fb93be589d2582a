//! The command line of `weir-webhook`: what the user wrote, not yet resolved (that is [`crate::server::config`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_runtime::duration;

/// Adds the Istio sidecar to pods, as a mutating admission webhook.
#[derive(Debug, Parser)]
#[command(name = "weir-webhook", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Without one: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of serving.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What else the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a CA and a server certificate for the webhook
    Certs(CertsArgs),
}

/// Flags of `weir-webhook certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// Folder to write ca.crt, tls.crt and tls.key into; made if missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// DNS name or IP address the API server will call, such as weir-webhook.weir-system.svc; repeat it for more
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    pub dns: Vec<String>,
    /// Days until both certificates expire
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=7300))]
    pub days: u16,
    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,
}

/// Flags of serving.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address for the API server, over TLS: IP:PORT, or :PORT for all addresses
    #[arg(long, alias = "httpsAddr", env = "WEIR_HTTPS_ADDR", value_name = "ADDR", default_value = ":15017")]
    pub https_addr: ListenAddr,
    /// Address for probes and metrics, plain HTTP: as above, or empty for none
    #[arg(long, alias = "httpAddr", env = "WEIR_HTTP_ADDR", value_name = "ADDR", default_value = ":15014", value_parser = optional_addr)]
    pub http_addr: OptionalAddr,

    /// Server certificate with its intermediates, PEM; re-read when it changes
    #[arg(long, alias = "tlsCertFile", env = "WEIR_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the server certificate, PEM; re-read when it changes
    #[arg(long, alias = "tlsKeyFile", env = "WEIR_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Folder with tls.crt and tls.key (a mounted Secret); made with a certificate of our own if both are missing
    #[arg(long, env = "WEIR_CERT_DIR", value_name = "DIR", conflicts_with_all = ["tls_cert_file", "tls_key_file"])]
    pub cert_dir: Option<PathBuf>,
    /// CA of the API servers' client certificates, PEM: only clients with one are answered on the TLS port; re-read when it changes
    #[arg(long, env = "WEIR_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Common name or DNS name that a client certificate must have; repeat it for more
    #[arg(long, env = "WEIR_CLIENT_NAME", value_name = "NAME", value_delimiter = ',', requires = "client_ca_file")]
    pub client_name: Vec<String>,
    /// Name for a certificate that is made at start; repeat it for more
    #[arg(long, value_name = "NAME", default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])]
    pub dns: Vec<String>,
    /// Write the CA of a certificate that is made at start here, for clients
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tls_cert_file", "tls_key_file"])]
    pub ca_out: Option<PathBuf>,

    /// Istio's injector values (key `values` of ConfigMap istio-sidecar-injector), JSON or YAML; re-read when it changes
    #[arg(long, env = "WEIR_VALUES", value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Istio's injector configuration (key `config` of ConfigMap istio-sidecar-injector): policy, selectors and templates, YAML; re-read when it changes
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Istio's mesh configuration (key `mesh` of ConfigMap istio), YAML; re-read when it changes
    #[arg(long, env = "WEIR_MESH", value_name = "FILE")]
    pub mesh: Option<PathBuf>,
    /// Revision that is written to pods
    #[arg(long, env = "WEIR_REVISION", value_name = "NAME", default_value = "")]
    pub revision: String,
    /// Run the sidecar as a native one (init container with restartPolicy Always); auto is what all nodes can run with
    /// --watch nodes, else true, for Kubernetes 1.29 and later
    #[arg(long, env = "WEIR_NATIVE_SIDECARS", value_name = "WHEN", default_value = "auto")]
    pub native_sidecars: NativeSidecarsArg,

    /// How often files are looked at
    #[arg(long, env = "WEIR_RELOAD_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub reload_interval: Duration,
    /// Longest time for one request, from its first to its last byte
    #[arg(long, env = "WEIR_REQUEST_TIMEOUT", value_name = "TIME", default_value = "4s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Longest time for a TLS handshake, and for the head of a request
    #[arg(long, env = "WEIR_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,
    /// Close connections without a request for so long
    #[arg(long, env = "WEIR_IDLE_TIMEOUT", value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Connections at once, on each port; more wait in the kernel's queue
    #[arg(long, env = "WEIR_MAX_CONNECTIONS", value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroUsize,
    /// Reviews at once; more wait until their answer would be too late, and are then refused with 429
    #[arg(long, env = "WEIR_MAX_IN_FLIGHT", value_name = "N", default_value = "256")]
    pub max_in_flight: NonZeroUsize,
    /// On SIGTERM: stay unready but serve for so long, until the endpoints are gone everywhere
    #[arg(long, env = "WEIR_SHUTDOWN_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub shutdown_delay: Duration,
    /// After that: longest wait for requests under way
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Form of the log on stderr
    #[arg(long, env = "WEIR_LOG_FORMAT", value_name = "FORM", default_value = "text")]
    pub log_format: LogFormat,
    /// What goes to the log: error, warn, info, debug, trace, or by module: info,weir_webhook::server::tls=debug
    #[arg(long, env = "WEIR_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing_subscriber::filter::Targets,

    /// Lines `review` in one second, and as many for denials and failures; the rest is counted. 0 is no limit
    #[arg(long, env = "WEIR_LOG_MAX_PER_SECOND", value_name = "N", default_value = "100")]
    pub log_max_per_second: u32,

    /// Flags about the cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Flags about the cluster that the server is for. Without any of them it talks to nobody.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Kubeconfig of the cluster; without it, the one that the pod runs in
    #[arg(long, env = "WEIR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the webhook; without it, the service account's
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// Name of this replica, for events and the Lease; without it, the host's
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Certificates from a CA of our own in this Secret, made where it is missing; it is rotated, and written under a Lease of that name
    #[arg(long, env = "WEIR_CA_SECRET", value_name = "NAME", conflicts_with_all = ["tls_cert_file", "tls_key_file", "cert_dir", "ca_out", "ca_cert_file"])]
    pub ca_secret: Option<String>,
    /// Service by which API servers call the webhook: the names in certificates of --ca-secret; without it, weir-webhook and the revision
    #[arg(long, env = "WEIR_SERVICE", value_name = "NAME")]
    pub service: Option<String>,
    /// Life of a certificate of --ca-secret; it is renewed after two thirds
    #[arg(long, env = "WEIR_LEAF_LIFETIME", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub leaf_lifetime: Duration,
    /// Life of the CA of --ca-secret; it is replaced after two thirds
    #[arg(long, env = "WEIR_CA_LIFETIME", value_name = "TIME", default_value = "8760h", value_parser = duration)]
    pub ca_lifetime: Duration,
    /// When the CA is replaced: for API servers to see a new bundle, after we have seen it in every webhook configuration
    #[arg(long, env = "WEIR_CA_SETTLE", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub ca_settle: Duration,
    /// When the CA is replaced: for the one before to stay trusted, after it has signed its last; without it, --leaf-lifetime
    #[arg(long, env = "WEIR_CA_RETIRE_AFTER", value_name = "TIME", value_parser = duration)]
    pub ca_retire_after: Option<Duration>,

    /// CA of the certificate files, PEM: what goes into caBundle; without it, ca.crt in --cert-dir; re-read when it changes
    #[arg(long, alias = "caCertFile", env = "WEIR_CA_CERT_FILE", value_name = "FILE")]
    pub ca_cert_file: Option<PathBuf>,
    /// Keep caBundle right in the webhook configurations labelled weir.dev/rev=REVISION (`default` without one); on with --ca-secret
    #[arg(long, env = "WEIR_PATCH_CA_BUNDLE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub patch_ca_bundle: Option<bool>,
    /// Only compare caBundle there with what is served, and say so: somebody else, such as cert-manager, writes it
    #[arg(long, env = "WEIR_VERIFY_CA_BUNDLE", conflicts_with = "patch_ca_bundle")]
    pub verify_ca_bundle: bool,

    /// ConfigMap with the documents of --values (key `values`) and --config (key `config`), followed live
    #[arg(long, env = "WEIR_INJECTOR_CONFIG_MAP", value_name = "NAME", conflicts_with_all = ["values", "config"])]
    pub injector_config_map: Option<String>,
    /// ConfigMap with the document of --mesh (key `mesh`), followed live
    #[arg(long, env = "WEIR_MESH_CONFIG_MAP", value_name = "NAME", conflicts_with = "mesh")]
    pub mesh_config_map: Option<String>,
    /// Namespace of these two ConfigMaps; without it, the webhook's own
    #[arg(long, env = "WEIR_ISTIO_NAMESPACE", value_name = "NAME")]
    pub istio_namespace: Option<String>,
    /// What else of the cluster is followed: ProxyConfig resources; nodes, whose versions then decide with --native-sidecars auto;
    /// annotations of namespaces, for OpenShift
    #[arg(long, env = "WEIR_WATCH", value_name = "LIST", value_delimiter = ',')]
    pub watch: Vec<Followable>,
}

impl ServeArgs {
    /// How often files are looked at; not so often that it would be all that is done.
    pub fn reload_interval(&self) -> Duration {
        self.reload_interval.max(Duration::from_millis(100))
    }
}

impl ClusterArgs {
    /// Whether something of the cluster is followed to make settings of it.
    pub fn follows(&self) -> bool {
        self.injector_config_map.is_some() || self.mesh_config_map.is_some() || !self.watch.is_empty()
    }
}

/// Values of `--watch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Followable {
    /// `proxyconfigs.networking.istio.io`.
    #[value(name = "proxyconfigs")]
    ProxyConfigs,
    /// Nodes.
    Nodes,
    /// Namespaces.
    Namespaces,
}

/// Values of `--native-sidecars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NativeSidecarsArg {
    /// By the nodes where they are followed, else on.
    Auto,
    /// On.
    True,
    /// Off.
    False,
}

/// Values of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[HOST]:PORT` as Go's tools write it. The host is an IP address; none means all of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddr {
    host: Option<IpAddr>,
    port: u16,
}

impl ListenAddr {
    /// Addresses to try in turn: without a host the dual-stack one first, and IPv4 alone where the kernel has no IPv6.
    pub fn candidates(self) -> Vec<SocketAddr> {
        match self.host {
            Some(host) => vec![SocketAddr::new(host, self.port)],
            None => vec![
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), self.port),
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.port),
            ],
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
            return Ok(Self { host: None, port });
        }
        let addr: SocketAddr = text
            .parse()
            .map_err(|_| "expected [HOST]:PORT with an IP address as host, such as :15017 or 127.0.0.1:15017")?;
        Ok(Self { host: Some(addr.ip()), port: addr.port() })
    }
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host {
            Some(host) => write!(f, "{}", SocketAddr::new(host, self.port)),
            None => write!(f, ":{}", self.port),
        }
    }
}

/// An address that may be left empty. Its own type, because clap takes a bare `Option` for an optional flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalAddr(pub Option<ListenAddr>);

fn optional_addr(text: &str) -> Result<OptionalAddr, String> {
    if text.is_empty() { Ok(OptionalAddr(None)) } else { text.parse().map(|addr| OptionalAddr(Some(addr))) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_istios_ports() {
        let cli = Cli::try_parse_from(["weir-webhook"]).unwrap();
        assert_eq!(cli.serve.https_addr.to_string(), ":15017");
        assert_eq!(cli.serve.http_addr.0.unwrap().to_string(), ":15014");
        assert_eq!(cli.serve.request_timeout, Duration::from_secs(4));
    }

    #[test]
    fn empty_plain_address_turns_the_port_off() {
        let cli = Cli::try_parse_from(["weir-webhook", "--http-addr", ""]).unwrap();
        assert_eq!(cli.serve.http_addr, OptionalAddr(None));
    }

    #[test]
    fn reads_addresses_with_and_without_host() {
        for (text, first) in [
            (":443", "[::]:443"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:15017", "[::1]:15017"),
            ("0.0.0.0:1", "0.0.0.0:1"),
        ] {
            let addr: ListenAddr = text.parse().unwrap();
            assert_eq!(addr.candidates()[0].to_string(), first);
            assert_eq!(addr.to_string(), text);
        }
        for text in ["", "443", ":", ":99999", "example.org:1", "1.2.3.4"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn certificate_file_needs_its_key() {
        let refused = Cli::try_parse_from(["weir-webhook", "--tls-cert-file", "x"]).unwrap_err().to_string();
        assert!(refused.contains("--tls-key-file"), "{refused}");
    }

    #[test]
    fn certs_wants_a_name() {
        assert!(Cli::try_parse_from(["weir-webhook", "certs", "--out", "d"]).is_err());
        let cli = Cli::try_parse_from(["weir-webhook", "certs", "--out", "d", "--dns", "a", "--dns", "b"]).unwrap();
        let Some(Command::Certs(certs)) = cli.command else { panic!("not certs") };
        assert_eq!(certs.dns, ["a", "b"]);
    }
}
