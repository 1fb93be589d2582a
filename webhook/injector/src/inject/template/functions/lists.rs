//! Lists and maps. Nothing changes in place; what sprig changes in place is not offered.

use gotmpl::Value as Data;

use super::{Answer, Args, Function, MANY, entries, flag, list, meter, owned, strval, text};

pub(super) const ALL: [Function; 30] = [
    ("list", 0, MANY, |args| list(args.values.to_vec())),
    ("tuple", 0, MANY, |args| list(args.values.to_vec())),
    ("first", 1, 1, |args| Ok(args.list(0)?.first().cloned().unwrap_or(Data::Nil))),
    ("last", 1, 1, |args| Ok(args.list(0)?.last().cloned().unwrap_or(Data::Nil))),
    ("rest", 1, 1, |args| list(args.list(0)?.iter().skip(1).cloned().collect())),
    ("initial", 1, 1, |args| list(args.list(0)?.split_last().map_or_else(Vec::new, |(_, rest)| rest.to_vec()))),
    ("append", 2, 2, append),
    ("push", 2, 2, append),
    ("prepend", 2, 2, |args| list([&args.values[1..], args.list(0)?].concat())),
    ("concat", 0, MANY, |args| {
        let lists: Result<Vec<&[Data]>, _> = (0..args.values.len()).map(|index| args.list(index)).collect();
        list(lists?.concat())
    }),
    ("reverse", 1, 1, |args| list(args.list(0)?.iter().rev().cloned().collect())),
    ("uniq", 1, 1, |args| {
        let mut seen = std::collections::BTreeSet::new();
        list(args.list(0)?.iter().filter(|item| seen.insert((item.type_name(), strval(item)))).cloned().collect())
    }),
    ("without", 1, MANY, |args| {
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
    ("dict", 0, MANY, |args| {
        let pairs = args.values.chunks(2);
        entries(pairs.map(|pair| (strval(&pair[0]).into(), pair.get(1).cloned().unwrap_or_else(|| text("")))))
    }),
    ("get", 2, 2, |args| Ok(args.map(0)?.get(args.text(1)?).cloned().unwrap_or_else(|| text("")))),
    ("hasKey", 2, 2, |args| flag(args.map(0)?.contains_key(args.text(1)?))),
    ("keys", 1, MANY, |args| {
        let mut keys = Vec::new();
        for index in 0..args.values.len() {
            keys.extend(args.map(index)?.keys().map(|key| text(key)));
        }
        list(keys)
    }),
    ("values", 1, 1, |args| list(args.map(0)?.values().cloned().collect())),
    ("pluck", 1, MANY, |args| {
        let key = args.text(0)?;
        let mut found = Vec::new();
        for index in 1..args.values.len() {
            found.extend(args.map(index)?.get(key).cloned());
        }
        list(found)
    }),
    ("pick", 1, MANY, |args| {
        let keys = names(args)?;
        entries(
            args.map(0)?
                .iter()
                .filter(|(key, _)| keys.contains(&&***key))
                .map(|(key, value)| (key.clone(), value.clone())),
        )
    }),
    ("omit", 1, MANY, |args| {
        let keys = names(args)?;
        entries(
            args.map(0)?
                .iter()
                .filter(|(key, _)| !keys.contains(&&***key))
                .map(|(key, value)| (key.clone(), value.clone())),
        )
    }),
    ("deepCopy", 1, 1, |args| Ok(args.values[0].clone())),
    ("dig", 3, MANY, dig),
    ("chunk", 2, 2, |args| {
        let size = args.size(0)?.max(1);
        list(args.list(1)?.chunks(size).map(|chunk| Data::List(chunk.into())).collect())
    }),
];

fn append(args: &Args<'_>) -> Answer {
    list([args.list(0)?, &args.values[1..]].concat())
}

/// The arguments after the first, which are names of keys.
fn names<'a>(args: &Args<'a>) -> Result<Vec<&'a str>, gotmpl::TemplateError> {
    (1..args.values.len()).map(|index| args.text(index)).collect()
}

/// Numbers from `first`, each `step` further, before `end`.
fn until(first: i64, end: i64, step: i64) -> Answer {
    if step == 0 || (end > first) != (step > 0) {
        return list(Vec::new());
    }
    let count = usize::try_from(end.abs_diff(first).div_ceil(step.unsigned_abs())).unwrap_or(usize::MAX);
    meter::room_for(count.saturating_mul(16))?;
    let numbers = std::iter::successors(Some(first), |number| number.checked_add(step));
    list(numbers.take(count).map(Data::Int).collect())
}

/// `dig "a" "b" default map`: the value at a path of keys.
fn dig(args: &Args<'_>) -> Answer {
    let [keys @ .., default, _] = args.values else { return Err(args.error("takes keys, a default and a map")) };
    let mut at = Data::Map(args.map(args.values.len() - 1)?);
    for index in 0..keys.len() {
        match at.field(args.text(index)?) {
            Some(inner) => at = inner.clone(),
            None => return Ok(default.clone()),
        }
    }
    Ok(at)
}
