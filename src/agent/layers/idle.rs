//! Returns the memory that the agent does not use, from time to time.
//!
//! ```text
//! freed blocks             ▶ the allocator gives their pages back
//! tables of the layers     ▶ their pages are those of files, which are read again at the next use
//! code of start and mounts ▶ the same: the pages are those of the program's file
//! ```
//! Without this an idle agent holds the memory of its busiest minute for ever: its allocator returns
//! memory only while it allocates more, and the kernel unmaps pages of files only when it lacks
//! memory.

#![expect(unsafe_code, reason = "madvise(2)")]

use std::fs;
use std::ops::Range;
use std::ptr;

use rustix::mm::{Advice, madvise};

use crate::agent::layer::data::DataStore;
use crate::allocator;

/// Returns the memory that is not in use. Code and tables that are used again cost a page fault for
/// each 64 KiB, as long as the page cache has them. Blocking; takes milliseconds.
pub(super) fn release(store: &DataStore) {
    store.release_tables();
    allocator::collect();
    release_code();
}

/// Unmaps the pages of the program's code. Those that are executed next come back from the page
/// cache.
fn release_code() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for range in maps.lines().filter_map(code) {
        let start = ptr::without_provenance_mut(range.start);
        // SAFETY: code is never written, so that its pages are those of its file, and nothing is lost.
        let released = unsafe { madvise(start, range.len(), Advice::LinuxDontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of code not released");
        }
    }
}

/// Returns the addresses of a mapping, a line of proc_pid_maps(5), if it is the code of a file.
fn code(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    is_code.then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_released() {
        let line = "7f8000-7f9000 r-xp 00001000 fd:00 42    /usr/bin/starlift";
        assert_eq!(code(line), Some(0x007f_8000..0x007f_9000));
        for other in [
            "7f8000-7f9000 r--p 00001000 fd:00 42    /usr/bin/starlift",
            "7f8000-7f9000 rw-p 00001000 fd:00 42    /usr/bin/starlift",
            "7f8000-7f9000 r-xp 00000000 00:00 0     [vdso]",
            "7f8000-7f9000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    /// Returns the kilobytes that the process holds, as the kernel counts them page by page.
    fn resident() -> u64 {
        let all = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = all.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse().unwrap()
    }

    #[test]
    fn a_program_goes_on_without_the_pages_of_its_code() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        for range in maps.lines().filter_map(code) {
            let start = ptr::without_provenance_mut(range.start);
            // SAFETY: it only reads the pages of the file.
            unsafe { madvise(start, range.len(), Advice::LinuxPopulateRead) }.unwrap();
        }
        let before = resident();
        release_code();
        assert!(resident() + 1024 < before);
    }
}
