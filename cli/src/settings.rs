//! Loads the injector's settings: from files, else from the cluster, else the built-in ones.

mod cluster;
mod operator;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_injector::settings::{Documents, NativeSidecars, Settings};
use weir_injector::yaml;

use crate::cluster::ConnectArgs;
use crate::failure::{Failure, join};
use crate::files::InputFile;
use cluster::{ClusterConfigArgs, ClusterDocuments, DocumentRequest};
use operator::Operator;

/// Keys of the injector's configuration. A file without any of them is a template.
const CONFIG_KEYS: [&str; 7] = [
    "templates",
    "policy",
    "defaultTemplates",
    "aliases",
    "neverInjectSelector",
    "alwaysInjectSelector",
    "injectedAnnotations",
];

/// Options of commands that inject.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Injector settings")]
pub(crate) struct InjectorArgs {
    /// Read the mesh configuration (key `mesh` of ConfigMap `istio`) from this file [default: the cluster's, else Istio's defaults]
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,

    /// Read the injector's values (key `values` of ConfigMap `istio-sidecar-injector`) from this file [default: the cluster's, else Istio's defaults with CNI mode on]
    #[arg(long = "valuesFile", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Read the injector's configuration (key `config` of that ConfigMap), or a single template, which becomes `sidecar`, from this file
    #[arg(long = "injectConfigFile", value_name = "FILE")]
    inject_config_file: Option<PathBuf>,

    /// Merge the values and mesh configuration of this IstioOperator over the ones above
    #[arg(long = "operatorFileName", value_name = "FILE")]
    operator_file: Option<PathBuf>,

    /// Revision of the control plane, to read from the cluster and to record in the pod; `default` is the same as none [default: that of the values]
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,

    /// Run the proxy as a native sidecar (Kubernetes 1.29 and later); `auto` follows the versions of the cluster's nodes; without a cluster it is true if no values are given, else as for `istioctl kube-inject`: only if they have `pilot.env.ENABLE_NATIVE_SIDECARS: "true"`
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = NativeSidecarsArg::Auto)]
    native_sidecars: NativeSidecarsArg,

    /// Pass this compliance policy of the control plane to the proxy
    #[arg(long, value_name = "POLICY", env = "COMPLIANCE_POLICY", value_parser = ["", "fips-140-2", "fips-140-3", "pqc"])]
    compliance_policy: Option<String>,

    #[command(flatten)]
    cluster: ClusterConfigArgs,
}

/// Settings of the injector for the old side of a comparison.
#[derive(Debug, Args)]
#[command(next_help_heading = "Injector settings of OLD, where they are not those of NEW")]
pub(crate) struct OldInjectorArgs {
    /// Like --revision, for OLD
    #[arg(long = "old-revision", id = "old_revision", value_name = "REVISION")]
    revision: Option<String>,

    /// Like --valuesFile, for OLD
    #[arg(long = "old-valuesFile", id = "old_values_file", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Like --meshConfigFile, for OLD
    #[arg(long = "old-meshConfigFile", id = "old_mesh_config_file", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,

    /// Like --injectConfigFile, for OLD
    #[arg(long = "old-injectConfigFile", id = "old_inject_config_file", value_name = "FILE")]
    inject_config_file: Option<PathBuf>,
}

impl OldInjectorArgs {
    /// Returns whether any of the options is set.
    pub(crate) fn is_given(&self) -> bool {
        self.revision.is_some()
            || [&self.values_file, &self.mesh_config_file, &self.inject_config_file].into_iter().any(Option::is_some)
    }

    /// Returns the settings of OLD: these, and the others of NEW.
    pub(crate) fn over(&self, new: &InjectorArgs) -> InjectorArgs {
        InjectorArgs {
            revision: self.revision.clone().or_else(|| new.revision.clone()),
            values_file: self.values_file.clone().or_else(|| new.values_file.clone()),
            mesh_config_file: self.mesh_config_file.clone().or_else(|| new.mesh_config_file.clone()),
            inject_config_file: self.inject_config_file.clone().or_else(|| new.inject_config_file.clone()),
            ..new.clone()
        }
    }
}

/// `--native-sidecars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NativeSidecarsArg {
    /// By the versions of the nodes
    Auto,
    /// Native sidecar
    True,
    /// Ordinary container
    False,
}

impl InjectorArgs {
    /// Returns whether any of the options is set.
    pub(crate) fn is_given(&self) -> bool {
        self.native_sidecars != NativeSidecarsArg::Auto
            || self.revision.is_some()
            || [&self.mesh_config_file, &self.values_file, &self.inject_config_file, &self.operator_file]
                .into_iter()
                .any(Option::is_some)
            || self.cluster.is_given()
    }

    /// Returns how to connect to the cluster, named or not.
    pub(crate) fn connection(&self) -> &ConnectArgs {
        &self.cluster.connect
    }

    /// Returns how to connect to the cluster, if one is named.
    pub(crate) fn connect_args(&self) -> Option<&ConnectArgs> {
        self.cluster.is_given().then_some(&self.cluster.connect)
    }

