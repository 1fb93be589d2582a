//! Texts. Order of arguments as in sprig, for pipelines: the text itself is last.

use gotmpl::Value as Data;

use super::{Answer, Args, Function, MANY, builtin, flag, list, meter, owned, strval, text};

pub(super) const ALL: [Function; 43] = [
    ("quote", 0, MANY, |args| {
        each(args, |value| builtin("printf", &[text("%q"), owned(strval(value))]).map(|quoted| strval(&quoted)))
    }),
    ("squote", 0, MANY, |args| each(args, |value| Ok(format!("'{}'", strval(value))))),
    ("trim", 1, 1, |args| Ok(text(args.text(0)?.trim()))),
    ("trimAll", 2, 2, trim_all),
    ("trimPrefix", 2, 2, |args| {
        let whole = args.text(1)?;
        Ok(text(whole.strip_prefix(args.text(0)?).unwrap_or(whole)))
    }),
    ("trimSuffix", 2, 2, |args| {
        let whole = args.text(1)?;
        Ok(text(whole.strip_suffix(args.text(0)?).unwrap_or(whole)))
    }),
    ("upper", 1, 1, |args| Ok(owned(args.text(0)?.to_uppercase()))),
    ("lower", 1, 1, |args| Ok(owned(args.text(0)?.to_lowercase()))),
    ("toLower", 1, 1, |args| Ok(owned(args.text(0)?.to_lowercase()))),
    ("title", 1, 1, |args| Ok(owned(title(args.text(0)?)))),
    ("untitle", 1, 1, |args| {
        let mut chars = args.text(0)?.chars();
        Ok(owned(chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())))
    }),
    ("nospace", 1, 1, |args| Ok(owned(args.text(0)?.split_whitespace().collect()))),
    ("contains", 2, 2, |args| flag(args.text(1)?.contains(args.text(0)?))),
    ("hasPrefix", 2, 2, |args| flag(args.text(1)?.starts_with(args.text(0)?))),
    ("hasSuffix", 2, 2, |args| flag(args.text(1)?.ends_with(args.text(0)?))),
    ("trunc", 2, 2, trunc),
    ("abbrev", 2, 2, abbrev),
    ("substr", 3, 3, substr),
    ("repeat", 2, 2, |args| {
        let (times, repeated) = (args.size(0)?, args.text(1)?);
        meter::room_for(times.saturating_mul(repeated.len()))?;
        Ok(owned(repeated.repeat(times)))
    }),
    ("replace", 3, 3, |args| {
        let (old, new, whole) = (args.text(0)?, args.text(1)?, args.text(2)?);
        meter::room_for(whole.len().saturating_add(whole.matches(old).count().saturating_mul(new.len())))?;
        Ok(owned(whole.replace(old, new)))
    }),
    ("indent", 2, 2, |args| indented(args, args.text(1)?)),
    ("nindent", 2, 2, |args| Ok(owned(format!("\n{}", strval(&indented(args, args.text(1)?)?))))),
    ("cat", 0, MANY, |args| {
        let texts: Vec<String> = args.values.iter().filter(|value| !matches!(value, Data::Nil)).map(strval).collect();
        Ok(owned(texts.join(" ")))
    }),
    ("join", 2, 2, |args| {
        let separator = args.text(0)?;
        let texts = match &args.values[1] {
            Data::List(items) => items.iter().filter(|item| !matches!(item, Data::Nil)).map(strval).collect(),
            Data::Nil => Vec::new(),
            one => vec![strval(one)],
        };
        meter::room_for(texts.iter().map(|part| part.len() + separator.len()).sum())?;
        Ok(owned(texts.join(separator)))
    }),
    ("split", 2, 2, |args| {
        let parts = args.text(1)?.split(args.text(0)?).enumerate();
        super::entries(parts.map(|(index, part)| (format!("_{index}").into(), text(part))))
    }),
    ("splitn", 3, 3, |args| {
        let parts = args.text(2)?.splitn(args.size(1)?, args.text(0)?).enumerate();
        super::entries(parts.map(|(index, part)| (format!("_{index}").into(), text(part))))
    }),
    ("splitList", 2, 2, |args| list(args.text(1)?.split(args.text(0)?).map(text).collect())),
    ("toString", 1, 1, |args| Ok(owned(strval(&args.values[0])))),
    ("snakecase", 1, 1, |args| Ok(owned(words(args.text(0)?).join("_")))),
    ("kebabcase", 1, 1, |args| Ok(owned(words(args.text(0)?).join("-")))),
    ("camelcase", 1, 1, |args| Ok(owned(words(args.text(0)?).iter().map(|word| title(word)).collect()))),
    ("plural", 3, 3, |args| Ok(text(if args.int(2)? == 1 { args.text(0)? } else { args.text(1)? }))),
    ("b64enc", 1, 1, |args| {
        use base64::Engine as _;
        Ok(owned(base64::engine::general_purpose::STANDARD.encode(args.text(0)?)))
    }),
    ("b64dec", 1, 1, |args| {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(args.text(0)?)
            .map_err(|error| args.error(error.to_string()))?;
        String::from_utf8(bytes).map(owned).map_err(|_| args.error("what is decoded is no text"))
    }),
    ("base", 1, 1, |args| {
        let path = args.text(0)?.trim_end_matches('/');
        Ok(text(path.rsplit('/').next().unwrap_or(path)))
    }),
    ("dir", 1, 1, |args| {
        let path = args.text(0)?;
        Ok(text(match path.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((folder, _)) => folder,
            None => ".",
        }))
    }),
    ("ext", 1, 1, |args| {
        let path = args.text(0)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        Ok(text(name.rfind('.').map_or("", |dot| &name[dot..])))
    }),
    ("isAbs", 1, 1, |args| flag(args.text(0)?.starts_with('/'))),
    ("atoi", 1, 1, |args| Ok(Data::Int(args.text(0)?.parse().unwrap_or(0)))),
    ("fail", 1, 1, |args| Err(gotmpl::TemplateError::Exec(args.text(0)?.to_owned()))),
    ("wrap", 2, 2, |args| Ok(owned(wrapped(args.text(1)?, args.size(0)?, "\n")))),
    ("wrapWith", 3, 3, |args| Ok(owned(wrapped(args.text(2)?, args.size(0)?, args.text(1)?)))),
    ("initials", 1, 1, |args| {
        Ok(owned(args.text(0)?.split_whitespace().filter_map(|word| word.chars().next()).collect()))
    }),
];

