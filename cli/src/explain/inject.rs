//! `weir explain inject`: why a pod gets a sidecar or gets none, rule by rule.
//!
//! ```text
//! manifest ─▶ namespaces, pods ─▶ selection (is it sent?) ─▶ decision (is it injected?) ─▶ inject (what does it get?) ─▶ text | json
//! ```

mod print;

use std::collections::HashMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use weir_injector::inject::decision::{Decided, Decision, DecisionSettings, decide};
use weir_injector::inject::finish::status::InjectionStatus;
use weir_injector::inject::selection::{Admission, Installation, Labels, namespace_labels};
use weir_injector::inject::uninject::uninject;
use weir_injector::inject::{InjectRequest, Outcome, inject};
use weir_injector::settings::{NativeSidecars, Settings};

use crate::failure::{Failure, both};
use crate::files::{self, Source};
use crate::inject::denials;
use crate::manifest::pods::{self, PodHolder};
use crate::manifest::proxy_configs;
use crate::manifest::stream;
use crate::settings::InjectorArgs;

/// Options of `weir explain inject`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Two stages decide: selectors of the webhook configuration, which the API server evaluates on labels of the namespace and the pod; then
the injector's own rules. Every rule that is looked at is printed with its outcome, and what to change. Labels of the namespace are those
of a Namespace in the same manifest, or those given here.

Examples:
  weir explain inject -f deployment.yaml --namespace-labels istio-injection=enabled
  kubectl get namespace,pod -n shop -o yaml | weir explain inject -f -

Exit status: 0 done, whatever is decided, 1 something in the input was refused, 2 wrong usage or a file cannot be read.")]
pub(crate) struct ExplainInjectArgs {
    /// Manifests with pods, or with workloads that have a pod template; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: String,

    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,

    /// Labels of the namespace: NAME=VALUE, separated by commas; without them, those of the Namespace in the manifest
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    namespace_labels: Option<Vec<(String, String)>>,

    /// Tags that stand for the injector's revision (`default` makes it the default injector)
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    tags: Vec<String>,

    /// Namespaces without labels are selected too (`sidecarInjectorWebhook.enableNamespacesByDefault`)
    #[arg(long)]
    enable_namespaces_by_default: bool,

    /// Another injector has become the default one
    #[arg(long)]
    deactivated: bool,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON document
    Json,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("{text:?} is no label: NAME=VALUE is")),
    }
}

/// All that is known about one pod.
#[derive(Debug)]
pub(super) struct Explanation {
    /// What messages call it.
    name: String,
    namespace: String,
    /// Labels of the namespace, or a note that they are not known.
    namespace_labels: Option<Map<String, Value>>,
    /// The entries of the webhook configurations, and whether they select the pod.
    entries: Vec<(String, bool)>,
    admission: Admission,
    decided: Decided,
    /// `None` where the pod is left alone.
    result: Option<Result<Gets, Vec<String>>>,
}

/// What a pod gets.
#[derive(Debug)]
pub(super) struct Gets {
    templates: Vec<String>,
    containers: Vec<String>,
    init_containers: Vec<String>,
    volumes: Vec<String>,
    /// How the proxy runs, and which setting says so.
    proxy: String,
    /// Who captures its traffic, and which setting says so.
    capture: String,
    warnings: Vec<String>,
}

