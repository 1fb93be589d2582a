//! The injection templates of the documents, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::builtin_template::BuiltinTemplate;
use crate::fields::{FieldError, FieldReader};
use crate::template::{CustomTemplate, SharedTemplateData};

/// Templates that Istio's gateway controller renders into objects of its own.
pub(crate) const GATEWAY_CONTROLLER_TEMPLATES: [&str; 4] =
    ["waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];

/// Origin of a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TemplateSource {
    /// Rendered by Istio's gateway controller; not for pods.
    GatewayController,
    /// For pods.
    Custom(Arc<CustomTemplate>),
}

/// Templates that the documents contain. Built-in templates exist without being mentioned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Templates {
    named: BTreeMap<String, TemplateSource>,
    shared_data: Option<Arc<SharedTemplateData>>,
}

impl Templates {
    /// Reads maps from name to text; a later map overrides an earlier one.
    pub(super) fn read(maps: &[FieldReader<'_>]) -> Self {
        let mut named = BTreeMap::new();
        for map in maps {
            for (name, text) in map.string_map() {
                let source = if GATEWAY_CONTROLLER_TEMPLATES.contains(&name.as_str()) {
                    TemplateSource::GatewayController
                } else {
                    match CustomTemplate::parse(&name, &text) {
                        Ok(template) => TemplateSource::Custom(Arc::new(template)),
                        Err(reasons) => {
                            for reason in reasons {
                                map.field(&name).add_error(reason);
                            }
                            continue;
                        }
                    }
                };
                named.insert(name, source);
            }
        }
        Self { named, shared_data: None }
    }

    /// Sets the data that is the same for every pod, if a template needs it.
    pub(super) fn set_shared_data(&mut self, shared_data: impl FnOnce() -> SharedTemplateData) {
        if self.rendered_names().next().is_some() {
            self.shared_data = Some(Arc::new(shared_data()));
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&TemplateSource> {
        self.named.get(name)
    }

    /// Returns what does not exist, but is used in the templates; rendering fails there.
    pub(super) fn warnings(&self) -> impl Iterator<Item = FieldError> {
        let warnings = self.named.iter().filter_map(|(name, source)| match source {
            TemplateSource::Custom(template) => Some(template.warnings().iter().map(move |warning| (name, warning))),
            TemplateSource::GatewayController => None,
        });
        warnings.flatten().map(|(name, warning)| FieldError {
            document: "config",
            path: format!("templates.{name}"),
            reason: format!("{warning}; rendering fails where it is used"),
        })
    }

    /// Returns whether pods get the text that the documents have for this name, not the built-in template.
    pub fn is_rendered(&self, name: &str) -> bool {
        matches!(self.named.get(name), Some(TemplateSource::Custom(_)))
    }

    /// Returns the names of the templates for pods that the documents have. Their text is rendered.
    pub fn rendered_names(&self) -> impl Iterator<Item = &str> {
        let is_custom = |source: &TemplateSource| matches!(source, TemplateSource::Custom(_));
        self.named.iter().filter(move |(_, source)| is_custom(source)).map(|(name, _)| name.as_str())
    }

    /// Returns the names of the built-in templates that pods get, because the documents have no text for them.
    pub fn builtin_names(&self) -> impl Iterator<Item = &'static str> {
        BuiltinTemplate::names().into_iter().filter(|name| !self.named.contains_key(*name))
    }

    pub(crate) fn shared_data(&self) -> Option<&SharedTemplateData> {
        self.shared_data.as_deref()
    }
}
