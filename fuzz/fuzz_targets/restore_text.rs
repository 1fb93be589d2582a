//! The text of `iptables-save`: whoever wrote it, and a rule that is taken for one of ours means the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| weir_kernel::fuzzing::restore_text(text));
