//! Lays an explanation out as cards, and draws them.

use iptables_rules::ruleset::RuleReason;
use iptables_rules::trace::{Chains, Disposition, Effect, RuleResult, RuleVisit, TableVisit, Trace};

use super::canvas::Canvas;
use super::font::Font;
use crate::explain::explanation::Explanation;
use crate::explain::packet::{PacketQuery, Sender};
use crate::explain::sentences;
use crate::explain::text::{self, MIN_RUN};

// Measures in pixels.
const CARD: f64 = 440.0;
const NUMBER: f64 = 40.0;
const GAP: f64 = 56.0;
const PAD: f64 = 14.0;
const HEAD: f64 = 34.0;
const LINE: f64 = 16.0;
const SPINE: f64 = 10.0;
const LEFT: f64 = 40.0;
/// Width of the sentences above and below the cards.
const SENTENCE: f64 = 930.0;

/// The cards of a hook in a table.
struct Band {
    title: String,
    cards: Vec<Card>,
    /// Reason for which the table was skipped.
    skipped: Option<&'static str>,
}

struct Card {
    name: String,
    depth: usize,
    rows: Vec<Row>,
}

/// A rule, or a run of rules.
struct Row {
    number: String,
    rule: String,
    note: String,
    style: RowStyle,
    /// Chain that it leads to.
    target: Option<String>,
    /// Class of what the rule does to packets that match, where no packet is traced.
    effect: Option<&'static str>,
}

