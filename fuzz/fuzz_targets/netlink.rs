//! Netlink messages about rules: arbitrary bytes, and edits of the messages for our own rules.
#![no_main]

use weir_fuzz::bounded_target;

bounded_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0, answer)) => weir_kernel::fuzzing::netlink_answer(answer),
        Some((_, edits)) => weir_kernel::fuzzing::edited_netlink_answer(edits),
        None => {}
    }
});
