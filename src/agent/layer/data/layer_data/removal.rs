//! Takes content away: the entry in the map first, then the blocks.

use std::io;
use std::sync::atomic::Ordering;

use super::LayerData;
use crate::agent::layer::data::chunks::Presence;
use crate::agent::layer::data::crash::step;
use crate::agent::layer::data::files::Files;
use crate::agent::layer::data::lease::is_shared;
use crate::agent::layer::data::map::State;
use crate::agent::layer::data::punch;

/// The blocks of chunks that are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocks {
    Free,
    Keep,
}

impl LayerData {
    /// Takes chunks away and frees their blocks. Returns their number. `None` if somebody else reads
    /// the file: a file system that a container has, which would read zeros.
    pub(in crate::agent::layer::data) fn evict(&self, numbers: &[u32]) -> Option<usize> {
        let Ok(Some(files)) = self.open_files() else {
            return Some(0);
        };
        let _alone = self.writes.write();
        if self.is_read_by_others(&files) {
            return None;
        }
        Some(self.take_away_alone(&files, numbers, Blocks::Free))
    }

    /// Takes damaged chunks away that are here, and returns their number. `numbers` are sorted.
    ///
    /// If somebody else reads the file, their blocks stay until the right content is written there.
    pub(super) fn take_away(&self, numbers: &[u32]) -> usize {
        self.take_away_if(|| true, numbers)
    }

    /// Takes a damaged chunk away, unless content was taken away since `epoch`: then it may have been
    /// fetched again. Returns whether it was here.
    pub(super) fn take_away_since(&self, epoch: u64, number: u32) -> bool {
        let is_same = || self.epoch.load(Ordering::SeqCst) == epoch;
        self.take_away_if(is_same, &[number]) > 0
    }

    fn take_away_if(&self, is_wanted: impl Fn() -> bool, numbers: &[u32]) -> usize {
        let Ok(Some(files)) = self.open_files() else {
            return 0;
        };
        let _alone = self.writes.write();
        if !is_wanted() {
            return 0;
        }
        let blocks = if self.is_read_by_others(&files) {
            Blocks::Keep
        } else {
            Blocks::Free
        };
        self.take_away_alone(&files, numbers, blocks)
    }

    fn is_read_by_others(&self, files: &Files) -> bool {
        self.is_held() || is_shared(&files.data) == Some(true)
    }

    /// The caller holds `writes` alone.
    fn take_away_alone(&self, files: &Files, numbers: &[u32], blocks: Blocks) -> usize {
        if !self.uses(files) {
            return 0;
        }
        let mut is_durable = false;
        let mut gone = Vec::new();
        for &number in numbers {
            let before = self.set(number, Presence::ABSENT);
            is_durable |= before == State::Durable;
            if before != State::Absent {
                gone.push(number);
            }
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        match self.erase(files, &gone, is_durable, blocks) {
            Ok(()) => {}
            // The content stays where it is. A later start finds it.
            Err(error) => tracing::debug!(layer = self.name, %error, "map not written"),
        }
        self.measure(files);
        gone.len()
    }

    /// Clears the chunks in the map, then frees their blocks. After a power cut the map on disk must
    /// not call a hole durable.
    fn erase(
        &self,
        files: &Files,
        gone: &[u32],
        is_durable: bool,
        blocks: Blocks,
    ) -> io::Result<()> {
        for run in gone.chunk_by(|a, b| a + 1 == *b) {
            step();
            files.map.set(
                run[0],
                u32::try_from(run.len()).unwrap_or(u32::MAX),
                State::Absent,
            )?;
        }
        if is_durable {
            step();
            files.map.sync()?;
        }
        if blocks == Blocks::Keep {
            return Ok(());
        }
        for range in punch::ranges(self.toc(), &self.places, &self.chunks, gone) {
            step();
            files.punch_hole(&range);
        }
        Ok(())
    }
}