impl Row {
    fn label(&self) -> String {
        if self.style == RowStyle::Unknown { format!("{}?", self.number) } else { self.number.clone() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RowStyle {
    Miss,
    Hit,
    Decisive,
    Unknown,
    /// No packet is traced.
    Plain,
}

/// Draws one explanation, which other workloads may share.
pub(super) fn draw(title: &str, sharing: Option<&str>, explained: &Explanation) -> Canvas {
    let mut canvas = Canvas::default();
    let mut top = 20.0;
    for line in Font::of("name").wrap(title, SENTENCE) {
        canvas.text("name", (0.0, top), &line);
        top += 26.0;
    }
    if let Some(sharing) = sharing {
        top = lines(&mut canvas, "soft", top, sharing);
    }
    let report = explained.netns_report.iter().flat_map(|report| report.sentences.clone());
    for sentence in std::iter::once(explained.origin.clone()).chain(report) {
        top = lines(&mut canvas, "soft", top, &sentence);
    }
    match &explained.packet_trace {
        Some((query, trace)) => packet_trace(&mut canvas, top + 8.0, query, trace),
        None => overview(&mut canvas, top + 8.0, explained),
    }
    canvas
}

fn lines(canvas: &mut Canvas, class: &str, mut top: f64, sentence: &str) -> f64 {
    for line in Font::of(class).wrap(sentence, SENTENCE) {
        canvas.text(class, (0.0, top), &line);
        top += LINE + 2.0;
    }
    top
}

fn packet_trace(canvas: &mut Canvas, top: f64, query: &PacketQuery, trace: &Trace) {
    let mut y = lines(canvas, "decisive", top, &sentences::describe_packet(query));
    for assumption in &query.assumptions {
        y = lines(canvas, "soft small", y, &format!("assumed: {assumption}"));
    }
    let spine_from = y - 6.0;
    y += 18.0;
    for (number, stage) in trace.tables.iter().enumerate() {
        let decisive = trace.decided_by.filter(|(at, _)| *at == number).map(|(_, step)| step);
        y = band(canvas, y, &of_stage(stage, decisive)) + 26.0;
    }
    canvas.down("path", SPINE, spine_from, y);
    outcome(canvas, y, query, trace);
}

/// Draws the outcome as a coloured field.
fn outcome(canvas: &mut Canvas, y: f64, query: &PacketQuery, trace: &Trace) {
    let class = match trace.disposition {
        Disposition::Redirected { .. } | Disposition::Tproxied { .. } => "captured",
        // The proxy's own traffic is meant to leave.
        Disposition::Passes { .. } if query.sender == Sender::Proxy => "own",
        Disposition::Passes { .. } => "passes",
        Disposition::Dropped => "dropped",
    };
    let font = Font::of("onfill");
    let texts = font.wrap(&sentences::describe_fate(query, trace), SENTENCE);
    let height = count(texts.len()) * 22.0 + 22.0;
    let width = texts.iter().map(|line| font.width(line)).fold(0.0, f64::max) + 40.0;
    canvas.rect(class, (0.0, y), (width.max(420.0), height), 10.0);
    for (n, line) in texts.iter().enumerate() {
        canvas.text("onfill", (20.0, y + 27.0 + count(n) * 22.0), line);
    }
    let mut below = y + height + 20.0;
    for doubt in &trace.uncertain_rules {
        below = lines(canvas, "soft", below, &format!("not fully traced: {doubt}"));
    }
}

fn overview(canvas: &mut Canvas, top: f64, explained: &Explanation) {
    let mut y = top;
    if explained.chains.bases.is_empty() {
        lines(canvas, "decisive", y, "There are no rules.");
        return;
    }
    for base in &explained.chains.bases {
        let Some(chain) = explained.chains.chains.get(base.chain) else { continue };
        let mut cards = Vec::new();
        of_chain(&explained.chains, &chain.table, &chain.name, 0, &mut cards);
        let title = format!("{}  ·  {}", base.hook.name(), chain.table);
        y = band(canvas, y, &Band { title, cards, skipped: None }) + 26.0;
    }
    lines(canvas, "soft small", y, "Chains for IPv4 packets; those for IPv6 differ in addresses.");
}

fn of_stage(stage: &TableVisit, decisive: Option<usize>) -> Band {
    let mut cards: Vec<Card> = Vec::new();
    let mut at = 0;
    while let Some(first) = stage.rules.get(at) {
        let rest = stage.rules.get(at..).unwrap_or_default();
        let run = rest.iter().take_while(|step| text::is_same_run(first, step)).count();
        let row = if run >= MIN_RUN {
            folded(first, rest.get(run - 1).unwrap_or(first), run)
        } else {
            single(first, decisive == Some(at))
        };
        at += if run >= MIN_RUN { run } else { 1 };
        match cards.iter_mut().find(|card| card.name == first.chain) {
            Some(card) => card.rows.push(row),
            None => cards.push(Card { name: first.chain.clone(), depth: first.depth, rows: vec![row] }),
        }
    }
    Band { title: format!("{}  ·  {}", stage.hook.name(), stage.table), cards, skipped: stage.skip_reason }
}

fn folded(first: &RuleVisit, last: &RuleVisit, run: usize) -> Row {
    Row {
        number: format!("{}-{}", first.number, last.number),
        rule: format!("{run} rules, none matches"),
        note: first.reason.map(because).unwrap_or_default(),
        style: RowStyle::Miss,
        target: None,
        effect: None,
    }
}

fn single(step: &RuleVisit, decisive: bool) -> Row {
    let (style, target) = match &step.result {
        RuleResult::NoMatch(_) => (RowStyle::Miss, None),
        RuleResult::Unknown(_) => (RowStyle::Unknown, None),
        RuleResult::Match(effects) => (if decisive { RowStyle::Decisive } else { RowStyle::Hit }, leads_to(effects)),
    };
    let note = match (&step.result, step.reason) {
        (RuleResult::Match(_), Some(reason)) => because(reason),
        (result, _) => text::describe_result(result),
    };
    Row { number: step.number.to_string(), rule: step.rule.clone(), note, style, target, effect: None }
}

/// Describes the reason of a rule, and its setting.
fn because(reason: RuleReason) -> String {
    match reason.setting() {
        Some(setting) => format!("{} ({setting})", reason.description()),
        None => reason.description().to_owned(),
    }
}

fn leads_to(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Jump(name) | Effect::Goto(name) => Some(name.clone()),
        _ => None,
    })
}

/// Adds the cards of a chain and of those that it jumps to, each once.
fn of_chain(chains: &Chains, table: &str, name: &str, depth: usize, cards: &mut Vec<Card>) {
    let Some(chain) = chains.chains.iter().find(|chain| chain.table == table && chain.name == name) else { return };
    let mut rows = Vec::new();
    let mut rest = chain.rules.as_slice();
    let mut number = 1;
    while let Some(first) = rest.first() {
        let like = rest.iter().take_while(|rule| rule.reason == first.reason && rule.effects == first.effects).count();
        let shown = if like > 2 * MIN_RUN { like } else { 1 };
        let note = first.reason.map(because).unwrap_or_default();
        let (label, note) = if shown > 1 {
            (format!("{number}-{}", number + shown - 1), format!("and {} more: {note}", shown - 1))
        } else {
            (number.to_string(), note)
        };
        rows.push(Row {
            number: label,
            rule: first.text.clone(),
            note,
            style: RowStyle::Plain,
            target: leads_to(&first.effects),
            effect: class_of(&first.effects),
        });
        number += shown;
        rest = rest.get(shown..).unwrap_or_default();
    }
    let targets: Vec<String> = rows.iter().filter_map(|row| row.target.clone()).collect();
    cards.push(Card { name: name.to_owned(), depth, rows });
    for target in targets {
        if cards.iter().all(|card| card.name != target) {
            of_chain(chains, table, &target, depth + 1, cards);
        }
    }
}

/// Draws a band and returns its bottom. Cards of one depth share a column; each starts no higher than the rule that jumps to it.
fn band(canvas: &mut Canvas, top: f64, band: &Band) -> f64 {
    canvas.dot("mark", (SPINE, top + 7.0), 4.5);
    canvas.text("hook", (LEFT, top + 11.0), &band.title);
    let mut y = top + 24.0;
    if let Some(why) = band.skipped {
        canvas.text("soft", (LEFT, y + 12.0), &format!("skipped: {why}"));
        return y + 16.0;
    }
    if band.cards.is_empty() {
        canvas.text("soft", (LEFT, y + 12.0), "no rules");
        return y + 16.0;
    }
    let deepest = band.cards.iter().map(|card| card.depth).max().unwrap_or(0);
    let mut bottoms = vec![y; deepest + 1];
    // Rules that jump to a chain: right edge of the card, height, and whether the packet took the jump.
    let mut anchors: Vec<(String, f64, f64, bool)> = Vec::new();
    for card in &band.cards {
        let x = LEFT + count(card.depth) * (CARD + GAP);
        let anchor =
            anchors.iter().find(|(name, ..)| *name == card.name).map_or(y, |(_, _, height, _)| *height - HEAD / 2.0);
        let at = bottoms.get(card.depth).copied().unwrap_or(y).max(anchor);
        let height = draw_card(canvas, (x, at), card, &mut anchors);
        if let Some(bottom) = bottoms.get_mut(card.depth) {
            *bottom = at + height + 18.0;
        }
        for (_, from_x, from_y, taken) in anchors.iter().filter(|(name, ..)| *name == card.name) {
            canvas.curve(if *taken { "path" } else { "way" }, (*from_x, *from_y), (x, at + HEAD / 2.0));
        }
        y = y.max(at + height);
    }
    y
}

fn draw_card(canvas: &mut Canvas, (x, y): (f64, f64), card: &Card, anchors: &mut Vec<(String, f64, f64, bool)>) -> f64 {
    let laid: Vec<(Vec<String>, Vec<String>, f64)> = card
        .rows
        .iter()
        .map(|row| {
            let width = CARD - 2.0 * PAD - number_width(&row.label());
            let (rule, note) = (Font::of("rule").wrap(&row.rule, width), Font::of("small").wrap(&row.note, width));
            let lines = rule.len() + if row.note.is_empty() { 0 } else { note.len() };
            (rule, note, count(lines) * LINE + 12.0)
        })
        .collect();
    let height = HEAD + laid.iter().map(|(_, _, height)| height).sum::<f64>() + 6.0;
    canvas.rect("card", (x, y), (CARD, height), 10.0);
    canvas.text("chain", (x + PAD, y + 22.0), &card.name);
    let mut top = y + HEAD;
    for (row, (rule, note, tall)) in card.rows.iter().zip(laid) {
        let on_path = matches!(row.style, RowStyle::Hit | RowStyle::Decisive);
        if on_path {
            canvas.rect("hit", (x + 1.0, top), (CARD - 2.0, tall), 4.0);
            canvas.rect("mark", (x + 1.0, top), (3.0, tall), 1.5);
        }
        let class = match row.style {
            RowStyle::Decisive => "rule decisive",
            RowStyle::Hit | RowStyle::Plain => "rule",
            RowStyle::Miss | RowStyle::Unknown => "rule soft",
        };
        if let Some(effect) = row.effect {
            canvas.rect(effect, (x + 1.0, top + 2.0), (3.0, tall - 4.0), 1.5);
        }
        let label = row.label();
        canvas.hint(&row.rule, |canvas| {
            canvas.text("soft small", (x + PAD, top + 18.0), &label);
            let start = x + PAD + number_width(&label);
            let mut line_top = top + 18.0;
            for line in &rule {
                canvas.text(class, (start, line_top), line);
                line_top += LINE;
            }
            let lines: &[String] = if row.note.is_empty() { &[] } else { &note };
            for line in lines {
                canvas.text(if on_path { "small pathname" } else { "small soft" }, (start, line_top), line);
                line_top += LINE;
            }
        });
        if let Some(target) = &row.target {
            anchors.push((target.clone(), x + CARD, top + 14.0, on_path));
        }
        top += tall;
    }
    height
}

fn number_width(label: &str) -> f64 {
    NUMBER.max(Font::of("small").width(label) + 10.0)
}

/// Returns the class of a rule that settles what happens to packets.
fn class_of(effects: &[Effect]) -> Option<&'static str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Redirect(_) | Effect::Tproxy(_) => Some("captured"),
        Effect::Return => Some("passes"),
        Effect::Drop => Some("dropped"),
        _ => None,
    })
}

/// Converts a count to pixels; drawings are far from 2^52 of anything.
#[expect(clippy::cast_precision_loss, reason = "see above")]
const fn count(number: usize) -> f64 {
    number as f64
}
