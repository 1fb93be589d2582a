//! The functions of templates: Go's own, those of the library sprig that only compute, and those of Istio's injector.
//!
//! Functions that read a clock, draw random values or change a value in place (`now`, `randAlpha`, `uuidv4`, `set`, `merge`) are
//! missing: an injection depends on the pod and the configuration alone, and values are immutable.

#![expect(clippy::unnecessary_wraps, reason = "all functions of the tables have one signature")]

mod encoding;
mod go_yaml;
mod istio;
mod lists;
mod numbers;
mod strings;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use gotmpl::{FuncMap, Template as Engine, TemplateError, Value as Data};

use super::limits;
use super::print::{go_string, sprint, sprintln};
use super::value::COMPLETE_KEY;

/// Function that records the line of an action. No template can write its name.
pub(super) const START_ACTION: &str = "\0step";
/// Function that reads fields of a value whose type is not known before it is rendered. No template can write its name.
pub(super) const FIELD: &str = "\0field";
/// Function that fails with a message. No template can write its name.
pub(super) const FAIL: &str = "\0fail";
/// Function that prints the value of an action. No template can write its name.
pub(super) const PRINT: &str = "\0print";
/// Function `index` for a map of strings, in which a missing key has the empty string.
pub(super) const INDEX_STRINGS: &str = "\0index";

type FunctionResult = Result<Data, TemplateError>;
/// Name, minimum and maximum number of arguments, and the function.
type Function = (&'static str, usize, usize, fn(&Args<'_>) -> FunctionResult);

/// Maximum number of arguments of a variadic function.
const VARIADIC: usize = usize::MAX;

/// Functions of the engine whose results are no larger than their arguments; they are called directly.
const ENGINE_FUNCTIONS: [&str; 11] = ["and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index"];

/// Returns whether a template may call the function.
pub(super) fn is_defined(functions: &FuncMap, name: &str) -> bool {
    functions.contains_key(name) || ENGINE_FUNCTIONS.contains(&name)
}

/// Returns all functions except those of the engine.
pub(super) fn all() -> FuncMap {
    let mut all = FuncMap::new();
    // Istio's come last: they override those of sprig with the same name.
    for (name, min, max, function) in
        [&GO_FUNCTIONS[..], &strings::ALL, &lists::ALL, &numbers::ALL, &encoding::ALL, &istio::ALL]
            .into_iter()
            .flatten()
            .copied()
    {
        let metered = move |values: &[Data]| {
            let args = Args { name, values };
            args.check_count(min, max)?;
            limits::charge_arguments(values)?;
            let result = function(&args)?;
            limits::charge_result(&result)?;
            Ok(result)
        };
        all.insert(name.to_owned(), Arc::new(metered));
    }
    let start_action = |values: &[Data]| {
        let line = values.first().and_then(Data::as_int).and_then(|line| usize::try_from(line).ok());
        limits::start_action(line.unwrap_or_default())?;
        Ok(text(""))
    };
    all.insert(START_ACTION.to_owned(), Arc::new(start_action));
    all.insert(FIELD.to_owned(), Arc::new(fields));
    all
}

/// Reads a chain of fields: the first value is the object, the others are names. As in Go, a missing key of a map is nil, and a
/// missing field of a struct or a field of a nil pointer is an error.
fn fields(values: &[Data]) -> FunctionResult {
    let Some((first, names)) = values.split_first() else { return Ok(Data::Nil) };
    let (mut value, mut in_struct) = (first, false);
    for name in names {
        let Data::String(name) = name else { continue };
        let error = |problem: &str| Err(TemplateError::Exec(format!("{problem} has no field {name:?}")));
        value = match value {
            Data::Map(entries) => {
                in_struct = entries.contains_key(COMPLETE_KEY);
                match entries.get(&**name) {
                    Some(found) => found,
                    None if in_struct => return error("the object"),
                    None => &Data::Nil,
                }
            }
            Data::Nil if in_struct => return error("nil"),
            Data::Nil => value,
            other => return error(other.type_name()),
        };
    }
    Ok(value.clone())
}

/// Go's functions whose results can be larger than their arguments.
const GO_FUNCTIONS: [Function; 10] = [
    (FAIL, 1, 1, |args| Err(TemplateError::Exec(args.text(0)?.to_owned()))),
    ("print", 0, VARIADIC, |args| Ok(owned(sprint(args.values)))),
    ("println", 0, VARIADIC, |args| Ok(owned(sprintln(args.values)))),
    // The engine prints all other values as Go does, nil as "<no value>".
    (PRINT, 1, 1, |args| match &args.values[0] {
        value @ (Data::Float(_) | Data::List(_) | Data::Map(_)) => Ok(owned(go_string(value))),
        other => Ok(other.clone()),
    }),
    ("printf", 1, VARIADIC, printf),
    ("html", 1, 1, |args| builtin("html", args.values)),
    ("js", 1, 1, |args| builtin("js", args.values)),
    ("urlquery", 1, 1, |args| builtin("urlquery", args.values)),
    ("slice", 1, 3, |args| {
        let bound = |index: usize| if args.values.len() > index { args.int(index).map(Some) } else { Ok(None) };
        args.values[0].slice(bound(1)?, bound(2)?)
    }),
    (INDEX_STRINGS, 2, 2, |args| match args.values[0].index(&args.values[1])? {
        Data::Nil => Ok(text("")),
        found => Ok(found),
    }),
];

