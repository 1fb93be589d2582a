//! Draws shapes and text as SVG, and tracks their extent.

use std::fmt::Write as _;

use super::font::Font;
use crate::html::escaped;

#[derive(Debug, Default)]
pub(super) struct Canvas {
    body: String,
    width: f64,
    height: f64,
}

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
        self.reach(x + Font::of(class).width(text), y + 4.0);
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

    /// Draws an arrow to the right.
    pub(super) fn curve(&mut self, class: &str, (x, y): (f64, f64), (to_x, to_y): (f64, f64)) {
        let _ = write!(self.body, r#"<path class="{class} head" d="M{to_x:.1} {to_y:.1}l-8 -4v8z"/>"#);
        let to_x = to_x - 7.0;
        let middle = f64::midpoint(x, to_x);
        let _ = write!(
            self.body,
            r#"<path class="{class}" d="M{x:.1} {y:.1}C{middle:.1} {y:.1} {middle:.1} {to_y:.1} {to_x:.1} {to_y:.1}"/>"#
        );
    }

    /// Draws an arrow down.
    pub(super) fn down(&mut self, class: &str, x: f64, from: f64, to: f64) {
        let _ = write!(self.body, r#"<path class="{class} head" d="M{x:.1} {to:.1}l-4.5 -9h9z"/>"#);
        let to = to - 8.0;
        let _ = write!(self.body, r#"<path class="{class}" d="M{x:.1} {from:.1}V{to:.1}"/>"#);
    }

    /// Draws another canvas at a position.
    pub(super) fn place(&mut self, x: f64, y: f64, other: &Self) {
        let _ = write!(self.body, r#"<g transform="translate({x:.1} {y:.1})">{}</g>"#, other.body);
        self.reach(x + other.width, y + other.height);
    }

    /// Returns the SVG element; `style` may be empty in a page that has it already.
    pub(super) fn element(&self, title: &str, style: &str, margin: f64) -> String {
        let (width, height) = ((self.width + margin).ceil(), (self.height + margin).ceil());
        let style = if style.is_empty() { String::new() } else { format!("<style>{style}</style>") };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"weir\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\"><title>{}</title>{style}<rect class=\"paper\" width=\"100%\" height=\"100%\"/>{}</svg>",
            escaped(title),
            self.body
        )
    }
}
