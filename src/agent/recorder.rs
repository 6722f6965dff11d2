//! Which files were opened, in the order of first use. Nobody asks for it but `starlift optimize`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A workload that opens more files than this gains nothing by having them all first.
const MAX_FILES: usize = 1 << 20;

/// Files by their inodes. Notes cost a look into a set, hold no file's name, and never outgrow a bound.
#[derive(Debug)]
pub struct Recorder {
    is_on: AtomicBool,
    files: Mutex<Files>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Files {
    in_order: Vec<u64>,
    seen: HashSet<u64>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::with_limit(MAX_FILES)
    }
}

impl Recorder {
    fn with_limit(limit: usize) -> Self {
        Self { is_on: AtomicBool::new(false), files: Mutex::default(), limit }
    }

    /// Notes from here on; what was opened before does not count.
    pub fn begin(&self) {
        self.is_on.store(true, Ordering::Release);
    }

    /// The file was opened or read.
    pub fn note(&self, inode: u64) {
        if !self.is_on.load(Ordering::Acquire) {
            return;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.in_order.len() < self.limit && files.seen.insert(inode) {
            files.in_order.push(inode);
        }
    }

    /// Ends the recording and gives the inodes, each once.
    pub fn end(&self) -> Vec<u64> {
        self.is_on.store(false, Ordering::Release);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *files).in_order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(recorder: &Recorder, inodes: &[u64]) -> Vec<u64> {
        inodes.iter().for_each(|inode| recorder.note(*inode));
        recorder.end()
    }

    #[test]
    fn files_are_noted_once_in_order_between_begin_and_end() {
        let recorder = Recorder::default();
        assert!(recorded(&recorder, &[1]).is_empty(), "it has not begun");
        recorder.begin();
        assert_eq!(recorded(&recorder, &[5, 3, 5, 9, 3]), [5, 3, 9]);
        assert!(recorded(&recorder, &[7]).is_empty(), "it has ended");
    }

    #[test]
    fn the_first_files_are_kept_when_there_are_too_many() {
        let recorder = Recorder::with_limit(2);
        recorder.begin();
        assert_eq!(recorded(&recorder, &[1, 2, 3, 1]), [1, 2]);
    }
}
