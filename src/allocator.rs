//! The allocator of the executable: mimalloc, and the kernel for very large blocks.
//!
//! glibc's is three times slower if buffers of megabytes come and go. mimalloc fills large zeroed
//! blocks with zeros that the system has given it as zeros already, and keeps them when they are
//! freed. An agent has a buffer of 16 MiB for each FUSE mount, of which it uses some kilobytes.
//!
//! mimalloc returns freed memory only while a thread allocates more. A program that has nothing more
//! to do must call [`collect`].

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use mimalloc::MiMalloc;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap,
};

/// Blocks from this size on are mappings of their own: above the buffers of conversions, which come
/// and go. glibc would keep up to 64 MiB of them once one was freed.
const LARGE: usize = 12 << 20;
/// Bytes of a mapping that are present from the start. An agent that is killed while the kernel copies
/// the first request into a page that is not there yet fails that request: the kernel answers it with
/// EIO, and the next agent never sees it (fuse_dev_do_read, `fs/fuse/dev.c`).
const PRESENT: usize = 16 << 10;
/// The least alignment of a mapping.
const PAGE: usize = 4096;

/// Both allocators. The layout of a block says whose it is.
#[derive(Debug)]
pub struct Allocator;

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Returns to the system the memory that this thread has freed, and that other threads freed a
/// while ago. Takes some milliseconds if there is much of it.
pub fn collect() {
    // SAFETY: mimalloc's own function, which any thread may call at any time.
    unsafe { mi_collect(true) }
}

fn is_large(size: usize, layout: Layout) -> bool {
    size >= LARGE && layout.align() <= PAGE
}

/// Maps a block of zeros. Only its first pages have memory behind them. Null if there is no room.
fn map(size: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a place that is free.
    let block = unsafe { mmap_anonymous(ptr::null_mut(), size, access, MapFlags::PRIVATE) };
    if let Ok(block) = block {
        // SAFETY: it only makes pages of the new block present. Kernels before 5.14 do not know it.
        let _present_or_at_their_first_use =
            unsafe { madvise(block, PRESENT.min(size), Advice::LinuxPopulateWrite) };
    }
    block.map_or(ptr::null_mut(), <*mut _>::cast)
}

/// Changes the size of a mapped block.
///
/// # Safety
/// The block must be one of [`map`] with this size.
unsafe fn remap(block: *mut u8, size: usize, new: usize) -> *mut u8 {
    // SAFETY: the caller's block, which may move.
    let moved = unsafe { mremap(block.cast(), size, new, MremapFlags::MAYMOVE) };
    moved.map_or(ptr::null_mut(), <*mut _>::cast)
}

/// Frees a mapped block.
///
/// # Safety
/// The block must be one of [`map`] with this size, which nobody uses.
unsafe fn unmap(block: *mut u8, size: usize) {
    // SAFETY: the caller's block. Unmapping a whole mapping does not fail.
    let _unmapped = unsafe { munmap(block.cast(), size) };
}

// SAFETY: each method passes its arguments on to mimalloc or to the kernel. A block is freed and
// resized by the one that made it, because both choose by its layout.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's layout.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's layout.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block and layout; the layout says who allocated it.
        unsafe {
            if is_large(layout.size(), layout) {
                unmap(block, layout.size());
            } else {
                MiMalloc.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's block, layout and size, which is not zero and does not overflow when
        // it is rounded up to the alignment.
        unsafe {
            match (is_large(layout.size(), layout), is_large(size, layout)) {
                (true, true) => remap(block, layout.size(), size),
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
    use std::fs;
    use std::os::unix::fs::FileExt as _;

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

    /// Whether the page at this address has memory behind it (pagemap, Linux's
    /// Documentation/admin-guide/mm/pagemap.rst).
    fn is_present(address: usize) -> bool {
        let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
        let mut entry = [0; 8];
        let place = (address / PAGE * entry.len()) as u64;
        pagemap.read_exact_at(&mut entry, place).unwrap();
        u64::from_le_bytes(entry) >> 63 == 1
    }

    #[test]
    fn only_the_first_pages_of_a_large_block_are_present() {
        let layout = Layout::from_size_align(LARGE, 1).unwrap();
        // SAFETY: the layout is the block's.
        unsafe {
            let block = Allocator.alloc_zeroed(layout);
            assert!(
                (0..PRESENT)
                    .step_by(PAGE)
                    .all(|at| is_present(block.addr() + at))
            );
            assert!(!is_present(block.addr() + PRESENT));
            Allocator.dealloc(block, layout);
        }
    }

    #[test]
    fn a_large_block_with_a_large_alignment_is_aligned() {
        let layout = Layout::from_size_align(LARGE, 1 << 16).unwrap();
        // SAFETY: the layout is the block's.
        unsafe {
            let block = Allocator.alloc(layout);
            assert_eq!(block.align_offset(1 << 16), 0);
            Allocator.dealloc(block, layout);
        }
    }

    /// Bytes of memory that the process holds.
    fn resident() -> usize {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let pages = pages.split(' ').nth(1).unwrap();
        pages.parse::<usize>().unwrap() * PAGE
    }

    #[test]
    fn freed_memory_is_returned_when_it_is_collected() {
        let layout = Layout::from_size_align(1 << 20, 64).unwrap();
        let before = resident();
        let allocate = |_| {
            // SAFETY: the layout is not empty, and the block has its size.
            unsafe {
                let block = Allocator.alloc(layout);
                block.write_bytes(7, layout.size());
                block
            }
        };
        let blocks: Vec<_> = (0..64).map(allocate).collect();
        assert!(resident() > before + (60 << 20));
        for block in blocks {
            // SAFETY: the block has this layout, and nobody uses it.
            unsafe { Allocator.dealloc(block, layout) };
        }
        collect();
        assert!(resident() < before + (8 << 20));
    }
}
