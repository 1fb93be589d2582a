//! Bounds the work that one input may cause, so that fuzzing finds products and not only panics.
//!
//! libFuzzer's own limit of allocations needs a sanitizer. This allocator counts instead: a target made with [`bounded_target!`] fails when
//! one input allocates more than a base and a multiple of its own length, however briefly each allocation lives.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes that any input may allocate: documents with defaults, tables of names.
const BASE: usize = 16 << 20;
/// Further bytes per byte of input.
const PER_BYTE: usize = 4 << 10;
/// Largest single allocation.
const LARGEST: usize = 64 << 20;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// Set from the second input on: the first one initializes what is built once.
static WARM: AtomicBool = AtomicBool::new(false);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count(size: usize) {
        if size > LARGEST {
            // Nothing that allocates may be called here.
            std::process::abort();
        }
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
    }
}

// SAFETY: all calls go to `System`, which keeps the contract of the trait; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(new_size.saturating_sub(layout.size()));
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// Runs a target with an input of that length.
///
/// # Panics
/// When it allocates more than an input of that length may.
pub fn with_budget(length: usize, target: impl FnOnce()) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    target();
    let allocated = ALLOCATED.load(Ordering::Relaxed).wrapping_sub(before);
    let limit = BASE + PER_BYTE * length;
    if WARM.swap(true, Ordering::Relaxed) {
        assert!(allocated <= limit, "an input of {length} bytes has allocated {allocated} bytes; the limit is {limit}");
    }
}

/// Like `libfuzzer_sys::fuzz_target!`, with the work of every input bounded.
#[macro_export]
macro_rules! bounded_target {
    (|$input:ident: &[u8]| $body:block) => {
        libfuzzer_sys::fuzz_target!(|$input: &[u8]| {
            $crate::with_budget($input.len(), || $body);
        });
    };
    (|$input:ident: &str| $body:block) => {
        libfuzzer_sys::fuzz_target!(|$input: &str| {
            $crate::with_budget($input.len(), || $body);
        });
    };
}
