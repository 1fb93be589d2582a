/// Changes that an installation of rules made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyOutcome {
    /// There were no rules of ours; they were added.
    Created,
    /// The same rules were in place already; nothing was written.
    Unchanged,
    /// Other rules of ours were in place; they were replaced.
    Replaced,
}
