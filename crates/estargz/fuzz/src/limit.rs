//! An allocator that ends the program at a request for very much memory at once.
//!
//! libFuzzer's `-malloc_limit_mb` needs the hooks of a sanitizer. `-rss_limit_mb` counts only
//! memory that is written to, and an allocation sized by hostile input need not be.

use std::alloc::{GlobalAlloc, Layout, System};

/// The largest allocation: four times the JSON of the largest TOC.
const MAX_BYTES: usize = 600 << 20;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

struct Limited;

// SAFETY: every method is that of the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        unsafe { System.dealloc(start, layout) }
    }
}

/// libFuzzer reports the signal and keeps the input.
fn check(bytes: usize) {
    if bytes > MAX_BYTES {
        std::process::abort();
    }
}
