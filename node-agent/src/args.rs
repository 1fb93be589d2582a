//! Command line of `weir-agent`. Flags and environment variables with the same meaning have the names of Istio's `install-cni`.

mod node;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use iptables_rules::backend::{Backend, Visibility};
use weir_protocol::entry::{DEFAULT_AGENT_TIMEOUT, PluginEntry};
use weir_protocol::log_level::LogLevel;

pub use self::node::NodeArgs;
use crate::mode::ModeArg;
use weir_runtime::logging::LogArgs;

/// Install Weir's CNI plugin on this node, keep it installed and answer its pod queries
#[derive(Debug, Parser)]
#[command(name = "weir-agent", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Subcommand; `run` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install the plugin and keep it installed until SIGTERM (default)
    Run(Box<RunArgs>),
    /// Install the plugin once and exit
    Install(Box<OnceArgs>),
    /// Remove the plugin and its conflist entry from the node
    Uninstall(Box<OnceArgs>),
    /// Do nothing until SIGTERM: the main container of a DaemonSet whose init container has done the work
    #[command(hide = true)]
    Pause,
    /// Print the version
    Version,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Files to install, and their directories.
    #[command(flatten)]
    pub install: InstallArgs,
    /// Format and levels of the log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Install rules in new pods by the CNI plugin, as a plugin of the container runtime, or by what the node offers
    #[arg(long, env = "WEIR_MODE", value_name = "MODE", default_value = "cni")]
    pub mode: ModeArg,
    /// Set the container runtime's socket for NRI plugins, as mounted here
    #[arg(long, env = "WEIR_NRI_SOCKET", value_name = "FILE", default_value = "/var/run/nri/nri.sock")]
    pub nri_socket: PathBuf,
    /// Serve /metrics, /pods and /logging on this port; 0 disables it
    #[arg(long, env = "MONITORING_PORT", value_name = "PORT", default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Serve /healthz and /readyz on this port; 0 disables it
    #[arg(long, env = "HEALTH_PORT", value_name = "PORT", default_value_t = 8000)]
    pub health_port: u16,
    /// Serve the monitoring port on these addresses, separated by commas, and on loopback; by default on loopback only
    #[arg(long, env = "MONITORING_ADDR", value_name = "ADDRESSES", value_delimiter = ',')]
    pub monitoring_addr: Vec<IpAddr>,
    /// Serve the health port on these addresses, separated by commas, and on loopback; by default on all addresses
    #[arg(long, env = "HEALTH_ADDR", value_name = "ADDRESSES", value_delimiter = ',')]
    pub health_addr: Vec<IpAddr>,
    /// Check the CNI directories at this interval, in addition to inotify
    #[arg(long, env = "WEIR_CHECK_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub check_interval: Duration,
    /// Flags about the pods of this node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Flags of `install` and `uninstall`.
#[derive(Debug, Args)]
pub struct OnceArgs {
    /// Files to install, and their directories.
    #[command(flatten)]
    pub install: InstallArgs,
    /// Format and levels of the log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Wait at most this long: for a network configuration (install), for attachments to end (uninstall)
    #[arg(long, env = "WEIR_WAIT", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Flags of the installation.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// Read the host's files, such as the runtime's configuration, below this mount point
    #[arg(long, env = "WEIR_HOST_ROOT", value_name = "DIR", default_value = "/host")]
    pub host_root: PathBuf,
    /// Set the directory of network configurations, as mounted here; detected by default
    #[arg(long, env = "MOUNTED_CNI_NET_DIR", value_name = "DIR")]
    pub mounted_cni_net_dir: Option<PathBuf>,
    /// Set the directory of plugins, as mounted here; detected by default
    #[arg(long, env = "MOUNTED_CNI_BIN_DIR", value_name = "DIR")]
    pub mounted_cni_bin_dir: Option<PathBuf>,
    /// Set the host's path of --mounted-cni-net-dir, to compare with the runtime's configuration
    #[arg(long, env = "CNI_NET_DIR", value_name = "DIR")]
    pub cni_net_dir: Option<PathBuf>,
    /// Set the host's path of --mounted-cni-bin-dir, to compare with the runtime's configuration
    #[arg(long, env = "CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Set the platform of the node; detected by default
    #[arg(long, env = "WEIR_PLATFORM", value_name = "NAME")]
    pub platform: Option<Platform>,

