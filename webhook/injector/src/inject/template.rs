//! Templates of users, in Go's template language: a second way to the same overlay that the built-in templates give.
//!
//! ```text
//! text ──check──▶ UserTemplate            (when the configuration is read: syntax, names of functions, fields, variables)
//! pod, Context ──data──▶ values ──▶ UserTemplate::render ──functions, meter──▶ text ──yaml──▶ overlay ──▶ merge
//! ```
//!
//! Go's template engine looks at typed objects by reflection. Here the same names lead through plain values: `data` spells
//! the fields of a pod as Go does, and gives those that are not set the zero value of their type.

mod check;
pub(crate) mod data;
mod functions;
mod meter;
mod names;
pub(crate) mod shipped;
pub(crate) mod texts;

use std::fmt;

use gotmpl::{Template as Engine, TemplateError, Value as Data};
use serde_json::{Map, Value};

use crate::yaml;

/// Longest text of a template, in bytes.
const TEXT_MAX: usize = 1024 * 1024;
/// Most rounds of all `range` loops of one rendering.
const ROUNDS_MAX: u64 = 100_000;

/// A template that can be rendered: every function, variable and field of the context that it names is known.
pub(crate) struct UserTemplate {
    name: String,
    text: String,
    engine: Engine,
}

/// Why a template gave no overlay for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template \"{name}\"{}: {reason}", Place(*.line))]
pub struct RenderError {
    /// Name of the template.
    pub name: String,
    /// Line of its text, from 1; 0 where it cannot be told.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// A line in front of a reason.
struct Place(usize);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ", line {}", self.0) }
    }
}

impl UserTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// Everything in it that no pod could be rendered with, each with its line.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, Vec<String>> {
        if text.len() > TEXT_MAX {
            return Err(vec![format!("the text has {} bytes, at most {TEXT_MAX} are taken", text.len())]);
        }
        let functions = functions::all();
        let trees = check::compile(text, &functions)?;
        let mut engine = Engine::new("").funcs(functions).max_range_iters(ROUNDS_MAX);
        for (tree_name, tree) in trees {
            engine = engine.add_parse_tree(&tree_name, tree);
        }
        Ok(Self { name: name.to_owned(), text: text.to_owned(), engine })
    }

    /// What the template adds to a pod, see [`data::of_pod`] for what it is given.
    ///
    /// # Errors
    /// The template fails, works beyond its bounds, or gives something that is no piece of a pod.
    pub(crate) fn render(&self, data: &Data) -> Result<Value, RenderError> {
        let mut text = meter::Output::start();
        if let Err(error) = self.engine.execute_template_fmt(&mut text, check::MAIN, data) {
            let reason = text.bound_passed().unwrap_or_else(|| reason(error));
            return Err(RenderError { name: self.name.clone(), line: meter::line(), reason });
        }
        self.overlay(&text.into_text())
    }

    fn overlay(&self, text: &str) -> Result<Value, RenderError> {
        let refuse = |reason| RenderError { name: self.name.clone(), line: 0, reason };
        let mut overlay = yaml::from_str(text).map_err(|error| {
            let error = error.to_string();
            refuse(format!("what it gives is no YAML: {error}{}", shown_line(text, &error)))
        })?;
        if overlay.is_null() {
            overlay = Value::Object(Map::new());
        }
        let Some(fields) = overlay.as_object() else {
            return Err(refuse("what it gives is no object with `metadata` and `spec`".to_owned()));
        };
        let part = ["metadata", "spec"]
            .into_iter()
            .find(|part| fields.get(*part).is_some_and(|v| !v.is_object() && !v.is_null()));
        match part {
            Some(part) => Err(refuse(format!("`{part}` of what it gives is no object"))),
            None => Ok(overlay),
        }
    }
}

/// The message of the engine without the words that say nothing here.
fn reason(error: TemplateError) -> String {
    match error {
        TemplateError::Exec(reason) => reason,
        TemplateError::RangeIterLimit => format!("its loops have more than {ROUNDS_MAX} rounds"),
        TemplateError::RecursionLimit => "templates call each other too deeply".to_owned(),
        other => other.to_string(),
    }
}

/// The line of a text that an error of the YAML reader points at.
fn shown_line(text: &str, error: &str) -> String {
    let number =
        error.split("line ").nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(rest));
    let line = number
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| text.lines().nth(number.checked_sub(1)?));
    line.map_or_else(String::new, |line| format!(" (the line is {:?})", line.chars().take(120).collect::<String>()))
}

impl fmt::Debug for UserTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserTemplate").field("name", &self.name).field("text", &self.text).finish_non_exhaustive()
    }
}

impl PartialEq for UserTemplate {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.text) == (&other.name, &other.text)
    }
}

#[cfg(test)]
mod tests;
