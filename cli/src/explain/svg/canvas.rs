//! Draws shapes and text as SVG, and tracks their extent.

use std::fmt::Write as _;

#[derive(Debug, Default)]
pub(super) struct Canvas {
    body: String,
    width: f64,
    height: f64,
}

/// Average width of a character in the monospace and the proportional font, in pixels at 12 pixels.
pub(super) const MONO: f64 = 7.25;
pub(super) const SANS: f64 = 6.3;

impl Canvas {
    pub(super) fn height(&self) -> f64 {
        self.height
    }

    fn reach(&mut self, right: f64, bottom: f64) {
        (self.width, self.height) = (self.width.max(right), self.height.max(bottom));
    }

    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), radius: f64) {
        let _ = write!(
            self.body,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="{radius}"/>"#
        );
        self.reach(x + width, y + height);
    }

    /// Draws a line of text; `y` is its base line.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let _ = write!(self.body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escaped(text));
        self.reach(x, y);
    }

    /// Adds a tooltip to what `draw` draws.
    pub(super) fn hint(&mut self, hint: &str, draw: impl FnOnce(&mut Self)) {
        let _ = write!(self.body, "<g><title>{}</title>", escaped(hint));
        draw(self);
        self.body.push_str("</g>");
    }

    pub(super) fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        let _ = write!(self.body, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}"/>"#);
    }

    pub(super) fn curve(&mut self, class: &str, (x, y): (f64, f64), (to_x, to_y): (f64, f64)) {
        let middle = f64::midpoint(x, to_x);
        let _ = write!(
            self.body,
            r#"<path class="{class}" d="M{x:.1} {y:.1}C{middle:.1} {y:.1} {middle:.1} {to_y:.1} {to_x:.1} {to_y:.1}"/>"#
        );
    }

    pub(super) fn down(&mut self, class: &str, x: f64, from: f64, to: f64) {
        let _ = write!(self.body, r#"<path class="{class}" d="M{x:.1} {from:.1}V{to:.1}"/>"#);
    }

    /// Draws another canvas at a position.
    pub(super) fn place(&mut self, x: f64, y: f64, other: &Self) {
        let _ = write!(self.body, r#"<g transform="translate({x:.1} {y:.1})">{}</g>"#, other.body);
        self.reach(x + other.width, y + other.height);
    }

    /// Returns the SVG document.
    pub(super) fn document(&self, title: &str, style: &str, margin: f64) -> String {
        let (width, height) = ((self.width + margin).ceil(), (self.height + margin).ceil());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
             <title>{}</title><style>{style}</style><rect class=\"paper\" width=\"100%\" height=\"100%\"/>{}</svg>\n",
            escaped(title),
            self.body
        )
    }
}

/// Breaks a text at spaces into lines of at most `max` characters; longer words are cut.
pub(super) fn wrapped(text: &str, max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let used = lines.last().map_or(0, |line| line.chars().count());
            let gap = usize::from(used > 0);
            if used + gap + rest.len().min(max) > max {
                lines.push(String::new());
                continue;
            }
            let piece: String = rest.drain(..rest.len().min(max)).collect();
            if let Some(line) = lines.last_mut() {
                line.extend([if gap == 1 { " " } else { "" }, &piece]);
            }
        }
    }
    lines
}

/// Escapes text for XML 1.0; characters that XML cannot contain become spaces.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_spaces_and_long_words_are_cut() {
        assert_eq!(wrapped("a bc d", 4), ["a bc", "d"]);
        assert_eq!(wrapped("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrapped("", 4), [""]);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<a & \"b\">\u{1}"), "&lt;a &amp; &quot;b&quot;&gt; ");
    }
}
