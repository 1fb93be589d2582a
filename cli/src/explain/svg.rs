//! Draws explanations as SVG: chains as cards, with the path of a packet highlighted.
//!
//! One self-contained document in the reader's colour scheme; several pods are drawn below each other.

mod canvas;
mod picture;

use super::explanation::Explanation;
use canvas::Canvas;

/// Colours by meaning, for light and dark schemes.
const STYLE: &str = "\
svg{--paper:#fbfaf7;--card:#ffffff;--line:#d9d5cc;--ink:#1f2430;--soft:#7a7f8c;--path:#1857d6;--glow:#e6eefc;--stop:#c0262d;--go:#0b7a4b}\
@media(prefers-color-scheme:dark){svg{--paper:#14161b;--card:#1d2027;--line:#363b46;--ink:#e8e9ec;--soft:#9197a5;--path:#7aa7ff;--glow:#22314f;\
--stop:#ff7b7b;--go:#5ed3a0}}\
.paper{fill:var(--paper)}.card{fill:var(--card);stroke:var(--line)}.hit{fill:var(--glow)}\
text{font-family:ui-sans-serif,system-ui,'Segoe UI','Helvetica Neue',Arial,sans-serif;font-size:12px;fill:var(--ink)}\
.rule{font-family:ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}.soft{fill:var(--soft)}.small{font-size:11px}\
.name{font-size:22px;font-weight:650;letter-spacing:-.01em}.chain{font-weight:650;font-size:13px}\
.hook{font-size:11px;font-weight:650;letter-spacing:.09em;fill:var(--soft)}\
.path{stroke:var(--path);stroke-width:2.25;fill:none}.way{stroke:var(--line);stroke-width:1.25;fill:none}.spine{stroke:var(--path);stroke-width:2.25;fill:none;stroke-linecap:round}\
.mark{fill:var(--path)}.pathname{fill:var(--path)}.decisive{font-weight:650}\
.captured{fill:var(--path)}.passes{fill:var(--go)}.dropped{fill:var(--stop)}.onfill{fill:var(--paper);font-size:15px;font-weight:600}";

/// Space around and between pictures, in pixels.
const MARGIN: f64 = 40.0;

/// Draws all explanations in one document.
pub(crate) fn print(explanations: &[Explanation]) -> String {
    let mut document = Canvas::default();
    let mut top = MARGIN;
    for explanation in explanations {
        let picture = picture::draw(explanation);
        let height = picture.height();
        document.place(MARGIN, top, &picture);
        top += height + 1.5 * MARGIN;
    }
    let title = explanations.iter().map(|explanation| explanation.name.as_str()).collect::<Vec<_>>().join(", ");
    document.document(&title, STYLE, MARGIN)
}
