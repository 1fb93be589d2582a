//! The injector's settings as the command line names them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;
use weir_webhook::settings::{NativeSidecars, Settings};
use weir_webhook::yaml;

use crate::failure::{Failure, both};
use crate::files::Source;

/// Options of every command that injects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Injector settings")]
pub(crate) struct InjectorArgs {
    /// Mesh configuration (what the ConfigMap `istio` has under `mesh`); without it, Istio's defaults
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,

    /// Values of the injector (what the ConfigMap `istio-sidecar-injector` has under `values`); without it, Istio's defaults with CNI mode on
    #[arg(long = "valuesFile", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Revision of the control plane to note in the pod; without it, the one of the values. `default` is the same as none
    #[arg(short, long)]
    revision: Option<String>,

    /// Whether the proxy is an init container that keeps running (Kubernetes 1.29 and later); `auto` asks no cluster and means true
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Native::Auto)]
    native_sidecars: Native,

    /// Compliance policy of the control plane, handed on to the proxy
    #[arg(long, value_name = "POLICY", env = "COMPLIANCE_POLICY", value_parser = ["", "fips-140-2", "fips-140-3", "pqc"])]
    compliance_policy: Option<String>,

    /// Refused: templates of your own are not carried out yet
    #[arg(long = "injectConfigFile", value_name = "FILE")]
    inject_config_file: Option<PathBuf>,
}

/// `--native-sidecars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Native {
    /// As the injector decides without a cluster.
    Auto,
    /// Native.
    True,
    /// An ordinary container.
    False,
}

impl InjectorArgs {
    /// Whether the user gave any of them.
    pub(crate) fn any(&self) -> bool {
        self.native_sidecars != Native::Auto
            || self.revision.is_some()
            || [&self.mesh_config_file, &self.values_file, &self.inject_config_file].into_iter().any(Option::is_some)
    }

    /// Resolves the options.
    ///
    /// # Errors
    /// Every file that cannot be read and every field that cannot be taken.
    pub(crate) fn load(&self) -> Result<Settings, Failure> {
        let refused = match &self.inject_config_file {
            Some(_) => Err(Failure::usage("--injectConfigFile: templates of your own are not carried out yet")),
            None => Ok(()),
        };
        let values = document(self.values_file.as_ref());
        let mesh = document(self.mesh_config_file.as_ref());
        let ((values, mesh), ()) = both(both(values, mesh), refused)?;
        let mut settings = Settings::from_documents(values.as_ref(), mesh.as_ref())
            .map_err(|errors| Failure::refused(errors.iter().map(ToString::to_string).collect()))?;
        if let Some(revision) = &self.revision {
            revision.clone_into(&mut settings.revision);
        }
        if settings.revision == "default" {
            settings.revision.clear();
        }
        match self.native_sidecars {
            Native::Auto => {}
            Native::True => settings.native_sidecars = NativeSidecars::On,
            Native::False => settings.native_sidecars = NativeSidecars::Off,
        }
        if let Some(policy) = &self.compliance_policy {
            policy.clone_into(&mut settings.compliance_policy);
        }
        // The policy is about pods that nobody asks for; who runs the command asks.
        "enabled".clone_into(&mut settings.injection.policy);
        Ok(settings)
    }
}

/// Reads a settings document.
fn document(path: Option<&PathBuf>) -> Result<Option<Value>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let source = Source::File(path.clone());
    let value = yaml::from_str(&source.read()?)
        .map_err(|error| Failure::refused(vec![format!("{}: {error}", source.name())]))?;
    Ok(Some(value))
}
