//! The command line of `weir-webhook`, as the user wrote it; [`crate::config`] resolves it.

#![allow(rustdoc::invalid_html_tags, reason = "help texts name their values as clap prints them: <DURATION>")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use humantime::parse_duration;
use weir_runtime::listen::{Limits, ListenAddr};
use weir_runtime::logging::LogArgs;

/// Inject the Istio sidecar into pods, as a mutating admission webhook.
#[derive(Debug, Parser)]
#[command(name = "weir-webhook", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Subcommand; without one, serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of serving.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Other commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a CA and a serving certificate for the webhook
    Certs(CertsArgs),
}

/// Flags of `weir-webhook certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// Write ca.crt, tls.crt and tls.key into this directory; it is created if missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// DNS name or IP address that the API server calls, such as weir-webhook.weir-system.svc; may be repeated
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    pub dns: Vec<String>,
    /// Days until both certificates expire
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=7300))]
    pub days: u16,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
}

/// Flags of serving.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Serve the API server over TLS on this address: IP:PORT, or :PORT for all addresses
    #[arg(long, alias = "httpsAddr", env = "WEIR_HTTPS_ADDR", value_name = "ADDR", default_value = ":15017")]
    pub https_addr: ListenAddr,
    /// Serve probes and metrics over plain HTTP on this address; empty disables the port
    #[arg(long, alias = "httpAddr", env = "WEIR_HTTP_ADDR", value_name = "ADDR", default_value = ":15014", value_parser = optional_addr)]
    pub http_addr: OptionalAddr,

    /// Serving certificate with its intermediates, PEM; reloaded when it changes
    #[arg(long, alias = "tlsCertFile", env = "WEIR_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the serving certificate, PEM; reloaded when it changes
    #[arg(long, alias = "tlsKeyFile", env = "WEIR_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Directory with tls.crt and tls.key, such as a mounted Secret; a self-signed certificate is generated if both are missing
    #[arg(long, env = "WEIR_CERT_DIR", value_name = "DIR", conflicts_with_all = ["tls_cert_file", "tls_key_file"])]
    pub cert_dir: Option<PathBuf>,
    /// Require a client certificate of this CA, PEM, on the TLS port; reloaded when it changes
    #[arg(long, env = "WEIR_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Require this common name or DNS name in client certificates; may be repeated
    #[arg(long, env = "WEIR_CLIENT_NAME", value_name = "NAME", value_delimiter = ',', requires = "client_ca_file")]
    pub client_name: Vec<String>,
    /// DNS name or IP address for a generated certificate; may be repeated
    #[arg(long, value_name = "NAME", default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])]
    pub dns: Vec<String>,
    /// Write the CA of a generated certificate to this file, for clients
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tls_cert_file", "tls_key_file"])]
    pub ca_out: Option<PathBuf>,

    /// Istio's injector values (key `values` of ConfigMap istio-sidecar-injector), JSON or YAML; reloaded when it changes
    #[arg(long, env = "WEIR_VALUES", value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Istio's injector configuration (key `config` of ConfigMap istio-sidecar-injector) with policy, selectors and templates, YAML; reloaded when it changes
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Istio's mesh configuration (key `mesh` of ConfigMap istio), YAML; reloaded when it changes
    #[arg(long, env = "WEIR_MESH", value_name = "FILE")]
    pub mesh: Option<PathBuf>,
    /// CaptureAssertions that created pods must fulfil: one, or a List of them, YAML or JSON; reloaded when it changes
    #[arg(long, env = "WEIR_ASSERTIONS", value_name = "FILE")]
    pub assertions: Option<PathBuf>,
    /// Revision to write into pods
    #[arg(long, env = "WEIR_REVISION", value_name = "NAME", default_value = "")]
    pub revision: String,
    /// Run the sidecar as a native sidecar (an init container with restartPolicy Always). auto means true, for Kubernetes
    /// 1.29 and later; with --watch nodes, it means true if all nodes support it
    #[arg(long, env = "WEIR_NATIVE_SIDECARS", value_name = "WHEN", default_value = "auto")]
    pub native_sidecars: NativeSidecarsArg,

    /// Expect the capture rules from a CNI plugin on the node, or give pods an init container that installs them; auto means by
    /// pilot.cni.enabled of the values
    #[arg(long, env = "WEIR_CNI_MODE", value_name = "WHEN", default_value = "auto")]
    pub cni_mode: CniModeArg,

    /// Check files for changes every <DURATION>
    #[arg(long, env = "WEIR_RELOAD_INTERVAL", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub reload_interval: Duration,
    /// Limit each request to <DURATION>, from its first to its last byte
    #[arg(long, env = "WEIR_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "4s", value_parser = parse_duration)]
    pub request_timeout: Duration,
    /// Limit the TLS handshake, and reading request headers, to <DURATION>
    #[arg(long, env = "WEIR_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub handshake_timeout: Duration,
    /// Close idle connections after <DURATION>
    #[arg(long, env = "WEIR_IDLE_TIMEOUT", value_name = "DURATION", default_value = "90s", value_parser = parse_duration)]
    pub idle_timeout: Duration,
    /// Limit open connections per port, and those of one client address to half of them; a further one takes the place of an idle one
    #[arg(long, env = "WEIR_MAX_CONNECTIONS", value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroUsize,
    /// Decide at most <N> reviews at once, and at most one per processor; further ones wait, and get 429 when the answer would be too late
    #[arg(long, env = "WEIR_MAX_IN_FLIGHT", value_name = "N", default_value = "256")]
    pub max_in_flight: NonZeroUsize,
    /// Hold at most <BYTES> of review bodies and unsent responses; further ones get 429. Bodies over 64 KiB may take three quarters.
    /// Deciding takes up to 110 MiB more, see docs/capacity.md
    #[arg(long, env = "WEIR_MAX_REVIEW_BYTES_IN_FLIGHT", value_name = "BYTES", default_value = "33554432")]
    pub max_review_bytes_in_flight: NonZeroUsize,
    /// Keep serving, unready, for <DURATION> after SIGTERM, until endpoints are removed
    #[arg(long, env = "WEIR_SHUTDOWN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub shutdown_delay: Duration,
    /// Then wait at most <DURATION> for requests in flight
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// Levels and format of the log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Log at most <N> reviews per second, and <N> denials and failures; 0 disables the limit
    #[arg(long, env = "WEIR_LOG_MAX_PER_SECOND", value_name = "N", default_value = "100")]
    pub log_max_per_second: u32,

    /// Flags about the cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Flags about the cluster that the webhook serves. Without any of them it does not use the API server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Kubeconfig of the cluster [default: the cluster that the pod runs in]
    #[arg(long, env = "WEIR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the webhook [default: the service account's]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Name of this replica, for events and the Lease [default: the host name]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Issue serving certificates from a CA in this Secret, which is created if missing, rotated, and written under a Lease of the same name
    #[arg(long, env = "WEIR_CA_SECRET", value_name = "NAME", conflicts_with_all = ["tls_cert_file", "tls_key_file", "cert_dir", "ca_out", "ca_cert_file"])]
    pub ca_secret: Option<String>,
    /// Service by which API servers call the webhook, for the names in certificates of --ca-secret [default: weir-webhook, or weir-webhook-REVISION]
    #[arg(long, env = "WEIR_SERVICE", value_name = "NAME")]
    pub service: Option<String>,
    /// Lifetime of a certificate of --ca-secret; it is renewed after two thirds
    #[arg(long, env = "WEIR_LEAF_LIFETIME", value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub leaf_lifetime: Duration,
    /// Lifetime of the CA of --ca-secret; it is rotated after two thirds
    #[arg(long, env = "WEIR_CA_LIFETIME", value_name = "DURATION", default_value = "8760h", value_parser = parse_duration)]
    pub ca_lifetime: Duration,
    /// During CA rotation, wait <DURATION> after every caBundle trusts the new CA before signing with it
    #[arg(long, env = "WEIR_CA_SETTLE", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub ca_settle: Duration,
    /// During CA rotation, trust the previous CA for <DURATION> after it last signed [default: --leaf-lifetime]
    #[arg(long, env = "WEIR_CA_RETIRE_AFTER", value_name = "DURATION", value_parser = parse_duration)]
    pub ca_retire_after: Option<Duration>,

    /// CA of the certificate files, PEM, to write into caBundle; reloaded when it changes [default: ca.crt in --cert-dir]
    #[arg(long, alias = "caCertFile", env = "WEIR_CA_CERT_FILE", value_name = "FILE")]
    pub ca_cert_file: Option<PathBuf>,
    /// Write caBundle into the webhook configurations labelled weir.dev/rev=REVISION (`default` without one); on by default with --ca-secret
    #[arg(long, env = "WEIR_PATCH_CA_BUNDLE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub patch_ca_bundle: Option<bool>,
    /// Verify caBundle against the serving certificate without writing it, for example with cert-manager
    #[arg(long, env = "WEIR_VERIFY_CA_BUNDLE", conflicts_with = "patch_ca_bundle")]
    pub verify_ca_bundle: bool,

    /// Watch this ConfigMap for the documents of --values (key `values`) and --config (key `config`)
    #[arg(long, env = "WEIR_INJECTOR_CONFIG_MAP", value_name = "NAME", conflicts_with_all = ["values", "config"])]
    pub injector_config_map: Option<String>,
    /// Watch this ConfigMap for the document of --mesh (key `mesh`)
    #[arg(long, env = "WEIR_MESH_CONFIG_MAP", value_name = "NAME", conflicts_with = "mesh")]
    pub mesh_config_map: Option<String>,
    /// Namespace of these two ConfigMaps [default: the webhook's own]
    #[arg(long, env = "WEIR_ISTIO_NAMESPACE", value_name = "NAMESPACE")]
    pub istio_namespace: Option<String>,
    /// Watch these resources too: ProxyConfig resources; nodes, whose versions decide with --native-sidecars auto;
    /// namespaces, for their annotations on OpenShift
    #[arg(long, env = "WEIR_WATCH", value_name = "LIST", value_delimiter = ',')]
    pub watch: Vec<WatchTarget>,
}

