//! Functions for lists and maps.

use gotmpl::Value as Data;

use super::{Args, Function, FunctionResult, VARIADIC, entries, flag, limits, list, owned, strval, text};

pub(super) const ALL: [Function; 30] = [
    ("list", 0, VARIADIC, |args| list(args.values.to_vec())),
    ("tuple", 0, VARIADIC, |args| list(args.values.to_vec())),
    ("first", 1, 1, |args| Ok(args.list(0)?.first().cloned().unwrap_or(Data::Nil))),
    ("last", 1, 1, |args| Ok(args.list(0)?.last().cloned().unwrap_or(Data::Nil))),
    ("rest", 1, 1, |args| list(args.list(0)?.iter().skip(1).cloned().collect())),
    ("initial", 1, 1, |args| list(args.list(0)?.split_last().map_or_else(Vec::new, |(_, rest)| rest.to_vec()))),
    ("append", 2, 2, append),
    ("push", 2, 2, append),
    ("prepend", 2, 2, |args| list([&args.values[1..], args.list(0)?].concat())),
    ("concat", 0, VARIADIC, |args| {
        let lists: Result<Vec<&[Data]>, _> = (0..args.values.len()).map(|index| args.list(index)).collect();
        list(lists?.concat())
    }),
    ("reverse", 1, 1, |args| list(args.list(0)?.iter().rev().cloned().collect())),
    ("uniq", 1, 1, |args| {
        let mut seen = std::collections::BTreeSet::new();
        list(args.list(0)?.iter().filter(|item| seen.insert((item.type_name(), strval(item)))).cloned().collect())
    }),
    ("without", 1, VARIADIC, |args| {
        list(args.list(0)?.iter().filter(|item| !args.values[1..].contains(item)).cloned().collect())
    }),
    ("has", 2, 2, |args| flag(args.list(1)?.contains(&args.values[0]))),
    ("compact", 1, 1, |args| list(args.list(0)?.iter().filter(|item| item.is_truthy()).cloned().collect())),
    ("sortAlpha", 1, 1, |args| {
        let mut texts: Vec<String> = args.list(0)?.iter().map(strval).collect();
        texts.sort_unstable();
        list(texts.into_iter().map(owned).collect())
    }),
    ("toStrings", 1, 1, |args| list(args.list(0)?.iter().map(|item| owned(strval(item))).collect())),
    ("until", 1, 1, |args| until(0, args.int(0)?, if args.int(0)? < 0 { -1 } else { 1 })),
    ("untilStep", 3, 3, |args| until(args.int(0)?, args.int(1)?, args.int(2)?)),
    ("dict", 0, VARIADIC, |args| {
        let pairs = args.values.chunks(2);
        entries(pairs.map(|pair| (strval(&pair[0]).into(), pair.get(1).cloned().unwrap_or_else(|| text("")))))
    }),
    ("get", 2, 2, |args| Ok(args.map(0)?.get(args.text(1)?).cloned().unwrap_or_else(|| text("")))),
    ("hasKey", 2, 2, |args| flag(args.map(0)?.contains_key(args.text(1)?))),
    ("keys", 1, VARIADIC, |args| {
        let mut keys = Vec::new();
        for index in 0..args.values.len() {
            keys.extend(args.map(index)?.keys().map(|key| text(key)));
        }
        list(keys)
    }),
    ("values", 1, 1, |args| list(args.map(0)?.values().cloned().collect())),
    ("pluck", 1, VARIADIC, |args| {
        let key = args.text(0)?;
        let mut found = Vec::new();
        for index in 1..args.values.len() {
            found.extend(args.map(index)?.get(key).cloned());
        }
        list(found)
    }),
    ("pick", 1, VARIADIC, |args| filter_keys(args, true)),
    ("omit", 1, VARIADIC, |args| filter_keys(args, false)),
    ("deepCopy", 1, 1, |args| Ok(args.values[0].clone())),
    ("dig", 3, VARIADIC, dig),
    ("chunk", 2, 2, |args| {
        let size = args.size(0)?.max(1);
        list(args.list(1)?.chunks(size).map(|chunk| Data::List(chunk.into())).collect())
    }),
];

fn append(args: &Args<'_>) -> FunctionResult {
    list([args.list(0)?, &args.values[1..]].concat())
}

/// Returns the entries of a map whose keys are, or are not, among the further arguments.
fn filter_keys(args: &Args<'_>, is_listed: bool) -> FunctionResult {
    let keys: Vec<&str> = (1..args.values.len()).map(|index| args.text(index)).collect::<Result<_, _>>()?;
    let map = args.map(0)?;
    let kept = map.iter().filter(|(key, _)| keys.contains(&&***key) == is_listed);
    entries(kept.map(|(key, value)| (key.clone(), value.clone())))
}

/// Returns the numbers from `first` to before `end` in steps of `step`.
fn until(first: i64, end: i64, step: i64) -> FunctionResult {
    if step == 0 || (end > first) != (step > 0) {
        return list(Vec::new());
    }
    let count = usize::try_from(end.abs_diff(first).div_ceil(step.unsigned_abs())).unwrap_or(usize::MAX);
    limits::check_size(count.saturating_mul(16))?;
    let numbers = std::iter::successors(Some(first), |number| number.checked_add(step));
    list(numbers.take(count).map(Data::Int).collect())
}

/// Returns the value at a path of keys: `dig "a" "b" default map`.
fn dig(args: &Args<'_>) -> FunctionResult {
    let [keys @ .., default, _] = args.values else { return Err(args.error("requires keys, a default and a map")) };
    let mut at = Data::Map(args.map(args.values.len() - 1)?);
    for index in 0..keys.len() {
        match at.field(args.text(index)?) {
            Some(inner) => at = inner.clone(),
            None => return Ok(default.clone()),
        }
    }
    Ok(at)
}
