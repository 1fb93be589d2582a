//! Draws explanations as SVG: chains as cards, with the path of a packet highlighted.
//!
//! A document is self-contained, and looks the same in browsers, librsvg and image views of code hosts: plain colours, no scripts,
//! variables or markers. Browsers follow the reader's colour scheme. Several pods are drawn below each other, equal ones once.

mod canvas;
mod font;
mod picture;

use super::explanation::Explanation;
use crate::groups::{self, Group};
use canvas::Canvas;
use font::Font;

/// Colours by meaning, for light and dark schemes. All rules are below `.weir`, because a page may have several pictures.
pub(crate) const STYLE: &str = "\
.weir text{font-family:ui-sans-serif,system-ui,'Segoe UI','Helvetica Neue',Arial,'DejaVu Sans',sans-serif;font-size:12px;fill:#1f2430}\
.weir .paper{fill:#fbfaf7}.weir .card{fill:#ffffff;stroke:#d9d5cc}.weir .hit{fill:#e6eefc}\
.weir text.rule{font-family:ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}\
.weir text.soft{fill:#5f6572}.weir text.small{font-size:11px}.weir text.name{font-size:22px;font-weight:bold}\
.weir text.chain{font-weight:bold;font-size:13px}.weir text.hook{font-size:11px;font-weight:bold;letter-spacing:1px;fill:#5f6572}\
.weir .path{stroke:#1857d6;stroke-width:2.25;fill:none}.weir .way{stroke:#8d8a83;stroke-width:1.25;fill:none}\
.weir .path.head{fill:#1857d6;stroke:none}.weir .way.head{fill:#8d8a83;stroke:none}\
.weir .mark{fill:#1857d6}.weir text.pathname{fill:#1857d6}.weir text.decisive{font-weight:bold}\
.weir .captured{fill:#0b7a4b}.weir .passes{fill:#9a5b00}.weir .dropped{fill:#b3202a}.weir .own{fill:#5f6572}\
.weir text.onfill{fill:#ffffff;font-size:15px;font-weight:bold}\
@media (prefers-color-scheme:dark){\
.weir text{fill:#e8e9ec}.weir .paper{fill:#14161b}.weir .card{fill:#1d2027;stroke:#363b46}.weir .hit{fill:#22314f}\
.weir text.soft,.weir text.hook{fill:#a3a9b6}.weir .path{stroke:#7aa7ff}.weir .way{stroke:#747b89}\
.weir .path.head,.weir .mark,.weir text.pathname{fill:#7aa7ff}.weir .way.head{fill:#747b89}\
.weir .captured{fill:#5ed3a0}.weir .passes{fill:#f2b457}.weir .dropped{fill:#ff7b7b}.weir .own{fill:#a3a9b6}\
.weir text.onfill{fill:#14161b}}";

/// Space around and between pictures, in pixels.
const MARGIN: f64 = 40.0;

/// Draws all explanations in one document.
pub(crate) fn print(explanations: &[Explanation]) -> String {
    let pictures: Vec<Canvas> = groups::of(explanations, Explanation::key).iter().map(draw).collect();
    let title = explanations.iter().map(|explanation| explanation.name.as_str()).collect::<Vec<_>>().join(", ");
    document(&title, &pictures, STYLE) + "\n"
}

/// Draws one explanation as an element of a page that has the [`STYLE`].
pub(crate) fn element(explanation: &Explanation) -> String {
    document(&explanation.name, &[picture::draw(&explanation.name, None, explanation)], "")
}

fn draw(group: &Group<'_, Explanation>) -> Canvas {
    let names = group.names(|explanation| &explanation.name);
    picture::draw(&group.title(&group.first.name), names.as_deref(), group.first)
}

fn document(title: &str, pictures: &[Canvas], style: &str) -> String {
    let mut document = Canvas::default();
    let mut top = MARGIN;
    for picture in pictures {
        document.place(MARGIN, top, picture);
        top += picture.height() + MARGIN;
    }
    legend(&mut document, top);
    document.element(title, style, MARGIN)
}

/// Draws the meaning of the colours, and the version.
fn legend(canvas: &mut Canvas, top: f64) {
    let mut x = MARGIN;
    let classes =
        [("mark", "way of the packet"), ("captured", "captured"), ("passes", "not captured"), ("dropped", "dropped")];
    for (class, meaning) in classes {
        canvas.rect(class, (x, top), (10.0, 10.0), 2.0);
        canvas.text("small soft", (x + 16.0, top + 9.0), meaning);
        x += 16.0 + Font::of("small").width(meaning) + 20.0;
    }
    canvas.text("small soft", (x, top + 9.0), concat!("weir ", env!("CARGO_PKG_VERSION")));
}
