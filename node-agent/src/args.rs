//! The command line of `weir-agent`. Names are those of Istio's `install-cni` where they mean the same, also in the environment.

mod node;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use weir_kernel::namespace::{Backend, Visibility};
use weir_protocol::entry::{DEFAULT_AGENT_TIMEOUT, PluginEntry};
use weir_protocol::log_level::Level;
use weir_runtime::duration;

pub use self::node::NodeArgs;
use crate::logging::Levels;

/// Keeps Weir's CNI plugin installed on a node, and answers it about pods.
#[derive(Debug, Parser)]
#[command(name = "weir-agent", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Without one: run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of running.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install, and keep it installed until told to stop (the default)
    Run(Box<RunArgs>),
    /// Install once and exit, as an init container would
    Install(Box<OnceArgs>),
    /// Take everything off the node again
    Uninstall(Box<OnceArgs>),
    /// Print the version
    Version,
}

/// Flags of running.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What is installed, and where.
    #[command(flatten)]
    pub install: InstallArgs,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Port of /metrics, /pods and /logging; 0 for none
    #[arg(long, env = "MONITORING_PORT", value_name = "PORT", default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Port of /healthz and /readyz; 0 for none
    #[arg(long, env = "HEALTH_PORT", value_name = "PORT", default_value_t = 8000)]
    pub health_port: u16,
    /// Look at folders and files so often, whether or not something was reported
    #[arg(long, env = "WEIR_CHECK_INTERVAL", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub check_interval: Duration,
    /// The pods of the node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Flags of `install` and `uninstall`.
#[derive(Debug, Args)]
pub struct OnceArgs {
    /// What is installed, and where.
    #[command(flatten)]
    pub install: InstallArgs,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Longest time that is waited for: a network configuration to appear (install), attachments to end (uninstall)
    #[arg(long, env = "WEIR_WAIT", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub wait: Duration,
}

/// How the log is written.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What is logged: none, error, warn, info, debug, trace, or by module: default:info,install:debug
    #[arg(
        long = "log_output_level",
        alias = "log-output-level",
        env = "LOG_OUTPUT_LEVEL",
        value_name = "LEVELS",
        default_value = "default:info"
    )]
    pub log_output_level: Levels,
    /// One JSON object a line
    #[arg(long = "log_as_json", alias = "log-as-json", env = "LOG_AS_JSON", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub log_as_json: bool,
}

