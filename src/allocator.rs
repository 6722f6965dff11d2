//! The allocator of the executable: mimalloc, and the system's for very large blocks.
//!
//! glibc's is three times slower if buffers of megabytes come and go. mimalloc fills large zeroed
//! blocks with zeros that the system has given it as zeros already, and keeps them when they are
//! freed. An agent has a buffer of 16 MiB for each FUSE mount, of which it uses some kilobytes.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// Blocks from this size on are the system's: above the buffers of conversions, which come and go.
const LARGE: usize = 12 << 20;

/// Both allocators. The size of a block says whose it is.
pub(super) struct Allocator;

fn is_large(size: usize) -> bool {
    size >= LARGE
}

// SAFETY: each method passes its arguments on to one of two allocators. A block is freed and resized
// by the one that made it, because both choose by the size in its layout.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        unsafe {
            if is_large(layout.size()) {
                System.alloc(layout)
            } else {
                MiMalloc.alloc(layout)
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        unsafe {
            if is_large(layout.size()) {
                System.alloc_zeroed(layout)
            } else {
                MiMalloc.alloc_zeroed(layout)
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block and layout; the size says who allocated it.
        unsafe {
            if is_large(layout.size()) {
                System.dealloc(block, layout);
            } else {
                MiMalloc.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's block, layout and size, which is not zero and does not overflow when
        // it is rounded up to the alignment.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => System.realloc(block, layout, size),
                (false, false) => MiMalloc.realloc(block, layout, size),
                _ => {
                    let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if new.is_null() {
                        return new;
                    }
                    block.copy_to_nonoverlapping(new, layout.size().min(size));
                    self.dealloc(block, layout);
                    new
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_content_as_it_becomes_large_and_small_again() {
        let layout = |size| Layout::from_size_align(size, 64).unwrap();
        let sizes = [100, LARGE - 1, LARGE, 2 * LARGE, LARGE + 1, 1000, 10];
        // SAFETY: the layouts are those of the block, and within it the bytes are written first.
        unsafe {
            let mut size = 50;
            let mut block = Allocator.alloc(layout(size));
            block.write_bytes(7, size);
            for next in sizes {
                block = Allocator.realloc(block, layout(size), next);
                assert_eq!(block.align_offset(64), 0);
                let kept = std::slice::from_raw_parts(block, size.min(next));
                assert!(kept.iter().all(|byte| *byte == 7), "{size} to {next}");
                block.write_bytes(7, next);
                size = next;
            }
            Allocator.dealloc(block, layout(size));
        }
    }

    #[test]
    fn zeroed_blocks_are_zero_on_both_sides_of_the_limit() {
        for size in [LARGE - 1, LARGE] {
            let layout = Layout::from_size_align(size, 1).unwrap();
            // SAFETY: the layout is the block's.
            unsafe {
                let block = Allocator.alloc_zeroed(layout);
                let bytes = std::slice::from_raw_parts(block, size);
                assert!(bytes.iter().all(|byte| *byte == 0));
                Allocator.dealloc(block, layout);
            }
        }
    }
}
