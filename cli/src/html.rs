//! Self-contained HTML pages: the frame and the elements that reports share.
//!
//! A page has no script and loads nothing. It follows the reader's colour scheme, fits a phone, and folds long parts with `<details>`.

use std::fmt::{Display, Write as _};

const STYLE: &str = include_str!("html/style.css");

/// Meaning of a count, a badge or a cell, which is shown by its colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Neutral,
    /// Green: captured, equal, holds.
    Good,
    /// Amber: bypasses the proxy, or undecided.
    Warning,
    /// Red: dropped, failed, violated.
    Bad,
}

impl Tone {
    const fn class(self) -> &'static str {
        match self {
            Self::Neutral => "neutral",
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// Header of a part that can be folded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fold<'a> {
    pub(crate) title: &'a str,
    /// Short verdict behind the title.
    pub(crate) badge: &'a str,
    pub(crate) tone: Tone,
    /// Whether the part is shown at first.
    pub(crate) is_open: bool,
}

/// A cell of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) tone: Tone,
}

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Neutral }
    }
}

/// A page under construction. All texts are escaped; only [`Page::picture`] takes markup.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    body: String,
    /// Style of the pictures, once however many there are.
    picture_style: &'static str,
}

// Writing to a string does not fail, here and below.
impl Page {
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new(), picture_style: "" }
    }

    pub(crate) fn subheading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escaped(text));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// Adds a remark, in a softer colour.
    pub(crate) fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"soft\">{}</p>", escaped(text));
    }

    /// Adds figures with their meaning; those that are zero are left out.
    pub(crate) fn counts(&mut self, counts: &[(usize, &str, Tone)]) {
        self.body.push_str("<ul class=\"counts\">");
        for (count, what, tone) in counts.iter().filter(|(count, ..)| *count > 0) {
            let _ = write!(self.body, "<li class=\"{}\"><b>{count}</b>{}</li>", tone.class(), escaped(what));
        }
        self.body.push_str("</ul>\n");
    }

    pub(crate) fn list<T: Display>(&mut self, items: impl IntoIterator<Item = T>) {
        self.body.push_str("<ul>");
        for item in items {
            let _ = write!(self.body, "<li>{}</li>", escaped(&item.to_string()));
        }
        self.body.push_str("</ul>\n");
    }

    pub(crate) fn table<const N: usize>(&mut self, head: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) {
        let head = head.map(escaped);
        self.body.push_str("<div class=\"wide\"><table><thead><tr>");
        for name in &head {
            let _ = write!(self.body, "<th>{name}</th>");
        }
        self.body.push_str("</tr></thead><tbody>");
        for row in rows {
            self.body.push_str("<tr>");
            for (cell, name) in row.iter().zip(&head) {
                let (tone, text) = (cell.tone.class(), escaped(&cell.text));
                let _ = write!(self.body, "<td class=\"{tone}\" data-label=\"{name}\">{text}</td>");
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Adds a part that can be folded.
    pub(crate) fn fold(&mut self, header: &Fold<'_>, content: impl FnOnce(&mut Self)) {
        let (tone, open) = (header.tone.class(), if header.is_open { " open" } else { "" });
        let _ = write!(self.body, "<details class=\"{tone}\"{open}><summary>{}", escaped(header.title));
        if !header.badge.is_empty() {
            let _ = write!(self.body, " <span class=\"badge {tone}\">{}</span>", escaped(header.badge));
        }
        self.body.push_str("</summary><div>\n");
        content(self);
        self.body.push_str("</div></details>\n");
    }

    /// Adds an SVG element; `style` is that of all pictures of the page.
    pub(crate) fn picture(&mut self, caption: &str, svg: &str, style: &'static str) {
        self.picture_style = style;
        let caption =
            if caption.is_empty() { String::new() } else { format!("<figcaption>{}</figcaption>", escaped(caption)) };
        let _ = writeln!(self.body, "<figure>{caption}<div class=\"wide\">{svg}</div></figure>");
    }

    /// Returns the document; `command` is the one that wrote it, such as `weir diff`.
    pub(crate) fn finish(self, command: &str) -> String {
        let (title, version) = (escaped(&self.title), env!("CARGO_PKG_VERSION"));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{}\
             <footer>{} {version}</footer>\n</main>\n</body>\n</html>\n",
            self.picture_style,
            self.body,
            escaped(command),
        )
    }
}

/// Escapes text for HTML and XML 1.0; characters that XML cannot contain become spaces.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
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
    fn text_is_escaped() {
        assert_eq!(escaped("<a & \"b\" 'c'>\u{1}"), "&lt;a &amp; &quot;b&quot; &#39;c&#39;&gt; ");
    }

    #[test]
    fn no_text_becomes_markup() {
        const HOSTILE: &str = "</title></style><script>alert('1')</script>\"onload=\"x";
        let mut page = Page::new(HOSTILE);
        page.subheading(HOSTILE);
        page.paragraph(HOSTILE);
        page.note(HOSTILE);
        page.counts(&[(1, HOSTILE, Tone::Good), (0, "left out", Tone::Bad)]);
        page.list([HOSTILE]);
        page.table([HOSTILE], [[Cell { text: HOSTILE.to_owned(), tone: Tone::Warning }]]);
        let header = Fold { title: HOSTILE, badge: HOSTILE, tone: Tone::Bad, is_open: true };
        page.fold(&header, |page| page.list([HOSTILE]));
        page.picture(HOSTILE, "<svg/>", ".weir{}");
        let text = page.finish(HOSTILE);
        assert!(!text.contains("<script") && !text.contains("\"onload") && !text.contains("left out"), "{text}");
        assert_eq!(text.matches("&lt;script&gt;").count(), 15, "{text}");
        assert_eq!(text.matches("</style>").count(), 1);
    }
}