fn printf(args: &Args<'_>) -> FunctionResult {
    let format = args.text(0)?;
    let widths = format.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
    let width = widths.max().unwrap_or(0).max(if format.contains('*') { usize::from(u16::MAX) } else { 0 });
    let longest = args.values[1..].iter().map(|value| strval(value).len()).max().unwrap_or(0);
    let verbs = format.matches('%').count();
    // %x and the escapes of %q print up to six bytes for one.
    limits::check_size(
        format.len().saturating_add(verbs.saturating_mul(width.saturating_add(longest.saturating_mul(6)))),
    )?;
    builtin("printf", &printf_values(format, args.values))
}

/// Returns the arguments of `printf` with those of `%v` printed as Go does, unless the format reorders its arguments.
fn printf_values(format: &str, values: &[Data]) -> Vec<Data> {
    let mut values = values.to_vec();
    if format.contains(['*', '[']) {
        return values;
    }
    let (mut chars, mut argument) = (format.chars(), 0);
    while chars.by_ref().any(|c| c == '%') {
        let verb = chars.by_ref().find(|c| !"+-# 0123456789.".contains(*c));
        if verb == Some('%') {
            continue;
        }
        argument += 1;
        if let (Some('v'), Some(value @ (Data::Float(_) | Data::List(_) | Data::Map(_)))) =
            (verb, values.get_mut(argument))
        {
            *value = owned(go_string(value));
        }
    }
    values
}

thread_local! {
    /// Templates that call a function of the engine, by its name and the number of arguments.
    static CALLS: RefCell<BTreeMap<(&'static str, usize), Engine>> = const { RefCell::new(BTreeMap::new()) };
}

/// Calls a function of the engine through a template, which is the only way to call one.
fn builtin(name: &'static str, values: &[Data]) -> FunctionResult {
    CALLS.with_borrow_mut(|calls| {
        let engine = match calls.entry((name, values.len())) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let arguments: Vec<String> = (0..values.len()).map(|index| format!("(index . {index})")).collect();
                entry.insert(Engine::new("").parse(&format!("{{{{{name} {}}}}}", arguments.join(" ")))?)
            }
        };
        Ok(owned(engine.execute_to_string(&Data::List(values.into()))?))
    })
}

struct Args<'a> {
    name: &'static str,
    values: &'a [Data],
}

impl<'a> Args<'a> {
    fn check_count(&self, min: usize, max: usize) -> Result<(), TemplateError> {
        let count = self.values.len();
        if (min..=max).contains(&count) {
            return Ok(());
        }
        let wanted = if min == max { min.to_string() } else { format!("at least {min}") };
        Err(self.error(format!("wrong number of arguments: expected {wanted}, found {count}")))
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
        self.values.get(index).and_then(Data::as_int).ok_or_else(|| self.mismatch(index, "an integer"))
    }

    /// Returns an integer that is not negative.
    fn size(&self, index: usize) -> Result<usize, TemplateError> {
        usize::try_from(self.int(index)?).map_err(|_| self.mismatch(index, "an integer that is not negative"))
    }

    /// Returns a list; nil is the empty list.
    fn list(&self, index: usize) -> Result<&'a [Data], TemplateError> {
        match self.values.get(index) {
            Some(Data::List(items)) => Ok(items),
            Some(Data::Nil) => Ok(&[]),
            _ => Err(self.mismatch(index, "a list")),
        }
    }

    /// Returns a map; nil is the empty map.
    fn map(&self, index: usize) -> Result<Entries, TemplateError> {
        match self.values.get(index) {
            Some(Data::Map(entries)) => Ok(Arc::clone(entries)),
            Some(Data::Nil) => Ok(Arc::default()),
            _ => Err(self.mismatch(index, "a map")),
        }
    }
}

type Entries = Arc<std::collections::BTreeMap<Arc<str>, Data>>;

fn text(text: &str) -> Data {
    Data::String(text.into())
}

fn owned(text: String) -> Data {
    Data::String(text.into())
}

fn flag(flag: bool) -> FunctionResult {
    Ok(Data::Bool(flag))
}

fn list(items: Vec<Data>) -> FunctionResult {
    Ok(Data::List(items.into()))
}

fn entries(entries: impl IntoIterator<Item = (Arc<str>, Data)>) -> FunctionResult {
    Ok(Data::Map(Arc::new(entries.into_iter().collect())))
}

/// Prints a value as Go does.
fn strval(value: &Data) -> String {
    go_string(value)
}
