//! Writes of chunks: content first, then its entry in the map.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use rustix::fs::copy_file_range;

use super::{LayerData, PIECE};
use crate::agent::layer::data::chunks::Presence;
use crate::agent::layer::data::crash::step;
use crate::agent::layer::data::files::Files;
use crate::agent::layer::data::map::State;
use crate::agent::layer::data::punch;

impl LayerData {
    /// Stores a chunk whose content was compared with its digest. Returns whether it is here now:
    /// nothing is stored for a layer that no mount needs.
    ///
    /// # Errors
    /// If it cannot be written at the moment.
    pub(in crate::agent::layer::data) fn put(
        &self,
        number: u32,
        content: &[u8],
    ) -> io::Result<bool> {
        let place = self.place(number)?;
        self.write(number, |files| {
            files.data.write_all_at(content, place.start)?;
            Ok(Some(Presence::checked(State::Written)))
        })
    }

    /// Copies a chunk that another layer holds. Returns whether it is here now. The copy is
    /// compared with its digest before it is read.
    pub(in crate::agent::layer::data) fn copy(
        &self,
        number: u32,
        other: &Self,
        theirs: u32,
    ) -> io::Result<bool> {
        let epoch = other.epoch.load(Ordering::SeqCst);
        let Some(from) = other.open_files()?.filter(|_| other.chunks.holds(theirs)) else {
            return Ok(false);
        };
        other.check(&from, theirs, epoch)?;
        let (source, place) = (other.place(theirs)?, self.place(number)?);
        self.write(number, |files| {
            copy(&from, source.start, files, place)?;
            let is_whole = other.epoch.load(Ordering::SeqCst) == epoch;
            Ok(is_whole.then_some(Presence::unchecked(State::Written)))
        })
    }

    /// Runs `write` to write a chunk's content, if it is not here, and notes it in the map. Returns
    /// whether it is here now.
    fn write(
        &self,
        number: u32,
        write: impl FnOnce(&Files) -> io::Result<Option<Presence>>,
    ) -> io::Result<bool> {
        let Some(files) = self.writable()? else {
            return Ok(false);
        };
        let is_gone = {
            let _share = self.writes.read();
            if self.chunks.holds(number) {
                return Ok(true);
            }
            if !self.uses(&files) {
                return Ok(false);
            }
            step();
            match write(&files) {
                Err(error) => Err(error),
                Ok(None) => return Ok(false),
                Ok(Some(presence)) => {
                    step();
                    self.note(&files, number, presence);
                    Ok(!self.measure(&files))
                }
            }
        };
        match is_gone {
            Err(error) => {
                self.give_back(&files, number);
                Err(error)
            }
            Ok(true) => {
                self.reset(files.inode);
                Ok(false)
            }
            Ok(false) => Ok(true),
        }
    }

    /// Notes a chunk that was written.
    fn note(&self, files: &Files, number: u32, presence: Presence) {
        self.chunks.touch(number, self.site.space.tick());
        self.set(number, presence);
        if let Err(error) = files.map.set(number, 1, State::Written) {
            tracing::debug!(layer = self.name, %error, "map not written");
        }
        self.is_dirty.store(true, Ordering::SeqCst);
    }

    /// Frees the blocks of a chunk that was written in part, on a full disk.
    fn give_back(&self, files: &Files, number: u32) {
        let _alone = self.writes.write();
        if !self.chunks.holds(number) {
            let ranges = punch::ranges(self.toc(), &self.places, &self.chunks, &[number]);
            ranges.iter().for_each(|range| files.punch_hole(range));
        }
        self.measure(files);
    }
}

/// Copies a chunk from another data file. The kernel shares the blocks where the file system can.
fn copy(from: &Files, start: u64, to: &Files, place: Range<u64>) -> io::Result<()> {
    let (mut source, mut target) = (start, place.start);
    while target < place.end {
        let left = usize::try_from(place.end - target).unwrap_or(usize::MAX);
        match copy_file_range(
            &from.data,
            Some(&mut source),
            &to.data,
            Some(&mut target),
            left,
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // Not between these file systems.
            Err(_) => return copy_by_hand(from, source, to, target..place.end),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &Files, mut source: u64, to: &Files, place: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut target = place.start;
    while target < place.end {
        let length = usize::try_from(place.end - target)
            .unwrap_or(PIECE)
            .min(PIECE);
        from.data.read_exact_at(&mut piece[..length], source)?;
        to.data.write_all_at(&piece[..length], target)?;
        (source, target) = (source + length as u64, target + length as u64);
    }
    Ok(())
}
