//! The templates of one pod: which it gets, and what each gives for it.

use serde_json::Value;

use super::annotations::{self, Texts};
use super::containers;
use super::context::{Context, PROXY};
use super::overlay::Template;
use super::template::data::{self, Installation};
use super::template::{RenderError, UserTemplate};
use crate::settings::{Settings, TemplateSource};

/// Most templates of one pod. Each may add to every container; one pod must not take the time and memory of all others.
const MAX_TEMPLATES: usize = 10;

/// A template that a pod gets.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    name: String,
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    BuiltIn(Template),
    /// With what it is given of the installation.
    User(&'a UserTemplate, &'a Installation),
}

/// The templates that the pod asks for, else those of the configuration; aliases stand for several.
pub(super) fn select<'a>(annotations: Texts<'_>, settings: &'a Settings) -> Result<Vec<Chosen<'a>>, Vec<String>> {
    let asked: Vec<&str> = match annotations.get(annotations::TEMPLATES) {
        Some(names) => names.split(',').map(str::trim).collect(),
        None => settings.injection.default_templates.iter().map(String::as_str).collect(),
    };
    let expanded = asked.into_iter().flat_map(|name| match settings.injection.aliases.get(name) {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => vec![name],
    });
    let expanded: Vec<&str> = expanded.collect();
    if expanded.len() > MAX_TEMPLATES {
        return Err(vec![format!(
            "{} templates are asked for, at most {MAX_TEMPLATES} are carried out",
            expanded.len()
        )]);
    }
    let (mut templates, mut refused) = (Vec::new(), Vec::new());
    for name in expanded {
        let known = &settings.injection.templates;
        let source = match known.get(name) {
            Some(TemplateSource::User(template)) => {
                known.installation().map(|installation| Source::User(template, installation))
            }
            Some(TemplateSource::Controller) => {
                refused.push(format!("requested template {name:?} is the gateway controller's; it is not for pods"));
                continue;
            }
            Some(TemplateSource::BuiltIn) | None => Template::named(name).map(Source::BuiltIn),
        };
        if let Some(source) = source {
            templates.push(Chosen { name: name.to_owned(), source });
        } else {
            let own = known.own_names().filter(|own| Template::named(own).is_none());
            let names: Vec<&str> = Template::names().into_iter().chain(own).collect();
            refused.push(format!("requested template {name:?} not found; have {}", names.join(", ")));
        }
    }
    if refused.is_empty() { Ok(templates) } else { Err(refused) }
}

/// What each of the templates adds to the pod, in their order.
pub(super) fn render_all(
    templates: &[Chosen<'_>],
    pod: &Value,
    context: &Context<'_>,
) -> Result<Vec<Value>, RenderError> {
    let mut given = None;
    let render = |chosen: &Chosen<'_>| match chosen.source {
        Source::BuiltIn(template) => Ok(template.render(context)),
        Source::User(template, installation) => {
            template.render(given.get_or_insert_with(|| data::of_pod(context, pod, installation)))
        }
    };
    templates.iter().map(render).collect()
}

/// Names of the templates.
pub(super) fn names(templates: &[Chosen<'_>]) -> Vec<String> {
    templates.iter().map(|chosen| chosen.name.clone()).collect()
}

/// What the templates make of a pod: a user's template whose proxy is a sidecar makes the same of it as the built-in one.
pub(super) fn kinds(templates: &[Chosen<'_>], injected: &Value) -> Vec<Template> {
    let kind = |chosen: &Chosen<'_>| match chosen.source {
        Source::BuiltIn(template) => Some(template),
        Source::User(..) => runs_a_sidecar(injected).then_some(Template::Sidecar),
    };
    templates.iter().filter_map(kind).collect()
}

/// Whether the pod's proxy is a sidecar, whoever put it there.
fn runs_a_sidecar(pod: &Value) -> bool {
    let args = containers::find(pod, PROXY).and_then(|proxy| proxy["args"].as_array());
    args.is_some_and(|args| args.len() >= 2 && args[0] == "proxy" && args[1] == "sidecar")
}
