//! Widths of texts, so that none is cut off.
//!
//! The widths are those of DejaVu Sans, which is wider than the other common fonts (Verdana excepted, which has the same), so that a text
//! fits whichever of them the reader has.

/// Widths of the characters from space to tilde, in hundredths of the font's size.
const REGULAR: [u8; 95] = [
    32, 41, 46, 84, 64, 96, 78, 28, 40, 40, 50, 84, 32, 37, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 34, 34, 84,
    84, 84, 54, 100, 69, 69, 70, 78, 64, 58, 78, 76, 30, 30, 66, 56, 87, 75, 79, 61, 79, 70, 64, 62, 74, 69, 99, 69,
    62, 69, 40, 34, 40, 84, 50, 50, 62, 64, 55, 64, 62, 36, 64, 64, 28, 28, 58, 28, 98, 64, 62, 64, 64, 42, 53, 40, 64,
    60, 82, 60, 60, 53, 64, 34, 64, 84,
];
const BOLD: [u8; 95] = [
    35, 46, 53, 84, 70, 101, 88, 31, 46, 46, 53, 84, 38, 42, 38, 37, 70, 70, 70, 70, 70, 70, 70, 70, 70, 70, 40, 40,
    84, 84, 84, 59, 100, 78, 77, 74, 84, 69, 69, 83, 84, 38, 38, 78, 64, 100, 84, 86, 74, 86, 78, 73, 69, 82, 78, 111,
    78, 73, 73, 46, 37, 46, 84, 50, 50, 68, 72, 60, 72, 68, 44, 72, 72, 35, 35, 67, 35, 105, 72, 69, 72, 72, 50, 60,
    48, 72, 66, 93, 65, 66, 59, 72, 37, 72, 84,
];
/// Width of a character of a monospace font, likewise.
const MONOSPACE: u8 = 62;
/// Width of any other character, such as a Chinese one.
const OTHER: u8 = 105;

/// Font of a text, by the classes that the style names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    /// In pixels.
    size: f64,
    /// `None` for monospace.
    widths: Option<&'static [u8; 95]>,
    /// Space between letters, in pixels.
    spacing: f64,
}

impl Font {
    pub(super) fn of(class: &str) -> Self {
        let has = |name: &str| class.split(' ').any(|word| word == name);
        let size = match () {
            () if has("name") => 22.0,
            () if has("onfill") => 15.0,
            () if has("chain") => 13.0,
            () if has("small") || has("hook") => 11.0,
            () => 12.0,
        };
        let is_bold = ["name", "onfill", "chain", "hook", "decisive"].iter().any(|name| has(name));
        let widths = match () {
            () if has("rule") => None,
            () if is_bold => Some(&BOLD),
            () => Some(&REGULAR),
        };
        Self { size, widths, spacing: if has("hook") { 1.0 } else { 0.0 } }
    }

    /// Returns the width of a text in pixels.
    pub(super) fn width(&self, text: &str) -> f64 {
        text.chars().map(|c| self.advance(c)).sum()
    }

    fn advance(&self, c: char) -> f64 {
        let index = u32::from(c).checked_sub(u32::from(' ')).and_then(|index| usize::try_from(index).ok());
        let hundredths = match (self.widths, index) {
            (None, Some(0..95)) => MONOSPACE,
            (Some(widths), Some(index)) => widths.get(index).copied().unwrap_or(OTHER),
            _ => OTHER,
        };
        f64::from(hundredths) / 100.0 * self.size + self.spacing
    }

    /// Breaks a text at spaces into lines that are at most this wide; longer words are cut.
    pub(super) fn wrap(&self, text: &str, width: f64) -> Vec<String> {
        let mut lines = vec![String::new()];
        let mut used = 0.0;
        let start = |lines: &mut Vec<String>, used: &mut f64| {
            lines.push(String::new());
            *used = 0.0;
        };
        for word in text.split_whitespace() {
            let gap = if used > 0.0 { self.advance(' ') } else { 0.0 };
            let needed = self.width(word);
            if used > 0.0 && used + gap + needed > width {
                start(&mut lines, &mut used);
            } else if gap > 0.0 {
                push(&mut lines, ' ');
                used += gap;
            }
            for c in word.chars() {
                if used > 0.0 && used + self.advance(c) > width {
                    start(&mut lines, &mut used);
                }
                push(&mut lines, c);
                used += self.advance(c);
            }
        }
        lines
    }
}

fn push(lines: &mut [String], c: char) {
    if let Some(line) = lines.last_mut() {
        line.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_spaces_and_long_words_are_cut() {
        let font = Font::of("rule");
        let four = font.width("abcd") + 0.01;
        assert_eq!(font.wrap("a bc d", four), ["a bc", "d"]);
        assert_eq!(font.wrap("abcdefghij k", four), ["abcd", "efgh", "ij k"]);
        assert_eq!(font.wrap("", four), [""]);
    }

    #[test]
    fn no_line_is_wider_than_asked() {
        for class in ["", "rule", "small soft", "onfill", "name", "hook"] {
            let font = Font::of(class);
            let lines =
                font.wrap("MMMMMMMMMMMMMMMMMMMMMMMM WWWWW iiiiiiiii 网络网络网络网络网络 -A ISTIO_OUTPUT", 90.0);
            assert!(lines.iter().all(|line| font.width(line) <= 90.0), "{class}: {lines:?}");
        }
    }
}
