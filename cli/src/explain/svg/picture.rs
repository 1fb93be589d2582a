//! From an explanation to cards, and from cards to a drawing.

use iptables_rules::ruleset::Reason;
use iptables_rules::trace::{Chains, Effect, Fate, Stage, Step, Trace, Verdict};

use super::canvas::{Canvas, MONO, SANS, wrapped};
use crate::explain::packet::Question;
use crate::explain::{Explanation, text, words};

/// Characters of a rule on one line of a card.
const RULE_LINE: usize = 50;
/// Characters of other text on one line of a card.
const NOTE_LINE: usize = 62;
/// From how many rules on a row one stands for all.
const ROW: usize = 4;
/// Measures in pixels.
const CARD: f64 = count(RULE_LINE) * MONO + NUMBER + 2.0 * PAD;
const NUMBER: f64 = 40.0;
const GAP: f64 = 56.0;
const PAD: f64 = 14.0;
const HEAD: f64 = 34.0;
const LINE: f64 = 16.0;
const SPINE: f64 = 10.0;
const LEFT: f64 = 40.0;
/// Width of the sentences above and below the cards, in characters.
const SENTENCE: usize = 150;

/// A hook of a table: its cards.
struct Band {
    title: String,
    cards: Vec<Card>,
    /// Why nothing was looked at.
    skipped: Option<&'static str>,
}

/// A chain.
struct Card {
    name: String,
    depth: usize,
    rows: Vec<Row>,
}

/// A rule, or many.
struct Row {
    number: String,
    rule: String,
    note: String,
    kind: Kind,
    /// Chain that it leads to.
    target: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Did not match.
    Miss,
    /// Matched.
    Hit,
    /// Matched, and decided.
    Decisive,
    /// Nobody can tell.
    Unknown,
    /// No packet was asked about.
    Plain,
}

/// The picture of one explanation.
pub(super) fn draw(explained: &Explanation) -> Canvas {
    let mut canvas = Canvas::default();
    canvas.text("name", (0.0, 20.0), &explained.name);
    let mut top = 44.0;
    let found = explained.found.iter().flat_map(|found| found.verdicts.clone());
    for sentence in std::iter::once(explained.origin.clone()).chain(found) {
        top = sentences(&mut canvas, "soft", top, &sentence);
    }
    match &explained.journey {
        Some((question, trace)) => journey(&mut canvas, top + 8.0, question, trace),
        None => overview(&mut canvas, top + 8.0, explained),
    }
    canvas
}

fn sentences(canvas: &mut Canvas, class: &str, mut top: f64, sentence: &str) -> f64 {
    for line in wrapped(sentence, SENTENCE) {
        canvas.text(class, (0.0, top), &line);
        top += LINE + 2.0;
    }
    top
}

fn journey(canvas: &mut Canvas, top: f64, question: &Question, trace: &Trace) {
    let mut y = sentences(canvas, "decisive", top, &words::packet(question));
    for assumed in &question.assumed {
        y = sentences(canvas, "soft small", y, &format!("taken for granted: {assumed}"));
    }
    let spine_from = y;
    y += 18.0;
    for (number, stage) in trace.stages.iter().enumerate() {
        let decisive = trace.decided_by.filter(|(at, _)| *at == number).map(|(_, step)| step);
        y = band(canvas, y, &of_stage(stage, decisive)) + 26.0;
    }
    canvas.down("spine", SPINE, spine_from, y);
    verdict(canvas, y, question, trace);
}

/// The outcome as a coloured field.
fn verdict(canvas: &mut Canvas, y: f64, question: &Question, trace: &Trace) {
    let class = match trace.fate {
        Fate::Redirected { .. } | Fate::Tproxied { .. } => "captured",
        Fate::Passes { .. } => "passes",
        Fate::Dropped => "dropped",
    };
    let lines = wrapped(&words::outcome(question, trace), 104);
    let height = count(lines.len()) * 22.0 + 22.0;
    let width = lines.iter().map(|line| count(line.chars().count())).fold(0.0, f64::max) * 9.1 + 40.0;
    canvas.rect(class, (0.0, y), (width.max(420.0), height), 10.0);
    for (n, line) in lines.iter().enumerate() {
        canvas.text("onfill", (20.0, y + 27.0 + count(n) * 22.0), line);
    }
    let mut below = y + height + 20.0;
    for doubt in &trace.doubts {
        below = sentences(canvas, "soft", below, &format!("not understood: {doubt}"));
    }
}

