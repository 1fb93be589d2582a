//! Functions for strings. As in sprig, the string itself is the last argument, for pipelines.

use gotmpl::Value as Data;

use super::{Args, Function, FunctionResult, VARIADIC, builtin, flag, limits, list, owned, strval, text};

pub(super) const ALL: [Function; 44] = [
    ("quote", 0, VARIADIC, |args| each(args, |value| quoted(&strval(value)))),
    ("squote", 0, VARIADIC, |args| each(args, |value| Ok(format!("'{}'", strval(value))))),
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
    // The Go library takes bytes for characters.
    ("nospace", 1, 1, |args| Ok(owned(args.text(0)?.bytes().map(char::from).filter(|c| !c.is_whitespace()).collect()))),
    ("contains", 2, 2, |args| flag(args.text(1)?.contains(args.text(0)?))),
    ("hasPrefix", 2, 2, |args| flag(args.text(1)?.starts_with(args.text(0)?))),
    ("hasSuffix", 2, 2, |args| flag(args.text(1)?.ends_with(args.text(0)?))),
    ("trunc", 2, 2, trunc),
    ("abbrev", 2, 2, abbrev),
    ("substr", 3, 3, substr),
    ("repeat", 2, 2, |args| {
        let (times, repeated) = (args.size(0)?, args.text(1)?);
        limits::check_size(times.saturating_mul(repeated.len()))?;
        Ok(owned(repeated.repeat(times)))
    }),
    ("replace", 3, 3, |args| {
        let (old, new, whole) = (args.text(0)?, args.text(1)?, args.text(2)?);
        limits::check_size(whole.len().saturating_add(whole.matches(old).count().saturating_mul(new.len())))?;
        Ok(owned(whole.replace(old, new)))
    }),
    ("indent", 2, 2, |args| indented(args, args.text(1)?)),
    ("nindent", 2, 2, |args| Ok(owned(format!("\n{}", strval(&indented(args, args.text(1)?)?))))),
    ("cat", 0, VARIADIC, |args| {
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
        limits::check_size(texts.iter().map(|part| part.len() + separator.len()).sum())?;
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
    ("sha256sum", 1, 1, |args| {
        use sha2::Digest as _;
        Ok(owned(format!("{:x}", sha2::Sha256::digest(args.text(0)?))))
    }),
    ("b64enc", 1, 1, |args| {
        use base64::Engine as _;
        Ok(owned(base64::engine::general_purpose::STANDARD.encode(args.text(0)?)))
    }),
    ("b64dec", 1, 1, |args| {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(args.text(0)?)
            .map_err(|error| args.error(error.to_string()))?;
        String::from_utf8(bytes).map(owned).map_err(|_| args.error("the decoded bytes are not UTF-8"))
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

/// Joins the arguments that are not nil, formatted by `format`, with spaces.
fn each(args: &Args<'_>, format: impl Fn(&Data) -> Result<String, gotmpl::TemplateError>) -> FunctionResult {
    let shown: Result<Vec<String>, _> =
        args.values.iter().filter(|value| !matches!(value, Data::Nil)).map(format).collect();
    Ok(owned(shown?.join(" ")))
}

fn trim_all(args: &Args<'_>) -> FunctionResult {
    let cut: Vec<char> = args.text(0)?.chars().collect();
    Ok(text(args.text(1)?.trim_matches(cut.as_slice())))
}

/// Returns the first `n` bytes, or the last ones for a negative number. Unlike in Go, no character is split.
fn trunc(args: &Args<'_>) -> FunctionResult {
    let (number, whole) = (args.int(0)?, args.text(1)?);
    let size = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX).min(whole.len());
    Ok(text(if number < 0 {
        &whole[whole.ceil_char_boundary(whole.len() - size)..]
    } else {
        &whole[..whole.floor_char_boundary(size)]
    }))
}

fn abbrev(args: &Args<'_>) -> FunctionResult {
    let (width, whole) = (args.size(0)?, args.text(1)?);
    if width < 4 || whole.len() <= width {
        return Ok(text(whole));
    }
    Ok(owned(format!("{}...", &whole[..whole.floor_char_boundary(width - 3)])))
}

fn substr(args: &Args<'_>) -> FunctionResult {
    let (start, end, whole) = (args.int(0)?, args.int(1)?, args.text(2)?);
    let boundary =
        |number: i64, default: usize| usize::try_from(number).map_or(default, |index| whole.floor_char_boundary(index));
    let (start, end) = (boundary(start, 0), boundary(end, whole.len()));
    Ok(text(whole.get(start..end).unwrap_or_default()))
}

/// Indents every line.
fn indented(args: &Args<'_>, whole: &str) -> FunctionResult {
    let spaces = args.size(0)?;
    limits::check_size(whole.len().saturating_add((whole.matches('\n').count() + 1).saturating_mul(spaces)))?;
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
        // As in Go's `strings.Title`.
        starts = if c.is_ascii() { !c.is_ascii_alphanumeric() && c != '_' } else { c.is_whitespace() };
    }
    out
}

/// Quotes as `%q` of Go does.
fn quoted(text: &str) -> Result<String, gotmpl::TemplateError> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    builtin("printf", &[super::text("%q"), super::text(text)]).map(|quoted| strval(&quoted))
}

/// Splits an identifier of any style into words in lower case.
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
