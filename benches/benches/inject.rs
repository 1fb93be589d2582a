//! The time of one review in process, from the bytes of the review to the bytes of the response. It must grow linearly with the pod.
//! Printed are the 10th percentile and the median of the runs in half a second. Allocations have a bench of their own
//! (`inject_memory.rs`), because counting takes time.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

#[path = "inject/cases.rs"]
mod cases;

use std::hint::black_box;
use std::time::{Duration, Instant};

use weir_benches::Samples;

const TIME_PER_CASE: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--test");
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!("\n| template | containers | variables each | review KiB | p10 us | median us |");
    println!("|---|---:|---:|---:|---:|---:|");
    cases::each(only.as_deref(), |case| {
        let mut samples = Samples::default();
        let started = Instant::now();
        while started.elapsed() < TIME_PER_CASE && !quick {
            let begun = Instant::now();
            drop(black_box(case.run()));
            samples.push(begun.elapsed());
        }
        println!("{} {} | {} |", case.label, samples.percentile_us(10), samples.percentile_us(50));
    })
}
