//! Values of others in messages.

/// How many bytes of a value an error text repeats.
pub(crate) const SHOWN_BYTES: usize = 64;

/// Returns the beginning of a value with control characters escaped, for messages.
pub fn shorten(value: &str) -> String {
    let (shown, dots) = match value.len() {
        0..=SHOWN_BYTES => (value, ""),
        _ => (&value[..value.floor_char_boundary(SHOWN_BYTES)], "..."),
    };
    let mut text = String::new();
    for c in shown.chars() {
        if c.is_control() { text.extend(c.escape_debug()) } else { text.push(c) }
    }
    text + dots
}
