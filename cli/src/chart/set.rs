//! Parses Helm's `--set`: `a.b=c,d[0].e=f,g={x,y}`.
//!
//! A backslash escapes the next character (`\.`, `\,`, `\=`). Values that look like a number, `true`, `false` or `null` have that type,
//! except with `--set-string`; `null` removes a key.

use serde_json::{Map, Value};

/// Limit of list elements, as in Helm.
const MAX_LIST_LENGTH: usize = 65_536;

#[derive(Debug, Clone, PartialEq, Eq)]
enum PathSegment {
    Key(String),
    Index(usize),
}

/// Applies the settings of one option to the values.
///
/// # Errors
/// A setting is malformed; the values may be partly changed then.
pub(super) fn apply(values: &mut Value, text: &str, as_text: bool) -> Result<(), String> {
    for setting in split(text, ',')? {
        let at = find(&setting, '=').ok_or_else(|| format!("{setting:?} has no value; expected PATH=VALUE"))?;
        let path = path(&setting[..at])?;
        put(values, &path, value(&setting[at + 1..], as_text)?)?;
    }
    Ok(())
}

/// Splits at a character, except after a backslash or between braces.
fn split(text: &str, at: char) -> Result<Vec<String>, String> {
    let (mut parts, mut part, mut depth) = (Vec::new(), String::new(), 0_usize);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                part.push(c);
                part.extend(chars.next());
                continue;
            }
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1).ok_or("unmatched closing brace")?,
            _ => {}
        }
        if c == at && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    if depth > 0 {
        return Err("unmatched opening brace".to_owned());
    }
    parts.push(part);
    Ok(parts)
}

/// Finds a character that has no backslash before it.
fn find(text: &str, wanted: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let found = !escaped && c == wanted;
        escaped = !escaped && c == '\\';
        found.then_some(at)
    })
}

fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn path(text: &str) -> Result<Vec<PathSegment>, String> {
    let mut segments = Vec::new();
    for part in split(text, '.')? {
        let open = find(&part, '[').unwrap_or(part.len());
        let key = unescaped(&part[..open]);
        if key.is_empty() {
            return Err(format!("path {text:?} has an empty name"));
        }
        segments.push(PathSegment::Key(key));
        let mut rest = &part[open..];
        while let Some(inner) = rest.strip_prefix('[') {
            let (index, after) =
                inner.split_once(']').ok_or_else(|| format!("path {text:?} has no closing bracket"))?;
            let index = index.parse().ok().filter(|index| *index < MAX_LIST_LENGTH);
            segments.push(PathSegment::Index(index.ok_or_else(|| format!("path {text:?} has an invalid index"))?));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(format!("path {text:?} continues after a bracket"));
        }
    }
    Ok(segments)
}

fn value(text: &str, as_text: bool) -> Result<Value, String> {
    if let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        if inner.is_empty() {
            return Ok(Value::Array(Vec::new()));
        }
        return split(inner, ',')?.iter().map(|item| value(item, as_text)).collect();
    }
    let plain = unescaped(text);
    if as_text {
        return Ok(plain.into());
    }
    Ok(match plain.as_str() {
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        "0" => 0.into(),
        // Not 007, which is rather a name than a number.
        number if !number.starts_with('0') => number.parse::<i64>().map_or_else(|_| plain.clone().into(), Value::from),
        _ => plain.into(),
    })
}

fn put(values: &mut Value, path: &[PathSegment], value: Value) -> Result<(), String> {
    let Some((segment, rest)) = path.split_first() else {
        *values = value;
        return Ok(());
    };
    match segment {
        PathSegment::Key(key) => {
            if values.is_null() {
                *values = Value::Object(Map::new());
            }
            let fields =
                values.as_object_mut().ok_or_else(|| format!("{key:?} is set in a value that is not a map"))?;
            if rest.is_empty() && value.is_null() {
                fields.remove(key);
                return Ok(());
            }
            put(fields.entry(key.as_str()).or_insert(Value::Null), rest, value)
        }
        PathSegment::Index(index) => {
            if values.is_null() {
                *values = Value::Array(Vec::new());
            }
            let items =
                values.as_array_mut().ok_or_else(|| format!("[{index}] is set in a value that is not a list"))?;
            if items.len() <= *index {
                items.resize(index + 1, Value::Null);
            }
            put(&mut items[*index], rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(text: &str) -> Result<Value, String> {
        let mut values = json!({"a": {"b": 1, "list": ["x"]}, "n": "text"});
        apply(&mut values, text, false).map(|()| values)
    }

    #[test]
    fn paths_lists_escapes_and_types_are_those_of_helm() {
        for (text, at, wanted) in [
            ("a.b=2", "/a/b", json!(2)),
            ("a.c=true,a.b=no", "/a/c", json!(true)),
            ("a.c=", "/a/c", json!("")),
            ("a.c=1.5", "/a/c", json!("1.5")),
            ("a.c=007", "/a/c", json!("007")),
            ("a.c=-3", "/a/c", json!(-3)),
            ("a.list={x,y,1}", "/a/list", json!(["x", "y", 1])),
            ("a.list={}", "/a/list", json!([])),
            ("a.list[2].k=v", "/a/list", json!(["x", null, {"k": "v"}])),
            (r"a.x\.y/z=w", "/a/x.y~1z", json!("w")),
            (r"n=a\,b=c", "/n", json!("a,b=c")),
            (r"n=a\\b", "/n", json!(r"a\b")),
            ("deep.er.still=x", "/deep/er/still", json!("x")),
            ("n=é", "/n", json!("é")),
        ] {
            let values = set(text).unwrap();
            assert_eq!(values.pointer(at), Some(&wanted), "{text}");
        }
        assert_eq!(set("a=null").unwrap(), json!({"n": "text"}));
        let mut values = json!({});
        apply(&mut values, "tag=1,on=true", true).unwrap();
        assert_eq!(values, json!({"tag": "1", "on": "true"}));
    }

    #[test]
    fn malformed_settings_are_errors() {
        for text in [
            "a",
            "=x",
            "a..b=1",
            "a[x]=1",
            "a.list[99999999]=1",
            "a[0=1",
            "a.list[0]x=1",
            "n.k=1",
            "a[0]=1",
            "a={x",
            "a=x}",
        ] {
            assert!(set(text).is_err(), "{text}");
        }
    }
}
