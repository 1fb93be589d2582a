//! The functions of templates: Go's own, those of the library sprig that only compute, and those of Istio's injector.
//!
//! What looks at a clock, makes random values or changes a value in place (`now`, `randAlpha`, `uuidv4`, `set`, `merge`) is
//! not there: an injection depends on the pod and the configuration alone, and values here do not change.

#![expect(clippy::unnecessary_wraps, reason = "all functions of the tables have one signature")]

mod documents;
mod istio;
mod lists;
mod numbers;
mod texts;

use std::sync::Arc;

use gotmpl::{FuncMap, Template as Engine, TemplateError, Value as Data};

use super::check::{INDEX_TEXTS, STEP};
use super::meter;

/// What a function gives.
type Answer = Result<Data, TemplateError>;
/// A function with its name and the least and the largest number of its arguments.
type Function = (&'static str, usize, usize, fn(&Args<'_>) -> Answer);

/// Any number of arguments.
const MANY: usize = usize::MAX;

/// Functions of the engine that give nothing larger than they take; they are called as they are.
const OF_THE_ENGINE: [&str; 11] = ["and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index"];

/// Whether a template may call a function.
pub(super) fn is_known(functions: &FuncMap, name: &str) -> bool {
    functions.contains_key(name) || OF_THE_ENGINE.contains(&name)
}

/// All functions but those of the engine.
pub(super) fn all() -> FuncMap {
    let mut all = FuncMap::new();
    // Istio's come last: they replace those of sprig that have the same name.
    for (name, least, most, function) in
        [&OWN[..], &texts::ALL, &lists::ALL, &numbers::ALL, &documents::ALL, &istio::ALL].into_iter().flatten().copied()
    {
        let metered = move |values: &[Data]| {
            let args = Args { name, values };
            args.count(least, most)?;
            meter::charge_arguments(values)?;
            let answer = function(&args)?;
            meter::charge_answer(&answer)?;
            Ok(answer)
        };
        all.insert(name.to_owned(), Arc::new(metered));
    }
    let step = |values: &[Data]| {
        let line = values.first().and_then(Data::as_int).and_then(|line| usize::try_from(line).ok());
        meter::step(line.unwrap_or_default())?;
        Ok(text(""))
    };
    all.insert(STEP.to_owned(), Arc::new(step));
    all
}

/// Functions of Go that can give more than they take.
const OWN: [Function; 8] = [
    ("print", 0, MANY, |args| builtin("print", args.values)),
    ("println", 0, MANY, |args| builtin("println", args.values)),
    ("printf", 1, MANY, printf),
    ("html", 1, 1, |args| builtin("html", args.values)),
    ("js", 1, 1, |args| builtin("js", args.values)),
    ("urlquery", 1, 1, |args| builtin("urlquery", args.values)),
    ("slice", 1, 3, |args| {
        let bound = |index: usize| if args.values.len() > index { args.int(index).map(Some) } else { Ok(None) };
        args.values[0].slice(bound(1)?, bound(2)?)
    }),
    (INDEX_TEXTS, 2, 2, |args| match args.values[0].index(&args.values[1])? {
        Data::Nil => Ok(text("")),
        found => Ok(found),
    }),
];

fn printf(args: &Args<'_>) -> Answer {
    let format = args.text(0)?;
    let widths = format.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
    let width = widths.max().unwrap_or(0).max(if format.contains('*') { usize::from(u16::MAX) } else { 0 });
    let longest = args.values[1..].iter().map(|value| strval(value).len()).max().unwrap_or(0);
    let verbs = format.matches('%').count();
    // Hexadecimal digits and escapes of %q make up to six of one.
    meter::room_for(
        format.len().saturating_add(verbs.saturating_mul(width.saturating_add(longest.saturating_mul(6)))),
    )?;
    builtin("printf", args.values)
}

/// Calls a function of the engine, which has no other door to them than a template.
fn builtin(name: &str, values: &[Data]) -> Answer {
    let arguments: Vec<String> = (0..values.len()).map(|index| format!(" (index . {index})")).collect();
    let engine = Engine::new("").parse(&format!("{{{{{name}{}}}}}", arguments.concat()))?;
    Ok(owned(engine.execute_to_string(&Data::List(values.into()))?))
}

/// Arguments of a call.
struct Args<'a> {
    name: &'static str,
    values: &'a [Data],
}

impl<'a> Args<'a> {
    fn count(&self, least: usize, most: usize) -> Result<(), TemplateError> {
        let given = self.values.len();
        if (least..=most).contains(&given) {
            return Ok(());
        }
        let wanted = if least == most { least.to_string() } else { format!("at least {least}") };
        Err(self.error(format!("takes {wanted} arguments, got {given}")))
    }

    fn error(&self, reason: impl AsRef<str>) -> TemplateError {
        TemplateError::Exec(format!("{}: {}", self.name, reason.as_ref()))
    }

    fn mismatch(&self, index: usize, wanted: &str) -> TemplateError {
        let found = self.values.get(index).map_or("nothing", Data::type_name);
        self.error(format!("argument {} must be {wanted}, found {found}", index + 1))
    }

    fn text(&self, index: usize) -> Result<&'a str, TemplateError> {
        match self.values.get(index) {
            Some(Data::String(text)) => Ok(text),
            _ => Err(self.mismatch(index, "a string")),
        }
    }

    fn int(&self, index: usize) -> Result<i64, TemplateError> {
        self.values.get(index).and_then(Data::as_int).ok_or_else(|| self.mismatch(index, "a whole number"))
    }

    /// A whole number that is not negative.
    fn size(&self, index: usize) -> Result<usize, TemplateError> {
        usize::try_from(self.int(index)?).map_err(|_| self.mismatch(index, "a number that is not negative"))
    }

    /// A list; nil is the empty one.
    fn list(&self, index: usize) -> Result<&'a [Data], TemplateError> {
        match self.values.get(index) {
            Some(Data::List(items)) => Ok(items),
            Some(Data::Nil) => Ok(&[]),
            _ => Err(self.mismatch(index, "a list")),
        }
    }

    /// A map; nil is the empty one.
    fn map(&self, index: usize) -> Result<Entries, TemplateError> {
        match self.values.get(index) {
            Some(Data::Map(entries)) => Ok(Arc::clone(entries)),
            Some(Data::Nil) => Ok(Arc::default()),
            _ => Err(self.mismatch(index, "a map")),
        }
    }
}

/// Contents of a map.
type Entries = Arc<std::collections::BTreeMap<Arc<str>, Data>>;

fn text(text: &str) -> Data {
    Data::String(text.into())
}

fn owned(text: String) -> Data {
    Data::String(text.into())
}

fn flag(flag: bool) -> Answer {
    Ok(Data::Bool(flag))
}

fn list(items: Vec<Data>) -> Answer {
    Ok(Data::List(items.into()))
}

fn entries(entries: impl IntoIterator<Item = (Arc<str>, Data)>) -> Answer {
    Ok(Data::Map(Arc::new(entries.into_iter().collect())))
}

/// A value as Go prints it.
fn strval(value: &Data) -> String {
    value.to_string()
}
