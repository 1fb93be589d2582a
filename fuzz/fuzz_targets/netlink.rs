//! Answers of the kernel about its rules: as they come, and as edits of what a kernel with our rules says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0, answer)) => weir_kernel::fuzzing::netlink_answer(answer),
        Some((_, edits)) => weir_kernel::fuzzing::edited_netlink_answer(edits),
        None => {}
    }
});