    /// Use this network configuration file only (its .conf or .conflist variant counts as the same)
    #[arg(long, env = "CNI_CONF_NAME", value_name = "FILE", default_value = "")]
    pub cni_conf_name: String,
    /// Chain the plugin into the node's network; false writes a standalone configuration for Multus
    #[arg(long, env = "CHAINED_CNI_PLUGIN", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub chained_cni_plugin: bool,
    /// Set how the entry is installed
    #[arg(long, env = "WEIR_CNI_PLACEMENT", value_name = "MODE", default_value = "chained")]
    pub cni_placement: PlacementArg,
    /// Same as --cni-placement=owned
    #[arg(long, alias = "istio-owned-cni-config", env = "ISTIO_OWNED_CNI_CONFIG", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub owned_cni_config: bool,
    /// Set the file name of the placement `owned`; it has to sort before every other
    #[arg(
        long,
        alias = "istio-owned-cni-config-filename",
        env = "ISTIO_OWNED_CNI_CONFIG_FILENAME",
        value_name = "FILE",
        default_value = "00-weir.conflist"
    )]
    pub owned_cni_config_filename: String,
    /// Create configuration files with mode 0640 instead of 0600
    #[arg(long, env = "CNI_CONF_GROUP_READ", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub cni_conf_group_read: bool,

    /// Copy this plugin to the node
    #[arg(long, env = "WEIR_PLUGIN_SOURCE", value_name = "FILE", default_value = "/opt/weir/bin/weir-cni")]
    pub plugin_source: PathBuf,
    /// Keep sockets and locks in this directory; the same path here and on the host
    #[arg(long, env = "CNI_AGENT_RUN_DIR", value_name = "DIR", default_value = "/var/run/weir")]
    pub cni_agent_run_dir: PathBuf,

    /// Skip pods of these namespaces, separated by commas
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_name = "NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// Set the log level of the plugin: debug, info, warn, error or none
    #[arg(long, env = "WEIR_PLUGIN_LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = plugin_log_level)]
    pub plugin_log_level: LogLevel,
    /// Install rules with this backend: auto, nft or iptables
    #[arg(long, env = "WEIR_BACKEND", value_name = "NAME", default_value = "auto", value_parser = backend)]
    pub backend: Backend,
    /// Write rules as nft or as iptables does, so that iptables-save shows them
    #[arg(long, env = "WEIR_VISIBILITY", value_name = "NAME", default_value = "nft", value_parser = visibility)]
    pub visibility: Visibility,
    /// Let the plugin wait at most this long for the agent
    #[arg(long, env = "WEIR_AGENT_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub agent_timeout: Duration,
}

/// Name of the agent's socket in the run directory.
pub const SOCKET_NAME: &str = "agent.sock";

impl InstallArgs {
    /// Returns the plugin's entry for these flags.
    pub fn entry(&self) -> PluginEntry {
        let names = self.exclude_namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        PluginEntry {
            exclude_namespaces: names.map(str::to_owned).collect(),
            log_level: self.plugin_log_level,
            backend: self.backend,
            visibility: self.visibility,
            agent_socket: self.cni_agent_run_dir.join(SOCKET_NAME),
            agent_timeout: if self.agent_timeout.is_zero() { DEFAULT_AGENT_TIMEOUT } else { self.agent_timeout },
        }
    }
}

/// Values of `--cni-placement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlacementArg {
    /// As the last plugin of the network that the runtime uses.
    Chained,
    /// In a configuration of our own, derived from that of the network.
    Owned,
    /// As a drop-in of the network, where the runtime reads drop-ins; otherwise chained.
    DropIn,
}

/// Platforms, which differ in their CNI directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// kubeadm, kind, RKE2, EKS, AKS, Flatcar and others with the default directories.
    Generic,
    /// Google Kubernetes Engine.
    Gke,
    /// k3s.
    K3s,
    /// k3s in a container.
    K3d,
    /// MicroK8s.
    Microk8s,
    /// minikube.
    Minikube,
    /// OpenShift, through Multus.
    Openshift,
    /// Bottlerocket.
    Bottlerocket,
    /// Talos.
    Talos,
}

fn plugin_log_level(text: &str) -> Result<LogLevel, String> {
    LogLevel::parse(text).ok_or_else(|| format!("{text:?} must be one of {}", LogLevel::NAMES.join(", ")))
}

fn backend(text: &str) -> Result<Backend, String> {
    Backend::parse(text).ok_or_else(|| format!("{text:?} must be one of {}", Backend::NAMES.join(", ")))
}

fn visibility(text: &str) -> Result<Visibility, String> {
    Visibility::parse(text).ok_or_else(|| format!("{text:?} must be one of {}", Visibility::NAMES.join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(args: &[&str]) -> RunArgs {
        Cli::try_parse_from(["weir-agent"].iter().chain(args)).unwrap().run
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn istios_flags_are_accepted() {
        let args = run(&[
            "--mounted-cni-net-dir=/host/etc/cni/net.d",
            "--cni-conf-name=10-a.conflist",
            "--chained-cni-plugin=false",
            "--istio-owned-cni-config",
            "--monitoring-port=0",
            "--log_output_level=default:info,install:debug",
            "--log_as_json",
        ]);
        assert_eq!(args.log.log_output_level, "default:info,install:debug");
        assert!(!args.install.chained_cni_plugin);
        assert!(args.install.owned_cni_config);
        assert!(args.log.log_as_json);
        assert_eq!(args.monitoring_port, 0);
        assert_eq!(args.install.cni_conf_name, "10-a.conflist");
    }

    #[test]
    fn default_flags_give_the_default_entry() {
        let entry = run(&[]).install.entry();
        assert_eq!(entry, PluginEntry { exclude_namespaces: vec!["kube-system".into()], ..PluginEntry::default() });
    }

    #[test]
    fn subcommands_have_the_same_flags() {
        let cli = Cli::try_parse_from(["weir-agent", "install", "--wait=5s", "--exclude-namespaces=a, b,"]).unwrap();
        let Some(Command::Install(once)) = cli.command else { panic!("no install") };
        assert_eq!(once.wait, Duration::from_secs(5));
        assert_eq!(once.install.entry().exclude_namespaces, ["a", "b"]);
        assert!(Cli::try_parse_from(["weir-agent", "--plugin-log-level=loud"]).is_err());
    }
}
