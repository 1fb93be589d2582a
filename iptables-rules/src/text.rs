//! Foreign values: as settings, and in messages.

/// Bytes of a value that a message shows.
pub(crate) const MAX_SHOWN_BYTES: usize = 64;

/// Parses a boolean as Go's `strconv.ParseBool` does, which Istio uses for annotations and variables.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Truncates a value for a message and escapes its control characters.
pub fn truncate(value: &str) -> String {
    let (shown, dots) = match value.len() {
        0..=MAX_SHOWN_BYTES => (value, ""),
        _ => (&value[..value.floor_char_boundary(MAX_SHOWN_BYTES)], "..."),
    };
    let mut text = String::new();
    for c in shown.chars() {
        if c.is_control() { text.extend(c.escape_debug()) } else { text.push(c) }
    }
    text + dots
}
