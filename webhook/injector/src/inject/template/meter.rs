//! What one rendering may cost: steps, sizes of values, text. A template cannot keep the injector from its other work.
//!
//! The engine calls functions without telling for which rendering, so the counters are the thread's; a rendering starts
//! and ends on one thread.

use std::cell::Cell;
use std::fmt;

use gotmpl::{TemplateError, Value as Data};

/// Most actions of one rendering.
const STEPS_MAX: u64 = 100_000;
/// Longest text of one rendering, in bytes.
const TEXT_MAX: usize = 1024 * 1024;
/// Largest value that a function gives, in bytes of its texts and 16 for each element.
pub(super) const VALUE_MAX: usize = 1024 * 1024;
/// Largest sum of the values that functions take and give.
const WORK_MAX: usize = 256 * 1024 * 1024;
/// Deepest nesting of a value that a function gives.
const DEPTH_MAX: usize = 64;

thread_local! {
    static LINE: Cell<usize> = const { Cell::new(0) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
    static WORK: Cell<usize> = const { Cell::new(0) };
}

/// The line of the action that was begun last.
pub(super) fn line() -> usize {
    LINE.get()
}

/// Notes that an action begins.
pub(super) fn step(line: usize) -> Result<(), TemplateError> {
    LINE.set(line);
    STEPS.set(STEPS.get() + 1);
    if STEPS.get() > STEPS_MAX {
        return Err(TemplateError::Exec(format!("it takes more than {STEPS_MAX} steps")));
    }
    Ok(())
}

/// Accounts for what a function takes; a pod may be larger than what functions give.
pub(super) fn charge_arguments(values: &[Data]) -> Result<(), TemplateError> {
    values.iter().try_for_each(|value| charge(value, WORK_MAX))
}

/// Accounts for what a function gives.
pub(super) fn charge_answer(value: &Data) -> Result<(), TemplateError> {
    charge(value, VALUE_MAX)
}

fn charge(value: &Data, most: usize) -> Result<(), TemplateError> {
    let mut left = most;
    weigh(value, DEPTH_MAX, &mut left)?;
    WORK.set(WORK.get().saturating_add(most - left));
    if WORK.get() > WORK_MAX {
        Err(TemplateError::Exec("its functions work on too much data".to_owned()))
    } else {
        Ok(())
    }
}

/// Refuses a text of a function before it is made.
pub(super) fn room_for(bytes: usize) -> Result<(), TemplateError> {
    if bytes > VALUE_MAX { Err(too_large()) } else { Ok(()) }
}

fn weigh(value: &Data, depth: usize, left: &mut usize) -> Result<(), TemplateError> {
    let mut take = |bytes: usize| {
        *left = left.checked_sub(bytes.saturating_add(16)).ok_or_else(too_large)?;
        Ok::<(), TemplateError>(())
    };
    if let Data::String(text) = value {
        return take(text.len());
    }
    take(0)?;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(TemplateError::Exec(format!("a value is nested more than {DEPTH_MAX} deep")));
    };
    match value {
        Data::List(items) => items.iter().try_for_each(|item| weigh(item, depth, left)),
        Data::Map(fields) => fields.iter().try_for_each(|(name, field)| {
            *left = left.checked_sub(name.len()).ok_or_else(too_large)?;
            weigh(field, depth, left)
        }),
        _ => Ok(()),
    }
}

fn too_large() -> TemplateError {
    TemplateError::Exec(format!("a value is larger than {VALUE_MAX} bytes"))
}

/// The text of a rendering as it grows.
pub(super) struct Output {
    text: String,
    full: bool,
}

impl Output {
    /// Begins a rendering on this thread.
    pub(super) fn start() -> Self {
        LINE.set(0);
        STEPS.set(0);
        WORK.set(0);
        Self { text: String::new(), full: false }
    }

    /// The bound that stopped the rendering, if one of the text did.
    pub(super) fn bound_passed(&self) -> Option<String> {
        self.full.then(|| format!("what it gives is longer than {TEXT_MAX} bytes"))
    }

    /// What was written.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > TEXT_MAX {
            self.full = true;
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}
