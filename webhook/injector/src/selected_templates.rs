//! Selects the templates of one pod and renders them.

use serde_json::Value;

use crate::annotations::{self, StringMap};
use crate::builtin_template::BuiltinTemplate;
use crate::containers::{self, PROXY_CONTAINER};
use crate::context::InjectContext;
use crate::overlay;
use crate::settings::{Settings, TemplateSource};
use crate::template::{CustomTemplate, RenderError, RenderOptions, SharedTemplateData};
use crate::template_data;

/// Maximum number of templates of one pod: each may add to every container, and one pod must not use up time and memory.
const MAX_TEMPLATES: usize = 10;

/// A template that is applied to a pod.
#[derive(Debug)]
pub(crate) struct SelectedTemplate<'a> {
    name: String,
    body: TemplateBody<'a>,
}

#[derive(Debug)]
enum TemplateBody<'a> {
    BuiltIn(BuiltinTemplate),
    /// A custom template, with its data about the installation.
    Custom(&'a CustomTemplate, &'a SharedTemplateData),
}

/// Selects the templates that the pod asks for, else the default ones, with aliases expanded.
///
/// # Errors
/// Returns every requested template that cannot be used.
pub(crate) fn select<'a>(
    annotations: StringMap<'_>,
    settings: &'a Settings,
) -> Result<Vec<SelectedTemplate<'a>>, Vec<String>> {
    let requested: Vec<&str> = match annotations.get(annotations::TEMPLATES) {
        Some(names) => names.split(',').map(str::trim).collect(),
        None => settings.injection.default_templates.iter().map(String::as_str).collect(),
    };
    let expanded = requested.into_iter().flat_map(|name| match settings.injection.aliases.get(name) {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => vec![name],
    });
    let expanded: Vec<&str> = expanded.collect();
    if expanded.len() > MAX_TEMPLATES {
        return Err(vec![format!("{} templates requested; the limit is {MAX_TEMPLATES}", expanded.len())]);
    }
    let (mut templates, mut errors) = (Vec::new(), Vec::new());
    for name in expanded {
        let known = &settings.injection.templates;
        let body = match known.get(name) {
            Some(TemplateSource::Custom(template)) => {
                known.shared_data().map(|shared| TemplateBody::Custom(template, shared))
            }
            Some(TemplateSource::GatewayController) => {
                errors.push(format!("template {name:?} is for the gateway controller, not for pods"));
                continue;
            }
            None => BuiltinTemplate::from_name(name).map(TemplateBody::BuiltIn),
        };
        if let Some(body) = body {
            templates.push(SelectedTemplate { name: name.to_owned(), body });
        } else {
            let custom = known.rendered_names().filter(|own| BuiltinTemplate::from_name(own).is_none());
            let names: Vec<&str> = BuiltinTemplate::names().into_iter().chain(custom).collect();
            errors.push(format!("requested template {name:?} not found; have {}", names.join(", ")));
        }
    }
    if errors.is_empty() { Ok(templates) } else { Err(errors) }
}

/// Renders the templates in their order; each result is the partial pod to merge. Adds warnings.
pub(crate) fn render_all(
    templates: &[SelectedTemplate<'_>],
    pod: &Value,
    context: &InjectContext<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>, RenderError> {
    let mut data = None;
    let options = RenderOptions {
        native_sidecars: context.settings.is_native_on(pod["spec"]["nodeName"].as_str()),
        before_1_22: context.settings.release.is_before(22),
    };
    let mut render = |template: &SelectedTemplate<'_>| match template.body {
        TemplateBody::BuiltIn(template) => Ok(overlay::render(template, context)),
        TemplateBody::Custom(template, shared) => {
            let data = data.get_or_insert_with(|| template_data::for_pod(context, pod, shared));
            template.render(data, options, warnings)
        }
    };
    templates.iter().map(&mut render).collect()
}

pub(crate) fn names(templates: &[SelectedTemplate<'_>]) -> Vec<String> {
    templates.iter().map(|template| template.name.clone()).collect()
}

/// Maps the templates to the built-in ones that they amount to. A custom template counts by the proxy that the pod has.
pub(crate) fn builtin_equivalents(templates: &[SelectedTemplate<'_>], injected: &Value) -> Vec<BuiltinTemplate> {
    let equivalent = |template: &SelectedTemplate<'_>| match template.body {
        TemplateBody::BuiltIn(template) => Some(template),
        TemplateBody::Custom(..) => equivalent_of_proxy(injected),
    };
    templates.iter().filter_map(equivalent).collect()
}

/// Returns the built-in template whose proxy is like the pod's.
fn equivalent_of_proxy(pod: &Value) -> Option<BuiltinTemplate> {
    let proxy = containers::find(pod, PROXY_CONTAINER)?;
    let args = proxy["args"].as_array()?;
    if args.first()? != "proxy" {
        return None;
    }
    let without_envoy = proxy["env"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|variable| variable["name"] == "DISABLE_ENVOY" && variable["value"] == "true");
    match args.get(1)?.as_str()? {
        "sidecar" if without_envoy => Some(BuiltinTemplate::GrpcAgent),
        "sidecar" => Some(BuiltinTemplate::Sidecar),
        "router" => Some(BuiltinTemplate::Gateway),
        _ => None,
    }
}