impl ServeArgs {
    /// Returns how often files are checked, at most ten times per second.
    pub fn reload_interval(&self) -> Duration {
        self.reload_interval.max(Duration::from_millis(100))
    }

    /// Returns the bounds of both ports.
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            handshake: self.handshake_timeout,
            idle: self.idle_timeout,
            drain: self.drain_timeout,
        }
    }
}

impl ClusterArgs {
    /// Returns whether anything in the cluster is watched for the injector settings.
    pub fn watches_settings(&self) -> bool {
        self.injector_config_map.is_some() || self.mesh_config_map.is_some() || !self.watch.is_empty()
    }
}

/// Values of `--watch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WatchTarget {
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
    /// Decided by the nodes if they are watched, else on.
    Auto,
    /// On.
    True,
    /// Off.
    False,
}

/// Values of `--cni-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CniModeArg {
    /// Decided by the values.
    Auto,
    /// On.
    True,
    /// Off.
    False,
}

/// An address that may be empty. A type of its own, because clap takes a bare `Option` for an optional flag.
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
    fn durations_are_written_as_in_go() {
        let cli = Cli::try_parse_from(["weir-webhook", "--idle-timeout=1m30s", "--ca-settle=250ms"]).unwrap();
        assert_eq!(cli.serve.idle_timeout, Duration::from_secs(90));
        assert_eq!(cli.serve.cluster.ca_settle, Duration::from_millis(250));
        assert!(Cli::try_parse_from(["weir-webhook", "--idle-timeout=5"]).is_err());
    }

    #[test]
    fn empty_plain_address_disables_the_port() {
        let cli = Cli::try_parse_from(["weir-webhook", "--http-addr", ""]).unwrap();
        assert_eq!(cli.serve.http_addr, OptionalAddr(None));
    }

    #[test]
    fn certificate_file_requires_its_key() {
        let error = Cli::try_parse_from(["weir-webhook", "--tls-cert-file", "x"]).unwrap_err().to_string();
        assert!(error.contains("--tls-key-file"), "{error}");
    }

    #[test]
    fn certs_requires_a_name() {
        assert!(Cli::try_parse_from(["weir-webhook", "certs", "--out", "d"]).is_err());
        let cli = Cli::try_parse_from(["weir-webhook", "certs", "--out", "d", "--dns", "a", "--dns", "b"]).unwrap();
        let Some(Command::Certs(certs)) = cli.command else { panic!("not certs") };
        assert_eq!(certs.dns, ["a", "b"]);
    }
}
