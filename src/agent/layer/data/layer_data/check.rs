//! Compares content with its digests before anybody reads it.

use std::io;
use std::sync::atomic::Ordering;

use super::LayerData;
use crate::agent::layer::data::lease::is_shared;
use crate::agent::layer::data::map::State;

/// The progress of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Bytes that were read.
    pub bytes: u64,
    /// The chunk to go on with. `None` if there are no more.
    pub next: Option<u32>,
}

impl LayerData {
    /// Whether all content was compared with its digests since this process began.
    pub fn is_checked(&self) -> bool {
        let is_right = |number| self.chunks.get(number).is_checked || self.is_hole(number);
        (0..self.chunks.len()).all(is_right)
    }

    /// Compares all content that is here with its digests, unless that was done. What differs is
    /// forgotten.
    pub fn check_all(&self) {
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.check_some(from, u64::MAX).next;
        }
    }

    /// The same for the chunks from `from` on, until `most` bytes were read.
    pub fn check_some(&self, from: u32, most: u64) -> Checked {
        let mut checked = Checked {
            bytes: 0,
            next: None,
        };
        for number in from..self.chunks.len() {
            if checked.bytes >= most {
                checked.next = Some(number);
                break;
            }
            let presence = self.chunks.get(number);
            if presence.is_checked || presence.state == State::Absent {
                continue;
            }
            checked.bytes += self.chunk_size(number);
            if let Err(error) = self.check_one(number) {
                tracing::debug!(layer = self.name, number, %error, "content not compared");
            }
        }
        checked
    }

    fn check_one(&self, number: u32) -> io::Result<()> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let files = self.open_files()?.ok_or(io::ErrorKind::NotFound)?;
        self.check(&files, number, epoch)
    }

    /// Returns the numbers of the chunks with content that are not here.
    pub fn missing(&self) -> Vec<u32> {
        self.load();
        (0..self.chunks.len())
            .filter(|number| !self.chunks.holds(*number) && !self.is_hole(*number))
            .collect()
    }

    /// Whether it can be known who else reads the file.
    pub fn knows_readers(&self) -> bool {
        let files = self.open_files().ok().flatten();
        files.is_some_and(|files| is_shared(&files.data).is_some())
    }

    /// Notes that somebody reads the file who does not ask this process.
    pub fn mark_used(&self) {
        self.used.store(self.site.space.now(), Ordering::Relaxed);
    }
}
