//! One pod through the webhook, in process: bytes of the review parsed, decided, injected, patched, bytes of the answer written.
//! The cost has to grow with the pod, not with its square. Times are the fastest tenth and the median of as many runs as fit
//! into half a second. What it allocates is counted apart (`inject_memory.rs`): counting takes time.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

#[path = "inject/cases.rs"]
mod cases;

use std::hint::black_box;
use std::time::{Duration, Instant};

use weir_benches::Samples;

const TIME: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--test");
    println!("\n| template | containers | variables each | review KiB | p10 us | median us |");
    println!("|---|---:|---:|---:|---:|---:|");
    cases::each(|case| {
        let mut samples = Samples::default();
        let started = Instant::now();
        while started.elapsed() < TIME && !quick {
            let asked = Instant::now();
            drop(black_box(case.run()));
            samples.push(asked.elapsed());
        }
        println!("{} {} | {} |", case.label, samples.percentile_us(10), samples.percentile_us(50));
    })
}
