//! Applies trim markers and removes comments by Go's rules, before the engine parses a template.
//!
//! The engine (gotmpl 0.6.1) trims after `{{- /* comment */}}`, although in Go only `-}}` does, and trims all Unicode white space,
//! although Go trims spaces, tabs and line ends only (`text/template/parse/lex.go`). The resolved text has no markers and comments;
//! every action stays on its line.

/// White space that Go's lexer trims.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const LEFT: &str = "{{";
const RIGHT: &str = "}}";

/// Returns the text with trim markers applied and comments removed.
///
/// # Errors
/// A comment or an `end` that Go rejects, with its line. The engine finds all other errors.
pub(super) fn resolve(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    // Line ends removed since the last action; they are inserted into the next one.
    let mut removed = 0;
    let (mut rest, mut trim_start) = (text, false);
    let mut depth = 0_usize;
    let line_at = |rest: &str| 1 + text[..text.len() - rest.len()].matches('\n').count();
    loop {
        let (literal, action) = match rest.find(LEFT) {
            Some(at) => (&rest[..at], Some(&rest[at + LEFT.len()..])),
            None => (rest, None),
        };
        let mut kept = if trim_start { literal.trim_start_matches(SPACE) } else { literal };
        let inside = action.map(|action| match action.strip_prefix('-').filter(|next| next.starts_with(SPACE)) {
            Some(next) => (true, &next[1..]),
            None => (false, action),
        });
        if let Some((true, _)) = inside {
            kept = kept.trim_end_matches(SPACE);
        }
        removed += literal.matches('\n').count() - kept.matches('\n').count();
        push_literal(&mut out, kept);
        let Some((_, body)) = inside else {
            // The engine closes some blocks at the end of the text.
            return if depth == 0 { Ok(out) } else { Err(format!("line {}: unexpected end of the text", line_at(""))) };
        };
        if let Some(comment) = body.strip_prefix("/*") {
            let reject = |reason| Err(format!("line {}: {reason}", line_at(body)));
            let Some((_, after)) = comment.split_once("*/") else { return reject("unclosed comment") };
            let Some((end, trims)) = closing(after) else { return reject("comment ends before closing delimiter") };
            rest = &after[end..];
            removed += body[..body.len() - rest.len()].matches('\n').count();
            trim_start = trims;
            continue;
        }
        if body.trim_start_matches(SPACE).starts_with("/*") {
            return Err(format!("line {}: unexpected \"/\" in command", line_at(body)));
        }
        if out.ends_with('{') {
            escape_brace(&mut out);
        }
        out.push_str(LEFT);
        out.extend(std::iter::repeat_n('\n', std::mem::take(&mut removed)));
        out.push(' ');
        let Some((content, end, trims)) = action_end(body) else {
            out.push_str(body);
            return Ok(out);
        };
        // The engine ends the template at an `end` too many.
        match body[..content].split_whitespace().next() {
            Some("if" | "range" | "with" | "define" | "block") => depth += 1,
            Some(keyword @ ("else" | "end")) if depth == 0 => {
                return Err(format!("line {}: unexpected {{{{{keyword}}}}}", line_at(body)));
            }
            Some("end") => depth -= 1,
            _ => {}
        }
        out.push_str(&body[..content]);
        out.push(' ');
        out.push_str(RIGHT);
        rest = &body[end..];
        trim_start = trims;
    }
}

/// Appends literal text; a brace that would form a delimiter with it is printed by an action.
fn push_literal(out: &mut String, literal: &str) {
    if literal.starts_with('{') && out.ends_with('{') {
        escape_brace(out);
    }
    out.push_str(literal);
}

/// Replaces the brace at the end by an action that prints it.
fn escape_brace(out: &mut String) {
    out.pop();
    out.push_str("{{ `{` }}");
}

/// Returns the length of the closing delimiter at the start of a text, and whether it trims what follows.
fn closing(text: &str) -> Option<(usize, bool)> {
    if text.starts_with(RIGHT) {
        return Some((RIGHT.len(), false));
    }
    let marked = text.strip_prefix(SPACE)?.strip_prefix('-')?;
    marked.starts_with(RIGHT).then_some((2 + RIGHT.len(), true))
}

/// Returns where the content of an action ends, where the action ends, and whether it trims what follows.
fn action_end(body: &str) -> Option<(usize, usize, bool)> {
    let bytes = body.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if body.is_char_boundary(at)
            && let Some((length, trims)) = closing(&body[at..])
        {
            return Some((at, at + length, trims));
        }
        at = match bytes[at] {
            quote @ (b'"' | b'\'') => quoted_end(bytes, at + 1, quote)?,
            b'`' => at + 2 + bytes[at + 1..].iter().position(|byte| *byte == b'`')?,
            _ => at + 1,
        };
    }
    None
}

/// Returns the position after the closing quote of a literal whose content starts at `at`.
fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> Option<usize> {
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_without_closing_marker_keeps_following_space() {
        assert_eq!(resolve("a\n  {{- /* c */}}\n  b").as_deref(), Ok("a\n  b"));
        assert_eq!(resolve("a\n  {{- /* c */ -}}\n  b").as_deref(), Ok("ab"));
        assert_eq!(resolve("a {{/* c */}} b").as_deref(), Ok("a  b"));
    }

    #[test]
    fn actions_keep_their_line() {
        assert_eq!(resolve("a\n\n{{- .X -}}\n\n b {{ .Y }}").as_deref(), Ok("a{{\n\n .X }}b {{\n\n  .Y  }}"));
        assert_eq!(resolve("{{/* 1\n2 */}}{{ .X }}").as_deref(), Ok("{{\n  .X  }}"));
    }

    #[test]
    fn braces_that_trimming_joins_do_not_form_delimiters() {
        assert_eq!(resolve("a: {\n{{- 1 }}").as_deref(), Ok("a: {{ `{` }}{{\n 1  }}"));
        assert_eq!(resolve("{\n{{- /* c */ -}}\n{x").as_deref(), Ok("{{ `{` }}{x"));
    }

    #[test]
    fn delimiters_inside_literals_end_nothing() {
        let text = "{{ print \"}} \\\" -}}\" `}}` '}' }}\n{{- 1 }}";
        assert_eq!(resolve(text).as_deref(), Ok("{{  print \"}} \\\" -}}\" `}}` '}'  }}{{\n 1  }}"));
    }

    #[test]
    fn only_go_space_is_trimmed() {
        assert_eq!(resolve("a\u{a0}{{- 1 }}").as_deref(), Ok("a\u{a0}{{ 1  }}"));
        assert_eq!(resolve("{{-1 }}").as_deref(), Ok("{{ -1  }}"));
    }

    #[test]
    fn comments_that_go_rejects_are_rejected() {
        assert!(resolve("x\n{{ /* c */}}").is_err_and(|error| error.starts_with("line 2: ")));
        assert!(resolve("{{/* c */ }}").is_err());
        assert!(resolve("{{/* c").is_err());
    }

    #[test]
    fn end_without_a_block_is_rejected() {
        assert_eq!(resolve("{{if 1}}{{end}}\n{{- end}}x"), Err("line 2: unexpected {{end}}".to_owned()));
        assert_eq!(resolve("{{else}}"), Err("line 1: unexpected {{else}}".to_owned()));
        assert_eq!(resolve("{{if 1}}\nx"), Err("line 2: unexpected end of the text".to_owned()));
    }
}
