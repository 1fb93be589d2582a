//! The text of `iptables-save`: a rule that is recognized as ours means the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| weir_kernel::fuzzing::restore_text(text));
