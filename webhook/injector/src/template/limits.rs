//! Limits of one rendering: actions, sizes of values and output.
//!
//! The engine does not tell a function which rendering calls it, so the counters are thread-local; a rendering starts and ends on
//! one thread.

use std::cell::Cell;
use std::fmt;

use gotmpl::{TemplateError, Value as Data};

/// Limit on the actions of one rendering.
const MAX_ACTIONS: u64 = 100_000;
/// Limit on the output of one rendering in bytes.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Limit on the size of a function's result: the bytes of its strings, and 16 for each element.
pub(super) const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Limit on the sum of the sizes of all arguments and results.
const MAX_TOTAL_BYTES: usize = 256 * 1024 * 1024;
/// Limit on the nesting depth of a value.
const MAX_DEPTH: usize = 64;

/// State that functions read besides their arguments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RenderOptions {
    /// `ENABLE_NATIVE_SIDECARS` of Istio's controller.
    pub(crate) native_sidecars: bool,
    /// Whether the template is of a release before 1.22.
    pub(crate) before_1_22: bool,
}

thread_local! {
    static OPTIONS: Cell<RenderOptions> = const { Cell::new(RenderOptions { native_sidecars: false, before_1_22: false }) };
    static LINE: Cell<usize> = const { Cell::new(0) };
    static ACTIONS: Cell<u64> = const { Cell::new(0) };
    static TOTAL_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Returns the options of this thread's rendering.
pub(super) fn options() -> RenderOptions {
    OPTIONS.get()
}

/// Returns the line of the action that started last.
pub(super) fn line() -> usize {
    LINE.get()
}

/// Counts an action and records its line.
pub(super) fn start_action(line: usize) -> Result<(), TemplateError> {
    LINE.set(line);
    ACTIONS.set(ACTIONS.get() + 1);
    if ACTIONS.get() > MAX_ACTIONS {
        return Err(TemplateError::Exec(format!("exceeds {MAX_ACTIONS} actions")));
    }
    Ok(())
}

/// Charges the arguments of a function. Only the total limits their size, because a pod may exceed the limit of a result.
pub(super) fn charge_arguments(values: &[Data]) -> Result<(), TemplateError> {
    values.iter().try_for_each(|value| charge(value, MAX_TOTAL_BYTES))
}

/// Charges the result of a function.
pub(super) fn charge_result(value: &Data) -> Result<(), TemplateError> {
    charge(value, MAX_VALUE_BYTES)
}

fn charge(value: &Data, limit: usize) -> Result<(), TemplateError> {
    let mut remaining = limit;
    measure(value, MAX_DEPTH, &mut remaining)?;
    TOTAL_BYTES.set(TOTAL_BYTES.get().saturating_add(limit - remaining));
    if TOTAL_BYTES.get() > MAX_TOTAL_BYTES {
        Err(TemplateError::Exec("functions process too much data".to_owned()))
    } else {
        Ok(())
    }
}

/// Checks the size of a string before a function builds it.
pub(super) fn check_size(bytes: usize) -> Result<(), TemplateError> {
    if bytes > MAX_VALUE_BYTES { Err(too_large()) } else { Ok(()) }
}

/// Subtracts the size of a value from `remaining`.
fn measure(value: &Data, depth: usize, remaining: &mut usize) -> Result<(), TemplateError> {
    let mut take = |bytes: usize| {
        *remaining = remaining.checked_sub(bytes.saturating_add(16)).ok_or_else(too_large)?;
        Ok::<(), TemplateError>(())
    };
    if let Data::String(text) = value {
        return take(text.len());
    }
    take(0)?;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(TemplateError::Exec(format!("a value exceeds {MAX_DEPTH} levels of nesting")));
    };
    match value {
        Data::List(items) => items.iter().try_for_each(|item| measure(item, depth, remaining)),
        Data::Map(fields) => fields.iter().try_for_each(|(name, field)| {
            *remaining = remaining.checked_sub(name.len()).ok_or_else(too_large)?;
            measure(field, depth, remaining)
        }),
        _ => Ok(()),
    }
}

fn too_large() -> TemplateError {
    TemplateError::Exec(format!("a value exceeds {MAX_VALUE_BYTES} bytes"))
}

/// The growing output of a rendering.
pub(super) struct Output {
    text: String,
    is_full: bool,
}

impl Output {
    /// Starts a rendering on this thread.
    pub(super) fn start(options: RenderOptions) -> Self {
        OPTIONS.set(options);
        LINE.set(0);
        ACTIONS.set(0);
        TOTAL_BYTES.set(0);
        Self { text: String::new(), is_full: false }
    }

    /// Returns the reason if the limit of the output stopped the rendering.
    pub(super) fn exceeded_limit(&self) -> Option<String> {
        self.is_full.then(|| format!("output exceeds {MAX_OUTPUT_BYTES} bytes"))
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}
