//! The injector's settings as the command line names them: files first, then the cluster, then what is built in.

mod cluster;
mod operator;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_injector::settings::{Documents, NativeSidecars, Settings};
use weir_injector::yaml;

use crate::failure::{Failure, both};
use crate::files::Source;
use cluster::{ClusterArgs, Found, Wanted};
use operator::Operator;

/// Keys of the injector's configuration. A file with none of them is the text of a template.
const CONFIG_KEYS: [&str; 7] = [
    "templates",
    "policy",
    "defaultTemplates",
    "aliases",
    "neverInjectSelector",
    "alwaysInjectSelector",
    "injectedAnnotations",
];

/// Options of every command that injects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Injector settings")]
pub(crate) struct InjectorArgs {
    /// Mesh configuration (what the ConfigMap `istio` has under `mesh`); without it, the cluster's or Istio's defaults
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,

    /// Values of the injector (what the ConfigMap `istio-sidecar-injector` has under `values`); without it, the cluster's or Istio's defaults with CNI mode on
    #[arg(long = "valuesFile", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Configuration of the injector with its templates (what that ConfigMap has under `config`), or the text of one template, which then is `sidecar`
    #[arg(long = "injectConfigFile", value_name = "FILE")]
    inject_config_file: Option<PathBuf>,

    /// IstioOperator whose values and mesh configuration are laid over the ones above
    #[arg(long = "operatorFileName", value_name = "FILE")]
    operator_file: Option<PathBuf>,

    /// Revision of the control plane, to ask for and to note in the pod; without it, the one of the values. `default` is the same as none
    #[arg(short, long)]
    revision: Option<String>,

    /// Whether the proxy is an init container that keeps running (Kubernetes 1.29 and later); `auto` asks the nodes of the cluster, and means true without one
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Native::Auto)]
    native_sidecars: Native,

    /// Compliance policy of the control plane, handed on to the proxy
    #[arg(long, value_name = "POLICY", env = "COMPLIANCE_POLICY", value_parser = ["", "fips-140-2", "fips-140-3", "pqc"])]
    compliance_policy: Option<String>,

    #[command(flatten)]
    cluster: ClusterArgs,
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
            || [&self.mesh_config_file, &self.values_file, &self.inject_config_file, &self.operator_file]
                .into_iter()
                .any(Option::is_some)
            || self.cluster.any()
    }

    /// What no file gives, from the cluster, if the user names one. The arguments tell what files give: values, configuration, mesh.
    fn ask_cluster(&self, [values, config, mesh]: [bool; 3]) -> Result<Found, Failure> {
        if !self.cluster.any() {
            return Ok(Found::default());
        }
        let revision = self.revision.as_deref().filter(|revision| *revision != "default").unwrap_or_default();
        let nodes = self.native_sidecars == Native::Auto;
        self.cluster.read(Wanted { values: !values, config: !config, mesh: !mesh, nodes, revision })
    }

    /// Resolves the options for a command that injects. The policy of the values is about pods that nobody asks for, and who
    /// runs the command asks.
    ///
    /// # Errors
    /// Every file that cannot be read and every field that cannot be taken; what the cluster does not give.
    pub(crate) fn load(&self) -> Result<Settings, Failure> {
        let mut settings = self.configured()?;
        "enabled".clone_into(&mut settings.injection.policy);
        Ok(settings)
    }

    /// Resolves the options as a webhook with them would.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn configured(&self) -> Result<Settings, Failure> {
        let files = both(document(self.values_file.as_ref()), document(self.mesh_config_file.as_ref()));
        let templates = both(injector_config(self.inject_config_file.as_ref()), operator(self.operator_file.as_ref()));
        let ((values, mesh), (config, operator)) = both(files, templates)?;
        let found = self.ask_cluster([values.is_some(), config.is_some(), mesh.is_some()])?;
        let (mut values, mut mesh) = (values.or(found.values), mesh.or(found.mesh));
        let config = config.or(found.config);
        if let Some(operator) = &operator {
            // Its values are said over those of Istio's chart, where CNI mode is off.
            let chart = || {
                let mut chart = Settings::builtin_values();
                json_patch::merge(&mut chart, &json!({"pilot": {"cni": {"enabled": false}}}));
                chart
            };
            json_patch::merge(values.get_or_insert_with(chart), &operator.values);
            json_patch::merge(mesh.get_or_insert_with(|| json!({})), &operator.mesh);
        }
        let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
        let mut settings = Settings::from_all(documents)
            .map_err(|errors| Failure::refused(errors.iter().map(ToString::to_string).collect()))?;
        if let Some(nodes) = found.nodes {
            settings.native_sidecars = NativeSidecars::ByNodes;
            settings.nodes = nodes;
        }
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

/// Reads a configuration of the injector, or the text of a template.
fn injector_config(path: Option<&PathBuf>) -> Result<Option<Value>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let text = Source::File(path.clone()).read()?;
    let is_config =
        |value: &Value| value.get("kind").is_some() || CONFIG_KEYS.iter().any(|key| value.get(key).is_some());
    let names_key =
        |line: &str| CONFIG_KEYS.iter().any(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    match yaml::from_str(&text) {
        Ok(value) if is_config(&value) => Ok(Some(value)),
        // A template is seldom YAML before it is rendered; a configuration that is none has a mistake.
        Err(error) if text.lines().any(names_key) => {
            Err(Failure::refused(vec![format!("{}: {error}", path.display())]))
        }
        Ok(_) | Err(_) => Ok(Some(json!({"templates": {"sidecar": text}}))),
    }
}

/// Reads an operator's file.
fn operator(path: Option<&PathBuf>) -> Result<Option<Operator>, Failure> {
    let Some(object) = document(path)? else { return Ok(None) };
    let named = |reason: &String| format!("--operatorFileName: {reason}");
    Operator::read(&object).map(Some).map_err(|reasons| Failure::refused(reasons.iter().map(named).collect()))
}