/// What is installed, and where.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// Where the host's files are mounted; discovery reads the runtime's configuration below it
    #[arg(long, env = "WEIR_HOST_ROOT", value_name = "DIR", default_value = "/host")]
    pub host_root: PathBuf,
    /// Folder of network configurations, as mounted here; found by discovery if it is not given
    #[arg(long, env = "MOUNTED_CNI_NET_DIR", value_name = "DIR")]
    pub mounted_cni_net_dir: Option<PathBuf>,
    /// Folder of plugins, as mounted here; found by discovery if it is not given
    #[arg(long, env = "MOUNTED_CNI_BIN_DIR", value_name = "DIR")]
    pub mounted_cni_bin_dir: Option<PathBuf>,
    /// The folder of network configurations, as the host calls it; compared with what the runtime reads
    #[arg(long, env = "CNI_NET_DIR", value_name = "DIR")]
    pub cni_net_dir: Option<PathBuf>,
    /// The folder of plugins, as the host calls it; compared with what the runtime reads
    #[arg(long, env = "CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The kind of node; found by discovery if it is not given
    #[arg(long, env = "WEIR_PLATFORM", value_name = "NAME")]
    pub platform: Option<Platform>,

    /// Use this network configuration, and no other (its .conf and .conflist twins count as the same one)
    #[arg(long, env = "CNI_CONF_NAME", value_name = "FILE", default_value = "")]
    pub cni_conf_name: String,
    /// Be one of the plugins of the node's network; false: a configuration of our own, for Multus
    #[arg(long, env = "CHAINED_CNI_PLUGIN", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub chained_cni_plugin: bool,
    /// How our entry gets into the node's network
    #[arg(long, env = "WEIR_CNI_PLACEMENT", value_name = "HOW", default_value = "chained")]
    pub cni_placement: PlacementArg,
    /// The same as --cni-placement=owned
    #[arg(long, alias = "istio-owned-cni-config", env = "ISTIO_OWNED_CNI_CONFIG", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub owned_cni_config: bool,
    /// Name of the file of the placement `owned`; it has to sort before every other
    #[arg(
        long,
        alias = "istio-owned-cni-config-filename",
        env = "ISTIO_OWNED_CNI_CONFIG_FILENAME",
        value_name = "FILE",
        default_value = "00-weir.conflist"
    )]
    pub owned_cni_config_filename: String,
    /// Files that are made anew are readable by the group (0640 instead of 0600)
    #[arg(long, env = "CNI_CONF_GROUP_READ", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub cni_conf_group_read: bool,

    /// The plugin that is copied to the node
    #[arg(long, env = "WEIR_PLUGIN_SOURCE", value_name = "FILE", default_value = "/opt/weir/bin/weir-cni")]
    pub plugin_source: PathBuf,
    /// Where the agent keeps its socket and locks; the same path here and on the host
    #[arg(long, env = "CNI_AGENT_RUN_DIR", value_name = "DIR", default_value = "/var/run/weir")]
    pub cni_agent_run_dir: PathBuf,

    /// Namespaces whose pods the plugin leaves alone, separated by commas
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// What the plugin logs: debug, info, warn, error, none
    #[arg(long, env = "WEIR_PLUGIN_LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = plugin_log_level)]
    pub plugin_log_level: Level,
    /// How the plugin gets rules into the kernel: auto, nft, iptables
    #[arg(long, env = "WEIR_BACKEND", value_name = "NAME", default_value = "auto", value_parser = backend)]
    pub backend: Backend,
    /// Whose rules those of nf_tables look like: nft, or iptables, so that iptables-save in a pod shows them
    #[arg(long, env = "WEIR_VISIBILITY", value_name = "NAME", default_value = "nft", value_parser = visibility)]
    pub visibility: Visibility,
    /// Longest time that the plugin waits for the agent
    #[arg(long, env = "WEIR_AGENT_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub agent_timeout: Duration,
}

/// Name of the agent's socket in its run folder.
pub const SOCKET_NAME: &str = "agent.sock";

impl InstallArgs {
    /// The plugin's entry, as these flags want it.
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
    /// The last entry of the configuration that the runtime has chosen.
    Chained,
    /// A configuration of our own, made from the chosen one and following it.
    Owned,
    /// A file of our own beside the chosen one, where the runtime reads such; otherwise chained.
    DropIn,
}

/// Kinds of nodes whose folders are elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// kubeadm, kind, RKE2, EKS, AKS, Flatcar and others that keep to the usual folders.
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

fn plugin_log_level(text: &str) -> Result<Level, String> {
    Level::parse(text).ok_or_else(|| format!("{text:?} is none of {}", Level::NAMES.join(", ")))
}

fn backend(text: &str) -> Result<Backend, String> {
    Backend::parse(text).ok_or_else(|| format!("{text:?} is none of {}", Backend::NAMES.join(", ")))
}

fn visibility(text: &str) -> Result<Visibility, String> {
    Visibility::parse(text).ok_or_else(|| format!("{text:?} is none of {}", Visibility::NAMES.join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(args: &[&str]) -> RunArgs {
        Cli::try_parse_from(["weir-agent"].iter().chain(args)).unwrap().run
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn takes_istios_flags() {
        let args = run(&[
            "--mounted-cni-net-dir=/host/etc/cni/net.d",
            "--cni-conf-name=10-a.conflist",
            "--chained-cni-plugin=false",
            "--istio-owned-cni-config",
            "--monitoring-port=0",
            "--log_output_level=default:info,install:debug",
            "--log_as_json",
        ]);
        assert!(!args.install.chained_cni_plugin);
        assert!(args.install.owned_cni_config);
        assert!(args.log.log_as_json);
        assert_eq!(args.monitoring_port, 0);
        assert_eq!(args.install.cni_conf_name, "10-a.conflist");
    }

    #[test]
    fn the_default_entry_has_the_defaults() {
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
