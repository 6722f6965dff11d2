//! Opens, creates, closes and deletes the files of a layer, and begins anew when they are gone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Access, LayerData};
use crate::agent::layer::data::chunks::Presence;
use crate::agent::layer::data::crash::step;
use crate::agent::layer::data::files::{Files, Found};
use crate::agent::layer::data::map::State;
use crate::agent::layer::data::places::BLOCK;
use crate::agent::layer::data::punch;
use crate::agent::layer::data::space::Usage;

/// Pause before files that could not be read are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// More bytes on disk than the chunks explain are left by a crash. They are freed from this size on.
const MAX_LEFTOVER: u64 = 1 << 20;

impl LayerData {
    /// Deletes the files, and stores nothing until [`Self::revive`].
    pub(in crate::agent::layer::data) fn discard(&self) -> io::Result<()> {
        let _alone = self.writes.write();
        let mut access = self.access.lock();
        *access = Access::Discarded;
        self.is_loaded.store(true, Ordering::SeqCst);
        self.forget_all();
        step();
        self.site.remove()
    }

    /// Stores content again.
    pub(in crate::agent::layer::data) fn revive(&self) {
        let mut access = self.access.lock();
        if matches!(*access, Access::Discarded) {
            *access = Access::None;
        }
    }

    /// Closes the files until they are needed.
    pub(in crate::agent::layer::data) fn close(&self) {
        let mut access = self.access.lock();
        if let Access::Open(files) = &*access {
            *access = Access::Closed(files.inode);
        }
    }

    pub(in crate::agent::layer::data) fn is_open(&self) -> bool {
        matches!(*self.access.lock(), Access::Open(_))
    }

    /// Whether these files are still those of the layer.
    pub(super) fn uses(&self, files: &Files) -> bool {
        match &*self.access.lock() {
            Access::Open(open) => open.inode == files.inode,
            Access::Closed(inode) => *inode == files.inode,
            Access::Unread(_) | Access::None | Access::Discarded => false,
        }
    }

    /// Reads the map, if that has not been possible yet.
    pub(super) fn load(&self) {
        if self.is_loaded.load(Ordering::SeqCst) {
            return;
        }
        let mut access = self.access.lock();
        let Access::Unread(due) = *access else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        *access = match self.site.open() {
            Ok(found) => self.loaded(found),
            Err(error) => {
                tracing::debug!(layer = self.name, %error, "data file not opened");
                Access::Unread(now + AGAIN)
            }
        };
        let is_loaded = !matches!(*access, Access::Unread(_));
        self.is_loaded.store(is_loaded, Ordering::SeqCst);
    }

    fn loaded(&self, found: Found) -> Access {
        match found {
            Found::Nothing => Access::None,
            Found::Damaged(reason) => {
                tracing::warn!(
                    layer = self.name,
                    reason,
                    "data file dropped; its content is fetched again"
                );
                if let Err(error) = self.site.remove() {
                    tracing::debug!(layer = self.name, %error, "data file not deleted");
                }
                self.site.space.set(&self.name, Usage::default());
                Access::None
            }
            Found::Files(files, states) => {
                for (number, state) in (0..).zip(states) {
                    if state != State::Absent && !self.is_hole(number) {
                        self.set(number, Presence::unchecked(state));
                        self.is_dirty
                            .fetch_or(state == State::Written, Ordering::SeqCst);
                    }
                }
                self.measure(&files);
                self.free_leftovers(&files);
                Access::Open(Arc::new(files))
            }
        }
    }

    /// Frees blocks of chunks that were being written when a process was killed.
    fn free_leftovers(&self, files: &Files) {
        let explained = self.chunks.held_bytes() + self.chunks.held() * BLOCK;
        if self.usage().bytes < explained + u64::from(self.chunks.len()) + MAX_LEFTOVER {
            return;
        }
        let absent: Vec<u32> = (0..self.chunks.len())
            .filter(|number| !self.chunks.holds(*number))
            .collect();
        let ranges = punch::ranges(self.toc(), &self.places, &self.chunks, &absent);
        ranges.iter().for_each(|range| files.punch_hole(range));
        self.measure(files);
    }

    /// Returns the open files. `None` if there are none.
    pub(super) fn open_files(&self) -> io::Result<Option<Arc<Files>>> {
        let inode = {
            let mut access = self.access.lock();
            let inode = match &*access {
                Access::Open(files) => return Ok(Some(Arc::clone(files))),
                Access::Closed(inode) => *inode,
                Access::Unread(_) => return Err(io::ErrorKind::NotConnected.into()),
                Access::None | Access::Discarded => return Ok(None),
            };
            if let Found::Files(files, _) = self.site.open()?
                && files.inode == inode
            {
                let files = Arc::new(files);
                *access = Access::Open(Arc::clone(&files));
                return Ok(Some(files));
            }
            inode
        };
        self.reset(inode);
        Ok(None)
    }

    /// Returns the files for writing. Creates them if there are none. `None` if nothing is stored.
    pub(super) fn writable(&self) -> io::Result<Option<Arc<Files>>> {
        self.load();
        if let Some(files) = self.open_files()? {
            if files.is_writable {
                return Ok(Some(files));
            }
            // The disk may be writable again.
            self.close();
            let files = self.open_files()?;
            return match files {
                Some(files) if files.is_writable => Ok(Some(files)),
                _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            };
        }
        let mut access = self.access.lock();
        match &*access {
            Access::None => {}
            Access::Open(files) => return Ok(Some(Arc::clone(files))),
            Access::Discarded => return Ok(None),
            Access::Unread(_) | Access::Closed(_) => return Err(io::ErrorKind::WouldBlock.into()),
        }
        let files = Arc::new(self.site.create()?);
        self.measure(&files);
        *access = Access::Open(Arc::clone(&files));
        Ok(Some(files))
    }

    /// Notes what the files take on disk. Returns false if they were deleted by somebody else.
    pub(super) fn measure(&self, files: &Files) -> bool {
        match files.usage() {
            Ok(Some(usage)) => self.site.space.set(&self.name, usage),
            Ok(None) => return false,
            Err(error) => tracing::debug!(layer = self.name, %error, "data file not measured"),
        }
        true
    }

    /// Begins with nothing, because the data file with this inode was deleted by somebody else.
    pub(super) fn reset(&self, inode: u64) {
        let _alone = self.writes.write();
        let mut access = self.access.lock();
        let is_current = match &*access {
            Access::Open(files) => files.inode == inode,
            Access::Closed(known) => *known == inode,
            Access::Unread(_) | Access::None | Access::Discarded => false,
        };
        if is_current {
            tracing::warn!(
                layer = self.name,
                "data file is gone; its content is fetched again"
            );
            *access = Access::None;
            self.forget_all();
        }
    }

    fn forget_all(&self) {
        for number in 0..self.chunks.len() {
            self.set(number, Presence::ABSENT);
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.site.space.set(&self.name, Usage::default());
    }
}
