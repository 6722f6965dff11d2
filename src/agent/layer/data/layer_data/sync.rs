//! Makes written content durable.

use std::io;
use std::sync::atomic::Ordering;

use super::LayerData;
use crate::agent::layer::data::chunks::Presence;
use crate::agent::layer::data::crash::step;
use crate::agent::layer::data::map::State;

impl LayerData {
    /// Makes the chunks durable that were written.
    ///
    /// # Errors
    /// If the disk may have lost some of them: all are compared with their digest again before they
    /// are read. Or if the map cannot be written.
    pub(in crate::agent::layer::data) fn sync(&self) -> io::Result<()> {
        if !self.is_dirty.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let outcome = self.try_sync();
        if outcome.is_err() {
            self.is_dirty.store(true, Ordering::SeqCst);
        }
        outcome
    }

    fn try_sync(&self) -> io::Result<()> {
        let Some(files) = self.open_files()?.filter(|files| files.is_writable) else {
            return Ok(());
        };
        let epoch = self.epoch.load(Ordering::SeqCst);
        let written = self.chunks.with_state(State::Written);
        step();
        files
            .data
            .sync_data()
            .inspect_err(|_| self.chunks.forget_checks())?;
        {
            let _alone = self.writes.write();
            // A chunk that was taken away and written again is not synced.
            if self.epoch.load(Ordering::SeqCst) != epoch || !self.uses(&files) {
                self.is_dirty.store(true, Ordering::SeqCst);
                return Ok(());
            }
            for run in written.chunk_by(|a, b| a + 1 == *b) {
                step();
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                files.map.set(run[0], count, State::Durable)?;
                for &number in run {
                    let is_checked = self.chunks.get(number).is_checked;
                    let state = State::Durable;
                    self.set(number, Presence { state, is_checked });
                }
            }
        }
        step();
        files.map.sync()
    }
}