fn overview(canvas: &mut Canvas, top: f64, explained: &Explanation) {
    let mut y = top;
    if explained.chains.bases.is_empty() {
        sentences(canvas, "decisive", y, "There are no rules.");
        return;
    }
    for base in &explained.chains.bases {
        let Some(chain) = explained.chains.chains.get(base.chain) else { continue };
        let mut cards = Vec::new();
        of_chain(&explained.chains, &chain.table, &chain.name, 0, &mut cards);
        let title = format!("{}  ·  {}", base.hook.name(), chain.table);
        y = band(canvas, y, &Band { title, cards, skipped: None }) + 26.0;
    }
    sentences(canvas, "soft small", y, "Chains as packets of IPv4 meet them; those of IPv6 differ in addresses.");
}

fn of_stage(stage: &Stage, decisive: Option<usize>) -> Band {
    let mut cards: Vec<Card> = Vec::new();
    let mut at = 0;
    while let Some(first) = stage.steps.get(at) {
        let rest = stage.steps.get(at..).unwrap_or_default();
        let like = rest.iter().take_while(|step| text::is_like(first, step)).count();
        let row = if like >= ROW {
            folded(first, rest.get(like - 1).unwrap_or(first), like)
        } else {
            single(first, decisive == Some(at))
        };
        at += if like >= ROW { like } else { 1 };
        match cards.iter_mut().find(|card| card.name == first.chain) {
            Some(card) => card.rows.push(row),
            None => cards.push(Card { name: first.chain.clone(), depth: first.depth, rows: vec![row] }),
        }
    }
    Band { title: format!("{}  ·  {}", stage.hook.name(), stage.table), cards, skipped: stage.skipped }
}

fn folded(first: &Step, last: &Step, like: usize) -> Row {
    Row {
        number: format!("{}-{}", first.number, last.number),
        rule: format!("{like} rules, none matches"),
        note: first.reason.map(because).unwrap_or_default(),
        kind: Kind::Miss,
        target: None,
    }
}

fn single(step: &Step, decisive: bool) -> Row {
    let (kind, target) = match &step.verdict {
        Verdict::NoMatch(_) => (Kind::Miss, None),
        Verdict::Unknown(_) => (Kind::Unknown, None),
        Verdict::Match(effects) => (if decisive { Kind::Decisive } else { Kind::Hit }, leads_to(effects)),
    };
    let note = match (&step.verdict, step.reason) {
        (Verdict::Match(_), Some(reason)) => because(reason),
        (verdict, _) => text::verdict(verdict),
    };
    Row { number: step.number.to_string(), rule: step.rule.clone(), note, kind, target }
}

/// Why a rule is there, and which setting asks for it.
fn because(reason: Reason) -> String {
    match reason.setting() {
        Some(setting) => format!("{} ({setting})", reason.explain()),
        None => reason.explain().to_owned(),
    }
}

fn leads_to(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Jump(name) | Effect::Goto(name) => Some(name.clone()),
        _ => None,
    })
}

/// A chain and those that it leads to, each once.
fn of_chain(chains: &Chains, table: &str, name: &str, depth: usize, cards: &mut Vec<Card>) {
    let Some(chain) = chains.chains.iter().find(|chain| chain.table == table && chain.name == name) else { return };
    let mut rows = Vec::new();
    let mut rest = chain.rules.as_slice();
    let mut number = 1;
    while let Some(first) = rest.first() {
        let like = rest.iter().take_while(|rule| rule.reason == first.reason && rule.effects == first.effects).count();
        let told = if like > 2 * ROW { like } else { 1 };
        let note = first.reason.map(because).unwrap_or_default();
        let (label, note) = if told > 1 {
            (format!("{number}-{}", number + told - 1), format!("and {} more: {note}", told - 1))
        } else {
            (number.to_string(), note)
        };
        rows.push(Row {
            number: label,
            rule: first.text.clone(),
            note,
            kind: Kind::Plain,
            target: leads_to(&first.effects),
        });
        number += told;
        rest = rest.get(told..).unwrap_or_default();
    }
    let targets: Vec<String> = rows.iter().filter_map(|row| row.target.clone()).collect();
    cards.push(Card { name: name.to_owned(), depth, rows });
    for target in targets {
        if cards.iter().all(|card| card.name != target) {
            of_chain(chains, table, &target, depth + 1, cards);
        }
    }
}

