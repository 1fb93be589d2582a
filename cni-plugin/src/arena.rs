//! Allocator of a process that lives for one call: it hands out an arena from its start to its end, and gives back only the newest block.
//!
//! The allocators of the C libraries are made for programs that run for long: musl's maps and unmaps pages all the time, which was a quarter
//! of an ADD. When the arena is used up, the C library's allocator takes over, so the limits of the process hold as before.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the arena. An ADD takes about 100 KiB; pages that are never used take no memory.
const SIZE: usize = 512 << 10;

/// The arena. Blocks start at the alignment of the layout, at most at that of a page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Arena {
    bytes: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

impl Arena {
    /// Creates an unused arena.
    #[expect(clippy::new_without_default, clippy::large_stack_arrays, reason = "the constant of a static")]
    pub const fn new() -> Self {
        Self { bytes: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) }
    }

    /// Takes a block, and returns where it starts.
    fn take(&self, layout: Layout) -> Option<usize> {
        let start = |used: usize| (layout.align() <= align_of::<Self>()).then(|| used.next_multiple_of(layout.align()));
        let end = |used| start(used)?.checked_add(layout.size()).filter(|end| *end <= SIZE);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok().and_then(start)
    }

    /// Changes the end of a block, if it is the newest one and the arena has room for it.
    fn resize(&self, start: usize, old: usize, new: usize) -> bool {
        let fits = start.checked_add(new).is_some_and(|end| end <= SIZE);
        fits && self.used.compare_exchange(start + old, start + new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns where a block of the arena starts; `None` for blocks of the C library.
    fn place(&self, block: *mut u8) -> Option<usize> {
        block.addr().checked_sub(self.bytes.get().addr()).filter(|place| *place < SIZE)
    }
}

#[expect(unsafe_code, reason = "allocators hand out raw memory")]
mod global {
    use super::{Arena, GlobalAlloc, Layout, System, ptr};

    // SAFETY: the bytes are reached only through blocks, which never overlap: `used` grows atomically by each block, and shrinks only by the
    // newest one, whose owner gives it back.
    unsafe impl Sync for Arena {}

    // SAFETY: a block is `layout.size()` bytes of the arena at a multiple of `layout.align()`, since the arena is aligned to a page, or one of
    // the C library, which gets back only its own blocks.
    unsafe impl GlobalAlloc for Arena {
        // Not inlined into every place that allocates, for the size of the binary.
        #[inline(never)]
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            match self.take(layout) {
                // SAFETY: `take` returns places inside the arena.
                Some(place) => unsafe { self.bytes.get().cast::<u8>().add(place) },
                // SAFETY: the caller's layout.
                None => unsafe { System.alloc(layout) },
            }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            match self.place(block) {
                Some(place) => {
                    self.resize(place, layout.size(), 0);
                }
                // SAFETY: the block is not of the arena, so it is of the C library.
                None => unsafe { System.dealloc(block, layout) },
            }
        }

        #[inline(never)]
        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            let Some(place) = self.place(block) else {
                // SAFETY: the block is not of the arena, so it is of the C library.
                return unsafe { System.realloc(block, layout, size) };
            };
            if size <= layout.size() || self.resize(place, layout.size(), size) {
                return block;
            }
            // SAFETY: the caller guarantees that `size` is valid with this alignment.
            let other = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
            if !other.is_null() {
                // SAFETY: both blocks have at least the old size and do not overlap.
                unsafe { ptr::copy_nonoverlapping(block, other, layout.size()) };
            }
            other
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::arena::SIZE;

        #[test]
        fn blocks_are_aligned_disjoint_and_grow_in_place() {
            static ARENA: Arena = Arena::new();
            let arena = &ARENA;
            let layout = |size, align| Layout::from_size_align(size, align).unwrap();
            // SAFETY: every block is used with its own layout.
            unsafe {
                let small = arena.alloc(layout(3, 1));
                let wide = arena.alloc(layout(64, 64));
                assert!(wide.addr().is_multiple_of(64) && wide.addr() >= small.addr() + 3);
                wide.write_bytes(7, 64);
                assert_eq!(arena.realloc(wide, layout(64, 64), 1000), wide, "the newest block");
                let moved = arena.realloc(small, layout(3, 1), 10);
                assert!(moved.addr() >= wide.addr() + 1000);
                arena.dealloc(moved, layout(10, 1));
                assert_eq!(arena.alloc(layout(10, 1)), moved, "given back");
                assert!(std::slice::from_raw_parts(wide, 64).iter().all(|byte| *byte == 7));
                let shorter = arena.realloc(wide, layout(1000, 64), 5);
                assert_eq!(shorter, wide);
            }
        }

        #[test]
        fn the_library_takes_over_when_the_arena_is_used_up() {
            static ARENA: Arena = Arena::new();
            let arena = &ARENA;
            let layout = Layout::from_size_align(SIZE / 2 + 1, 8).unwrap();
            // SAFETY: every block is used with its own layout.
            unsafe {
                let first = arena.alloc(layout);
                let second = arena.alloc(layout);
                assert!(arena.place(first).is_some() && arena.place(second).is_none());
                second.write_bytes(1, layout.size());
                let second = arena.realloc(second, layout, SIZE);
                assert_eq!(*second, 1);
                arena.dealloc(second, Layout::from_size_align(SIZE, 8).unwrap());
                arena.dealloc(first, layout);
                assert_eq!(arena.alloc(layout), first);
            }
        }
    }
}
