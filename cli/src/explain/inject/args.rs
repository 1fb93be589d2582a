use clap::{ArgGroup, Args};

use crate::files::InputArgs;
use crate::output::OutputFormat;
use crate::settings::InjectorArgs;

/// Options of `weir explain inject`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true)), after_long_help = "\
Two stages decide: the API server evaluates the selectors of the webhook configuration on the labels of namespace and pod, then the \
injector evaluates its own rules. Every rule is printed with its outcome, and what to change. The labels of the namespace are those of \
a Namespace in the same manifest, or those of --namespace-labels. With --context or --kubeconfig, the installed webhook configurations \
are evaluated, and the labels of namespaces are read from the cluster where the manifest has none.

Examples:
  weir explain inject deployment.yaml --namespace-labels istio-injection=enabled
  kubectl get namespace,pod -n shop -o yaml | weir explain inject -
  weir explain inject deployment.yaml --context prod

Exit status: 0 done, whatever the decision, 1 the input has errors, 2 wrong usage or a file cannot be read.")]
pub(crate) struct ExplainInjectArgs {
    #[command(flatten)]
    pub(super) inputs: InputArgs,

    /// Namespace of objects without one
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub(super) namespace: String,

    /// Labels of the namespace, as NAME=VALUE separated by commas [default: those of the Namespace in the manifest]
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub(super) namespace_labels: Option<Vec<(String, String)>>,

    /// Tags that point to the injector's revision (`default` makes it the default injector)
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    pub(super) tags: Vec<String>,

    /// Select namespaces without labels too (`sidecarInjectorWebhook.enableNamespacesByDefault`)
    #[arg(long)]
    pub(super) enable_namespaces_by_default: bool,

    /// Assume that another injector is the default
    #[arg(long)]
    pub(super) deactivated: bool,

    /// Output format
    #[arg(short, long, alias = "format", value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub(super) output: OutputFormat,

    #[command(flatten)]
    pub(super) injector: InjectorArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("{text:?} is not a label; expected NAME=VALUE")),
    }
}
