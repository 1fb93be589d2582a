//! Settings of the installation, from flags that are checked against each other.

use weir_protocol::entry::PluginEntry;

use super::network::extension;
use super::plan::Placement;
use crate::args::{InstallArgs, PlacementArg};

/// Settings of the installation.
#[derive(Debug, Clone)]
pub struct InstallSettings {
    pub(super) args: InstallArgs,
    pub(super) placement: Placement,
    pub(super) entry: PluginEntry,
}

impl InstallSettings {
    /// Resolves the flags.
    ///
    /// # Errors
    /// All flags that are invalid or contradict each other.
    pub fn resolve(args: InstallArgs) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let placement = match (args.chained_cni_plugin, args.owned_cni_config, args.cni_placement) {
            (true, false, PlacementArg::Chained) => Placement::Chained,
            (true, false, PlacementArg::DropIn) => Placement::DropIn,
            (true, _, PlacementArg::Owned) | (true, true, PlacementArg::Chained) => Placement::Owned,
            (true, true, PlacementArg::DropIn) => {
                errors.push("--owned-cni-config and --cni-placement=drop-in exclude each other".to_owned());
                Placement::DropIn
            }
            (false, false, PlacementArg::Chained) => Placement::Standalone,
            (false, _, _) => {
                errors.push(
                    "--chained-cni-plugin=false writes a standalone configuration; it excludes every other placement"
                        .to_owned(),
                );
                Placement::Standalone
            }
        };
        for (flag, name) in
            [("--cni-conf-name", &args.cni_conf_name), ("--owned-cni-config-filename", &args.owned_cni_config_filename)]
        {
            if name.contains('/') || matches!(name.as_str(), "." | "..") {
                errors.push(format!("{flag} {name:?} is not a file name"));
            }
        }
        if placement == Placement::Owned && extension(&args.owned_cni_config_filename) != Some("conflist") {
            errors.push(format!(
                "--owned-cni-config-filename {:?} does not end in .conflist",
                args.owned_cni_config_filename
            ));
        }
        if !args.cni_agent_run_dir.is_absolute() {
            errors.push(format!("--cni-agent-run-dir {} is not an absolute path", args.cni_agent_run_dir.display()));
        }
        let entry = args.entry();
        if errors.is_empty() { Ok(Self { args, placement, entry }) } else { Err(errors) }
    }

    /// Returns the flags.
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
        InstallSettings::resolve(args).map(|settings| settings.placement)
    }

    #[test]
    fn istios_flags_and_ours_select_the_same_placements() {
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
    fn all_invalid_flags_are_reported() {
        let errors = resolve(&[
            "--chained-cni-plugin=false",
            "--owned-cni-config",
            "--cni-conf-name=../x.conf",
            "--cni-agent-run-dir=run",
        ]);
        assert_eq!(errors.unwrap_err().len(), 3);
        assert!(resolve(&["--owned-cni-config", "--cni-placement=drop-in"]).is_err());
        assert!(resolve(&["--owned-cni-config", "--owned-cni-config-filename=00-weir.conf"]).is_err());
    }
}
