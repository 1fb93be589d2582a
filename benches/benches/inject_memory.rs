//! Allocations of one review in process, for the cases of `inject.rs`, in the second run.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

#[path = "inject/cases.rs"]
mod cases;

use std::hint::black_box;

fn main() -> anyhow::Result<()> {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!("\n| template | containers | variables each | review KiB | allocations | KiB at the peak |");
    println!("|---|---:|---:|---:|---:|---:|");
    cases::each(only.as_deref(), |case| {
        let allocated = allocation_counter::measure(|| drop(black_box(case.run())));
        println!("{} {} | {} |", case.label, allocated.count_total, allocated.bytes_max / 1024);
    })
}
