//! Bounds of the cost of an ADD, of the binary as it is built for tests. Measurements of the released one are in `benches`.

use std::process::Command;
use std::time::{Duration, Instant};

use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};
use weir_lab::{Netns, privilege, process};

use crate::call::{Call, STATUS, conf, prev_result};
use crate::loopback::with_loopback_down;

const ROUNDS: usize = 9;
/// Allowance for a busy machine. The binary is not optimised.
const ALLOWANCE: Duration = Duration::from_millis(40);
const BOUND: Duration = Duration::from_secs(20);
/// Instructions of an ADD of the static test build in user space, from start to exit, as callgrind counts them. Update it with a change
/// that is worth its cost, or that lowers it.
const INSTRUCTIONS: u64 = recorded();
/// Accepted difference in percent, which is also left for other versions of the C library.
const TOLERANCE: u64 = 10;

const fn recorded() -> u64 {
    match u64::from_str_radix(include_str!("add-instructions.txt").trim_ascii(), 10) {
        Ok(instructions) => instructions,
        Err(_) => panic!("add-instructions.txt is not a number"),
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

#[test]
fn add_with_loopback_down_takes_no_longer_than_alternatives() {
    if !privilege::available_or_skip() {
        return;
    }
    let conf = conf("1.0.0", &[STATUS]);
    let rules = plan(&CaptureConfig::default()).unwrap();
    let add = |pod: &Netns| {
        let call = Call::new("ADD").netns(&pod.path()).conf(&conf);
        timed(|| call.run().assert_success(&prev_result(&conf)))
    };
    let restore = |pod: &Netns| {
        timed(|| {
            for (program, family) in
                [("iptables-legacy-restore", RestoreFamily::V4), ("ip6tables-legacy-restore", RestoreFamily::V6)]
            {
                let mut command = Command::new(program);
                command.args(["--noflush", "--wait"]);
                let text = restore_text(&rules, family);
                let output = pod.run(|| process::run(&mut command, text.as_bytes(), BOUND)).unwrap().unwrap();
                assert!(output.status.success(), "{program}: {output:?}");
            }
        })
    };
    let (mut down, mut up, mut restored) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        down.push(add(&with_loopback_down()));
        up.push(add(&Netns::new("up").unwrap()));
        restored.push(restore(&Netns::new("restore").unwrap()));
    }
    let (down, up, restored) = (median(down), median(up), median(restored));
    let text = format!("ADD with lo down {down:?}, with lo up {up:?}, two legacy restores {restored:?}");
    assert!(down <= 2 * up + ALLOWANCE && down <= 2 * restored + ALLOWANCE, "{text}");
}

#[test]
fn instructions_of_an_add_are_as_recorded() {
    if !privilege::available_or_skip() {
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        weir_lab::skip_or_fail("valgrind is not installed");
        return;
    }
    let conf = conf("1.0.0", &[STATUS]);
    let pod = Netns::new("instructions").unwrap();
    let result = Call::new("ADD")
        .netns(&pod.path())
        .conf(&conf)
        .run_under("valgrind", &["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let counted = result.stderr.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    let counted = counted.unwrap_or_else(|| panic!("no count in {}", result.stderr));
    let difference = counted.abs_diff(INSTRUCTIONS) * 100 / INSTRUCTIONS;
    assert!(difference <= TOLERANCE, "an ADD takes {counted} instructions, recorded are {INSTRUCTIONS}");
}
