//! The text of `iptables-save`: a rule that is recognized as ours means the same when it is written again.
#![no_main]

use weir_fuzz::bounded_target;

bounded_target!(|text: &str| {
    weir_kernel::fuzzing::restore_text(text);
});
