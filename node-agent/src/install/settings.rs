//! What flags ask for, checked against each other.

use weir_protocol::entry::PluginEntry;

use super::network::ending;
use super::plan::Placement;
use crate::args::{InstallArgs, PlacementArg};

/// What flags ask for, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) args: InstallArgs,
    pub(super) placement: Placement,
    pub(super) entry: PluginEntry,
}

impl Settings {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn resolve(args: InstallArgs) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let placement = match (args.chained_cni_plugin, args.owned_cni_config, args.cni_placement) {
            (true, false, PlacementArg::Chained) => Placement::Chained,
            (true, false, PlacementArg::DropIn) => Placement::DropIn,
            (true, _, PlacementArg::Owned) | (true, true, PlacementArg::Chained) => Placement::Owned,
            (true, true, PlacementArg::DropIn) => {
                wrong.push("--owned-cni-config and --cni-placement=drop-in contradict each other".to_owned());
                Placement::DropIn
            }
            (false, false, PlacementArg::Chained) => Placement::Standalone,
            (false, _, _) => {
                wrong.push(
                    "--chained-cni-plugin=false leaves the node's network alone: it goes with no other placement"
                        .to_owned(),
                );
                Placement::Standalone
            }
        };
        for (flag, name) in
            [("--cni-conf-name", &args.cni_conf_name), ("--owned-cni-config-filename", &args.owned_cni_config_filename)]
        {
            if name.contains('/') || matches!(name.as_str(), "." | "..") {
                wrong.push(format!("{flag} {name:?} is not the name of a file"));
            }
        }
        if placement == Placement::Owned && ending(&args.owned_cni_config_filename) != Some("conflist") {
            wrong.push(format!(
                "--owned-cni-config-filename {:?} does not end in .conflist",
                args.owned_cni_config_filename
            ));
        }
        if !args.cni_agent_run_dir.is_absolute() {
            wrong.push(format!("--cni-agent-run-dir {} is not absolute", args.cni_agent_run_dir.display()));
        }
        let entry = args.entry();
        if wrong.is_empty() { Ok(Self { args, placement, entry }) } else { Err(wrong) }
    }

    /// The flags.
    pub fn args(&self) -> &InstallArgs {
        &self.args
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str]) -> Result<Placement, Vec<String>> {
        let args = Cli::try_parse_from(["weir-agent"].iter().chain(flags)).unwrap().run.install;
        Settings::resolve(args).map(|settings| settings.placement)
    }

    #[test]
    fn istios_flags_and_ours_name_the_same_placements() {
        for (flags, placement) in [
            (&[][..], Placement::Chained),
            (&["--chained-cni-plugin=false"], Placement::Standalone),
            (&["--istio-owned-cni-config=true"], Placement::Owned),
            (&["--cni-placement=owned", "--owned-cni-config"], Placement::Owned),
            (&["--cni-placement=drop-in"], Placement::DropIn),
        ] {
            assert_eq!(resolve(flags), Ok(placement), "{flags:?}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let wrong = resolve(&[
            "--chained-cni-plugin=false",
            "--owned-cni-config",
            "--cni-conf-name=../x.conf",
            "--cni-agent-run-dir=run",
        ]);
        assert_eq!(wrong.unwrap_err().len(), 3);
        assert!(resolve(&["--owned-cni-config", "--cni-placement=drop-in"]).is_err());
        assert!(resolve(&["--owned-cni-config", "--owned-cni-config-filename=00-weir.conf"]).is_err());
    }
}