/// The arguments that are not nil, each through `show`, with spaces between.
fn each(args: &Args<'_>, show: impl Fn(&Data) -> Result<String, gotmpl::TemplateError>) -> Answer {
    let shown: Result<Vec<String>, _> =
        args.values.iter().filter(|value| !matches!(value, Data::Nil)).map(show).collect();
    Ok(owned(shown?.join(" ")))
}

fn trim_all(args: &Args<'_>) -> Answer {
    let cut: Vec<char> = args.text(0)?.chars().collect();
    Ok(text(args.text(1)?.trim_matches(cut.as_slice())))
}

/// The first `n` bytes, or with a negative number the last. A character is never cut in two; Go does that.
fn trunc(args: &Args<'_>) -> Answer {
    let (number, whole) = (args.int(0)?, args.text(1)?);
    let size = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX).min(whole.len());
    Ok(text(if number < 0 {
        &whole[whole.ceil_char_boundary(whole.len() - size)..]
    } else {
        &whole[..whole.floor_char_boundary(size)]
    }))
}

fn abbrev(args: &Args<'_>) -> Answer {
    let (width, whole) = (args.size(0)?, args.text(1)?);
    if width < 4 || whole.len() <= width {
        return Ok(text(whole));
    }
    Ok(owned(format!("{}...", &whole[..whole.floor_char_boundary(width - 3)])))
}

fn substr(args: &Args<'_>) -> Answer {
    let (start, end, whole) = (args.int(0)?, args.int(1)?, args.text(2)?);
    let place =
        |number: i64, otherwise: usize| usize::try_from(number).map_or(otherwise, |at| whole.floor_char_boundary(at));
    let (start, end) = (place(start, 0), place(end, whole.len()));
    Ok(text(whole.get(start..end).unwrap_or_default()))
}

/// Every line with spaces in front.
fn indented(args: &Args<'_>, whole: &str) -> Answer {
    let spaces = args.size(0)?;
    meter::room_for(whole.len().saturating_add((whole.matches('\n').count() + 1).saturating_mul(spaces)))?;
    let pad = " ".repeat(spaces);
    Ok(owned(pad.clone() + &whole.replace('\n', &format!("\n{pad}"))))
}

fn title(whole: &str) -> String {
    let mut starts = true;
    let mut out = String::with_capacity(whole.len());
    for c in whole.chars() {
        if starts {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        starts = c.is_whitespace();
    }
    out
}

/// The words of a name in any of the usual styles, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = ' ';
    for c in name.chars() {
        let separates = !c.is_alphanumeric();
        if separates || (c.is_uppercase() && !previous.is_uppercase()) {
            words.push(String::new());
        }
        if let (false, Some(word)) = (separates, words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        previous = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

fn wrapped(whole: &str, width: usize, separator: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in whole.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join(separator)
}
