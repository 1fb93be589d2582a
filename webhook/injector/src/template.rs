//! Custom templates: those of the administrator, in Go's template language, as an alternative to the built-in ones.
//!
//! ```text
//! text ──check──▶ CustomTemplate     (when the configuration is read: syntax, names of functions, fields, variables)
//! data ──▶ CustomTemplate::render ──functions, limits──▶ text ──yaml──▶ partial pod, to be merged
//! ```
//!
//! Go's template engine reads typed objects by reflection. Here the same names are looked up in untyped values: [`data`]
//! spells fields as Go does, and gives fields that are not set the zero value of their type.

mod check;
pub(crate) mod data;
mod functions;
mod go_types;
mod known_fields;
mod limits;
mod print;
mod rendered_yaml;
mod set;
pub(crate) mod value;
mod whitespace;

use std::fmt;

use gotmpl::{Template as Engine, TemplateError, Value as Data};
use serde_json::{Map, Value};

use crate::findings::join_findings;
use crate::yaml;
pub(crate) use data::SharedTemplateData;
pub(crate) use limits::RenderOptions;
pub use set::TemplateSet;

/// Largest template text in bytes.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Limit on the iterations of all `range` loops of one rendering.
const MAX_ITERATIONS: u64 = 100_000;

/// A checked template: every function and variable that it uses exists.
pub(crate) struct CustomTemplate {
    name: String,
    text: String,
    engine: Engine,
    warnings: Vec<String>,
}

/// Error returned when a template cannot be rendered for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template \"{name}\"{}: {reason}", LinePrefix(*.line))]
pub struct RenderError {
    /// Name of the template.
    pub name: String,
    /// Line of the template, from 1; 0 if it is not known.
    pub line: usize,
    /// Description of the fault.
    pub reason: String,
}

struct LinePrefix(usize);

impl fmt::Display for LinePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ", line {}", self.0) }
    }
}

impl CustomTemplate {
    /// Parses and checks a template.
    ///
    /// # Errors
    /// Everything that is invalid for all pods, each with its line.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, Vec<String>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(vec![format!("the template has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len())]);
        }
        let functions = functions::all();
        let resolved = whitespace::resolve(text).map_err(|error| vec![error])?;
        let check::Compiled { trees, warnings } = check::compile(&resolved, &functions)?;
        let mut engine = Engine::new("").funcs(functions).max_range_iters(MAX_ITERATIONS);
        for (tree_name, tree) in trees {
            engine = engine.add_parse_tree(&tree_name, tree);
        }
        Ok(Self { name: name.to_owned(), text: text.to_owned(), engine, warnings })
    }

    /// Returns fields and nested templates that do not exist, each with its line.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Renders the template to a partial pod. Fields that Kubernetes does not know are left out, with a warning.
    ///
    /// # Errors
    /// The template fails, exceeds a limit, or does not render to a partial pod.
    pub(crate) fn render(
        &self,
        data: &Data,
        options: RenderOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Value, RenderError> {
        let mut partial_pod = self.parse_output(&self.render_text(data, options)?)?;
        let unknown = known_fields::remove_unknown_fields(&mut partial_pod);
        if !unknown.is_empty() {
            warnings.push(format!(
                "template {:?}: unknown fields are left out: {}",
                self.name,
                join_findings(&unknown)
            ));
        }
        Ok(partial_pod)
    }

    fn render_text(&self, data: &Data, options: RenderOptions) -> Result<String, RenderError> {
        let mut output = limits::Output::start(options);
        match self.engine.execute_template_fmt(&mut output, check::MAIN, data) {
            Ok(()) => Ok(output.into_text()),
            Err(error) => {
                let reason = output.exceeded_limit().unwrap_or_else(|| reason(error));
                Err(RenderError { name: self.name.clone(), line: limits::line(), reason })
            }
        }
    }

    fn parse_output(&self, text: &str) -> Result<Value, RenderError> {
        let error = |reason| RenderError { name: self.name.clone(), line: 0, reason };
        let parsed = rendered_yaml::parse(text).map_or_else(|| yaml::from_str(text), Ok);
        let mut partial_pod = parsed.map_err(|yaml_error| {
            let reason = yaml_error.to_string();
            error(format!("output is not YAML: {reason}{}", quoted_line(text, &reason)))
        })?;
        if partial_pod.is_null() {
            partial_pod = Value::Object(Map::new());
        }
        let Some(fields) = partial_pod.as_object() else {
            return Err(error("output is not an object with `metadata` and `spec`".to_owned()));
        };
        let is_invalid = |value: &Value| !value.is_object() && !value.is_null();
        match ["metadata", "spec"].into_iter().find(|key| fields.get(*key).is_some_and(is_invalid)) {
            Some(key) => Err(error(format!("`{key}` of the output is not an object"))),
            None => Ok(partial_pod),
        }
    }
}

/// Returns the engine's message without its generic prefix.
fn reason(error: TemplateError) -> String {
    match error {
        TemplateError::Exec(reason) => reason,
        TemplateError::RangeIterLimit => format!("range loops exceed {MAX_ITERATIONS} iterations"),
        TemplateError::RecursionLimit => "templates are nested too deeply".to_owned(),
        other => other.to_string(),
    }
}

/// Quotes the line of `text` that an error of the YAML parser refers to.
fn quoted_line(text: &str, error: &str) -> String {
    let number =
        error.split("line ").nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(rest));
    let line = number
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| text.lines().nth(number.checked_sub(1)?));
    line.map_or_else(String::new, |line| format!(" (in {:?})", line.chars().take(120).collect::<String>()))
}

impl fmt::Debug for CustomTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomTemplate").field("name", &self.name).field("text", &self.text).finish_non_exhaustive()
    }
}

impl PartialEq for CustomTemplate {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.text) == (&other.name, &other.text)
    }
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod edits;
#[cfg(test)]
mod go;
#[cfg(test)]
mod tests;