/// Draws a band and gives its bottom. Cards of a depth share a column; each starts no higher than the rule that leads to it.
fn band(canvas: &mut Canvas, top: f64, band: &Band) -> f64 {
    canvas.dot("mark", (SPINE, top + 7.0), 4.5);
    canvas.text("hook", (LEFT, top + 11.0), &band.title);
    let mut y = top + 24.0;
    if let Some(why) = band.skipped {
        canvas.text("soft", (LEFT, y + 12.0), &format!("not looked at: {why}"));
        return y + 16.0;
    }
    if band.cards.is_empty() {
        canvas.text("soft", (LEFT, y + 12.0), "no rules");
        return y + 16.0;
    }
    let deepest = band.cards.iter().map(|card| card.depth).max().unwrap_or(0);
    let mut bottoms = vec![y; deepest + 1];
    // Where the rules are that lead to a chain: right edge of the card, height, and whether the packet went there.
    let mut doors: Vec<(String, f64, f64, bool)> = Vec::new();
    for card in &band.cards {
        let x = LEFT + count(card.depth) * (CARD + GAP);
        let door =
            doors.iter().find(|(name, ..)| *name == card.name).map_or(y, |(_, _, height, _)| *height - HEAD / 2.0);
        let at = bottoms.get(card.depth).copied().unwrap_or(y).max(door);
        let height = draw_card(canvas, (x, at), card, &mut doors);
        if let Some(bottom) = bottoms.get_mut(card.depth) {
            *bottom = at + height + 18.0;
        }
        for (_, from_x, from_y, taken) in doors.iter().filter(|(name, ..)| *name == card.name) {
            canvas.curve(if *taken { "path" } else { "way" }, (*from_x, *from_y), (x, at + HEAD / 2.0));
        }
        y = y.max(at + height);
    }
    y
}

fn draw_card(canvas: &mut Canvas, (x, y): (f64, f64), card: &Card, doors: &mut Vec<(String, f64, f64, bool)>) -> f64 {
    let laid: Vec<(Vec<String>, Vec<String>, f64)> = card
        .rows
        .iter()
        .map(|row| {
            let (rule, note) = (wrapped(&row.rule, RULE_LINE), wrapped(&row.note, NOTE_LINE));
            let lines = rule.len() + if row.note.is_empty() { 0 } else { note.len() };
            (rule, note, count(lines) * LINE + 12.0)
        })
        .collect();
    let height = HEAD + laid.iter().map(|(_, _, height)| height).sum::<f64>() + 6.0;
    canvas.rect("card", (x, y), (CARD, height), 10.0);
    canvas.text("chain", (x + PAD, y + 22.0), &card.name);
    let mut top = y + HEAD;
    for (row, (rule, note, tall)) in card.rows.iter().zip(laid) {
        let on_path = matches!(row.kind, Kind::Hit | Kind::Decisive);
        if on_path {
            canvas.rect("hit", (x + 1.0, top), (CARD - 2.0, tall), 4.0);
            canvas.rect("mark", (x + 1.0, top), (3.0, tall), 1.5);
        }
        let class = match row.kind {
            Kind::Decisive => "rule decisive",
            Kind::Hit | Kind::Plain => "rule",
            Kind::Miss | Kind::Unknown => "rule soft",
        };
        let label = if row.kind == Kind::Unknown { format!("{}?", row.number) } else { row.number.clone() };
        canvas.hint(&row.rule, |canvas| {
            canvas.text("soft small", (x + PAD, top + 18.0), &label);
            let start = x + PAD + NUMBER.max(count(label.chars().count()) * SANS + 10.0);
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
            doors.push((target.clone(), x + CARD, top + 14.0, on_path));
        }
        top += tall;
    }
    height
}

/// A number of things as a measure. Pictures are far from 2^52 of anything.
#[expect(clippy::cast_precision_loss, reason = "see above")]
const fn count(number: usize) -> f64 {
    number as f64
}
