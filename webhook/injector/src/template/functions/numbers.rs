//! Functions for numbers, defaults and types.

use gotmpl::{TemplateError, Value as Data};

use super::{Args, Function, FunctionResult, VARIADIC, flag, text};

pub(super) const ALL: [Function; 31] = [
    ("default", 1, 2, |args| {
        let given = args.values.get(1).filter(|value| value.is_truthy());
        Ok(given.unwrap_or(&args.values[0]).clone())
    }),
    ("empty", 1, 1, |args| flag(!args.values[0].is_truthy())),
    ("coalesce", 0, VARIADIC, |args| {
        Ok(args.values.iter().find(|value| value.is_truthy()).cloned().unwrap_or(Data::Nil))
    }),
    ("all", 0, VARIADIC, |args| flag(args.values.iter().all(Data::is_truthy))),
    ("any", 0, VARIADIC, |args| flag(args.values.iter().any(Data::is_truthy))),
    ("ternary", 3, 3, |args| match &args.values[2] {
        Data::Bool(condition) => Ok(args.values[usize::from(!condition)].clone()),
        _ => Err(args.mismatch(2, "a boolean")),
    }),
    ("kindOf", 1, 1, |args| Ok(text(kind(&args.values[0])))),
    ("typeOf", 1, 1, |args| Ok(text(kind(&args.values[0])))),
    ("kindIs", 2, 2, |args| flag(args.text(0)? == kind(&args.values[1]))),
    ("typeIs", 2, 2, |args| flag(args.text(0)? == kind(&args.values[1]))),
    ("int", 1, 1, |args| Ok(Data::Int(integer(&args.values[0])))),
    ("int64", 1, 1, |args| Ok(Data::Int(integer(&args.values[0])))),
    ("float64", 1, 1, |args| Ok(Data::Float(float(&args.values[0])))),
    ("add", 0, VARIADIC, |args| fold(args, 0, i64::checked_add)),
    ("add1", 1, 1, |args| fold(args, 1, i64::checked_add)),
    ("mul", 1, VARIADIC, |args| fold(args, 1, i64::checked_mul)),
    ("sub", 2, 2, |args| pair(args, i64::checked_sub)),
    ("div", 2, 2, |args| pair(args, i64::checked_div)),
    ("mod", 2, 2, |args| pair(args, i64::checked_rem)),
    ("max", 1, VARIADIC, |args| Ok(Data::Int(args.values.iter().map(integer).max().unwrap_or(0)))),
    ("biggest", 1, VARIADIC, |args| Ok(Data::Int(args.values.iter().map(integer).max().unwrap_or(0)))),
    ("min", 1, VARIADIC, |args| Ok(Data::Int(args.values.iter().map(integer).min().unwrap_or(0)))),
    ("addf", 0, VARIADIC, |args| Ok(Data::Float(args.values.iter().map(float).sum()))),
    ("subf", 1, VARIADIC, |args| {
        Ok(Data::Float(args.values[1..].iter().fold(float(&args.values[0]), |left, right| left - float(right))))
    }),
    ("mulf", 1, VARIADIC, |args| Ok(Data::Float(args.values.iter().map(float).product()))),
    ("divf", 1, VARIADIC, |args| {
        Ok(Data::Float(args.values[1..].iter().fold(float(&args.values[0]), |left, right| left / float(right))))
    }),
    ("ceil", 1, 1, |args| Ok(Data::Float(float(&args.values[0]).ceil()))),
    ("floor", 1, 1, |args| Ok(Data::Float(float(&args.values[0]).floor()))),
    ("round", 2, 2, |args| {
        let scale = 10_f64.powi(i32::try_from(args.int(1)?.clamp(-300, 300)).unwrap_or(0));
        Ok(Data::Float((float(&args.values[0]) * scale).round() / scale))
    }),
    ("maxf", 1, VARIADIC, |args| Ok(Data::Float(args.values.iter().map(float).fold(f64::NEG_INFINITY, f64::max)))),
    ("minf", 1, VARIADIC, |args| Ok(Data::Float(args.values.iter().map(float).fold(f64::INFINITY, f64::min)))),
];

/// Returns the name of a value's kind in Go.
fn kind(value: &Data) -> &'static str {
    match value {
        Data::Nil => "invalid",
        Data::List(_) => "slice",
        other => other.type_name(),
    }
}

/// Converts any value to an integer as sprig does; what is not a number is 0.
fn integer(value: &Data) -> i64 {
    match value {
        Data::Bool(flag) => i64::from(*flag),
        Data::Int(number) => *number,
        Data::Uint(number) => i64::try_from(*number).unwrap_or(i64::MAX),
        #[expect(clippy::cast_possible_truncation, reason = "Go truncates as well")]
        Data::Float(number) => *number as i64,
        Data::String(text) => text.trim().parse().unwrap_or(0),
        _ => 0,
    }
}

fn float(value: &Data) -> f64 {
    match value {
        Data::Float(number) => *number,
        Data::String(text) => text.trim().parse().unwrap_or(0.0),
        #[expect(clippy::cast_precision_loss, reason = "Go loses the same")]
        other => integer(other) as f64,
    }
}

fn overflow(args: &Args<'_>) -> TemplateError {
    args.error("integer overflow")
}

fn fold(args: &Args<'_>, start: i64, with: fn(i64, i64) -> Option<i64>) -> FunctionResult {
    let result = args.values.iter().map(integer).try_fold(start, with);
    result.map(Data::Int).ok_or_else(|| overflow(args))
}

fn pair(args: &Args<'_>, with: fn(i64, i64) -> Option<i64>) -> FunctionResult {
    with(integer(&args.values[0]), integer(&args.values[1])).map(Data::Int).ok_or_else(|| overflow(args))
}