/// Carries `weir explain inject` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(super) fn run(args: &ExplainInjectArgs) -> Result<ExitCode, Failure> {
    let source = Source::from(args.filename.as_str());
    let (mut settings, text) = both(args.injector.configured(), source.read().map_err(Failure::from))?;
    let refused = |findings: Vec<String>| Failure::refused_in(&source.name(), &findings);
    settings.proxy_configs = proxy_configs::in_stream(&text, Some(&args.namespace)).map_err(refused)?;
    let explained = explain(&text, args, &settings).map_err(refused)?;
    if explained.is_empty() {
        eprintln!("weir: {}: no pod in it", source.name());
    }
    let text = match args.format {
        Format::Text => print::text(&explained),
        Format::Json => print::json(&explained),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn explain(text: &str, args: &ExplainInjectArgs, settings: &Settings) -> Result<Vec<Explanation>, Vec<String>> {
    let documents = stream::split(text).map_err(|strays| strays.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut findings = Vec::new();
    let mut values: Vec<(String, Value)> = Vec::new();
    for document in &documents {
        match document.parse() {
            Ok(value) => values.push((document.to_string(), value)),
            Err(error) => findings.push(format!("{document}: {error}")),
        }
    }
    let mut namespaces = HashMap::new();
    for (_, value) in &values {
        collect_namespaces(value, &mut namespaces);
    }
    let mut explained = Vec::new();
    for (document, value) in &mut values {
        match pods::find(value) {
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{document}: {error}"))),
            Ok(holders) => {
                for holder in &holders {
                    match explain_pod(holder, &namespaces, args, settings) {
                        Ok(explanation) => explained.push(explanation),
                        Err(errors) => {
                            let place = format!("{document}: {}", holder.name);
                            findings.extend(errors.iter().map(|error| format!("{place}: {error}")));
                        }
                    }
                }
            }
        }
    }
    if findings.is_empty() { Ok(explained) } else { Err(findings) }
}

/// Namespaces with their labels, also as items of lists.
fn collect_namespaces(object: &Value, found: &mut HashMap<String, Map<String, Value>>) {
    if object["apiVersion"] != "v1" {
        return;
    }
    if object["kind"] == "List" {
        for item in object["items"].as_array().into_iter().flatten() {
            collect_namespaces(item, found);
        }
    } else if object["kind"] == "Namespace"
        && let Some(name) = object["metadata"]["name"].as_str()
    {
        let labels = object["metadata"]["labels"].as_object().cloned();
        found.insert(name.to_owned(), labels.unwrap_or_default());
    }
}

fn explain_pod(
    holder: &PodHolder<'_>,
    namespaces: &HashMap<String, Map<String, Value>>,
    args: &ExplainInjectArgs,
    settings: &Settings,
) -> Result<Explanation, Vec<String>> {
    let errors = |errors: Vec<pods::ShapeError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut request = holder.request().map_err(errors)?;
    let namespace = request.namespace.get_or_insert_with(|| args.namespace.clone()).clone();
    let given = args.namespace_labels.as_ref();
    let given: Option<Map<String, Value>> =
        given.map(|labels| labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect());
    let known = given.or_else(|| namespaces.get(&namespace).cloned());

    let installation = Installation {
        revision: settings.revision.clone(),
        tags: args.tags.clone(),
        by_default: args.enable_namespaces_by_default,
        deactivated: args.deactivated,
    };
    // What an earlier injection added decides nothing.
    let original = match uninject(&request.pod) {
        Ok(Some(original)) => original.pod,
        _ => request.pod.clone(),
    };
    let none = Map::new();
    let of_namespace = namespace_labels(&namespace, known.clone().unwrap_or_default());
    let labels =
        Labels { namespace: &of_namespace, pod: request.pod["metadata"]["labels"].as_object().unwrap_or(&none) };
    let entries = installation.entries().into_iter().map(|entry| {
        let selects = entry.matches(labels)?;
        Ok((entry.name, selects))
    });
    let entries: Vec<(String, bool)> = entries.collect::<Result<_, String>>().map_err(|error| vec![error])?;
    let admission = installation.admits(labels, &namespace);
    let decided = decide(&original, Some(&namespace), DecisionSettings::of(settings));
    let result = (decided.decision == Decision::Inject).then(|| gets(&request, settings)).transpose();
    let result = match result {
        Ok(gets) => gets.flatten().map(Ok),
        Err(denials) => Some(Err(denials)),
    };
    Ok(Explanation {
        name: holder.name.to_string(),
        namespace,
        namespace_labels: known,
        entries,
        admission,
        decided,
        result,
    })
}

/// What the pod gets.
fn gets(request: &InjectRequest, settings: &Settings) -> Result<Option<Gets>, Vec<String>> {
    let Outcome::Injected { pod, templates, warnings } = inject(request, settings).map_err(denials)? else {
        return Ok(None);
    };
    let status = InjectionStatus::of_pod(&pod).unwrap_or_default();
    let (containers, init_containers) =
        (status.containers.unwrap_or_default(), status.init_containers.unwrap_or_default());
    let has = |list: &[String], name: &str| list.iter().any(|found| found == name);
    let annotation = |name: &str| request.pod["metadata"]["annotations"][name].as_str();
    let native = has(&init_containers, "istio-proxy");
    let by_annotation = annotation("sidecar.istio.io/nativeSidecar").filter(|value| matches!(*value, "true" | "false"));
    let asked_native = settings.native_sidecars != NativeSidecars::Off;
    let proxy = match (native, by_annotation) {
        (false, _) if !has(&containers, "istio-proxy") => "no proxy; the templates have none".to_owned(),
        (native, Some(value)) if native == (value == "true") => {
            format!("{}; annotation sidecar.istio.io/nativeSidecar says so", kind(native))
        }
        (true, _) => format!("{}; the setting for native sidecars says so", kind(true)),
        (false, _) if asked_native => {
            format!("{}; the template has no other, or the pod no other container", kind(false))
        }
        (false, _) => format!("{}; the setting for native sidecars says so", kind(false)),
    };
    let capture = if has(&init_containers, "istio-init") {
        "init container istio-init programs the rules; pilot.cni.enabled is off"
    } else if has(&init_containers, "istio-validation") {
        "the CNI plugin programs the rules, istio-validation checks them; pilot.cni.enabled is on"
    } else if native || has(&containers, "istio-proxy") {
        "nothing is captured; the interception mode is NONE, or the template captures nothing"
    } else {
        "nothing is captured; there is no proxy"
    };
    Ok(Some(Gets {
        templates,
        containers,
        init_containers,
        volumes: status.volumes.unwrap_or_default(),
        proxy,
        capture: capture.to_owned(),
        warnings,
    }))
}

const fn kind(native: bool) -> &'static str {
    if native { "a native sidecar (an init container that keeps running)" } else { "an ordinary container" }
}