    /// Reads the documents that no file gives from the cluster, if one is named. The arguments say which of values, configuration and mesh
    /// are given by files.
    fn fetch_from_cluster(&self, [values, config, mesh]: [bool; 3]) -> Result<ClusterDocuments, Failure> {
        if !self.cluster.is_given() {
            return Ok(ClusterDocuments::default());
        }
        let revision = self.revision.as_deref().filter(|revision| *revision != "default").unwrap_or_default();
        let nodes = self.native_sidecars == NativeSidecarsArg::Auto;
        self.cluster.read(DocumentRequest { values: !values, config: !config, mesh: !mesh, nodes, revision })
    }

    /// Loads the settings for a command that injects: whoever runs it wants injection, whatever the policy for pods without labels.
    ///
    /// # Errors
    /// Every file that cannot be read, every invalid field, and what the cluster does not have.
    pub(crate) fn load(&self) -> Result<Settings, Failure> {
        let mut settings = self.load_as_webhook()?;
        "enabled".clone_into(&mut settings.injection.policy);
        Ok(settings)
    }

    /// Loads the settings as a webhook would, with the policy.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub(crate) fn load_as_webhook(&self) -> Result<Settings, Failure> {
        let files = join(document(self.values_file.as_ref()), document(self.mesh_config_file.as_ref()));
        let templates = join(injector_config(self.inject_config_file.as_ref()), operator(self.operator_file.as_ref()));
        let ((values, mesh), (config, operator)) = join(files, templates)?;
        let found = self.fetch_from_cluster([values.is_some(), config.is_some(), mesh.is_some()])?;
        let (mut values, mut mesh) = (values.or(found.values), mesh.or(found.mesh));
        let config = config.or(found.config);
        if let Some(operator) = &operator {
            // An operator's values are relative to Istio's chart, where CNI mode is off.
            let chart = || {
                let mut chart = Settings::builtin_values();
                json_patch::merge(&mut chart, &json!({"pilot": {"cni": {"enabled": false}}}));
                chart
            };
            json_patch::merge(values.get_or_insert_with(chart), &operator.values);
            json_patch::merge(mesh.get_or_insert_with(|| json!({})), &operator.mesh);
        }
        let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
        let mut settings = Settings::from_documents(documents)
            .map_err(|errors| Failure::findings(errors.iter().map(ToString::to_string).collect()))?;
        if let Some(nodes) = found.nodes {
            settings.native_sidecars = NativeSidecars::ByNodes;
            settings.nodes = nodes;
        } else if values.as_ref().is_some_and(|values| !has_native_sidecars(values)) {
            settings.native_sidecars = NativeSidecars::Off;
        }
        if let Some(revision) = &self.revision {
            revision.clone_into(&mut settings.revision);
        }
        if settings.revision == "default" {
            settings.revision.clear();
        }
        match self.native_sidecars {
            NativeSidecarsArg::Auto => {}
            NativeSidecarsArg::True => settings.native_sidecars = NativeSidecars::On,
            NativeSidecarsArg::False => settings.native_sidecars = NativeSidecars::Off,
        }
        if let Some(policy) = &self.compliance_policy {
            policy.clone_into(&mut settings.compliance_policy);
        }
        Ok(settings)
    }
}

/// Returns whether `istioctl`, which knows no nodes without a cluster, makes native sidecars for this installation. The variable defaults
/// to `false` up to 1.26, and to `auto` since.
fn has_native_sidecars(values: &Value) -> bool {
    let variable = values.pointer("/pilot/env/ENABLE_NATIVE_SIDECARS");
    variable.is_some_and(|value| *value == json!("true") || *value == json!(true))
}

fn document(path: Option<&PathBuf>) -> Result<Option<Value>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let input = InputFile::File(path.clone());
    let value =
        yaml::from_str(&input.read()?).map_err(|error| Failure::findings_in(&input.name(), &[error.to_string()]))?;
    Ok(Some(value))
}

/// Reads a configuration of the injector; a single template becomes one.
fn injector_config(path: Option<&PathBuf>) -> Result<Option<Value>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let text = InputFile::File(path.clone()).read()?;
    let is_config =
        |value: &Value| value.get("kind").is_some() || CONFIG_KEYS.iter().any(|key| value.get(key).is_some());
    let names_key =
        |line: &str| CONFIG_KEYS.iter().any(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    match yaml::from_str(&text) {
        Ok(value) if is_config(&value) => Ok(Some(value)),
        // A template is rarely valid YAML; a file with these keys is a configuration with a mistake.
        Err(error) if text.lines().any(names_key) => {
            Err(Failure::findings(vec![format!("{}: {error}", path.display())]))
        }
        Ok(_) | Err(_) => Ok(Some(json!({"templates": {"sidecar": text}}))),
    }
}

fn operator(path: Option<&PathBuf>) -> Result<Option<Operator>, Failure> {
    let Some(object) = document(path)? else { return Ok(None) };
    let with_option = |reason: &String| format!("--operatorFileName: {reason}");
    Operator::read(&object).map(Some).map_err(|reasons| Failure::findings(reasons.iter().map(with_option).collect()))
}
