//! Reads of a data file, without a lock.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use estargz::Digest;
use sha2::{Digest as _, Sha256};

use super::{LayerData, PIECE};
use crate::agent::layer::data::chunks::Presence;
use crate::agent::layer::data::files::Files;
use crate::agent::layer::data::map::State;
use crate::telemetry::metrics::metrics;

/// How often a read begins again because content was taken away meanwhile.
const ATTEMPTS: usize = 3;

impl LayerData {
    /// Reads a part of a chunk. `None` if it is not here, or cannot be read at the moment.
    pub fn read_chunk(&self, number: u32, part: Range<u64>) -> Option<Bytes> {
        let place = self.places.of_chunk(self.toc(), number)?;
        let bytes = place.start.checked_add(part.start)?..place.start.checked_add(part.end)?;
        self.read(bytes)
            .filter(|_| place.start + part.end <= place.end)
    }

    /// Reads bytes of the data file. Padding and holes are zeros. `None` if one of the chunks is not
    /// here, or cannot be read at the moment.
    pub fn read(&self, bytes: Range<u64>) -> Option<Bytes> {
        self.load();
        if bytes.start > bytes.end || bytes.end > self.places.size() {
            return None;
        }
        for _ in 0..ATTEMPTS {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let mut has_content = false;
            for number in self.numbers(&bytes) {
                if self.chunks.holds(number) {
                    has_content = true;
                } else if !self.is_hole(number) {
                    return None;
                }
            }
            let found = if has_content {
                self.try_read(&bytes, epoch)
            } else {
                length(&bytes).map(|length| Bytes::from(vec![0; length]))
            };
            if self.epoch.load(Ordering::SeqCst) != epoch {
                continue;
            }
            return match found {
                Ok(content) => {
                    self.touch(&bytes);
                    Some(content)
                }
                Err(error) => {
                    self.pass_over(&bytes, &error);
                    None
                }
            };
        }
        None
    }

    pub(super) fn numbers(&self, bytes: &Range<u64>) -> impl Iterator<Item = u32> {
        let pieces = self.places.pieces(self.toc(), bytes.clone());
        pieces.map(|piece| piece.number)
    }

    fn touch(&self, bytes: &Range<u64>) {
        let now = self.site.space.now();
        self.used.store(now, Ordering::Relaxed);
        self.numbers(bytes)
            .for_each(|number| self.chunks.touch(number, now));
    }

    /// Forgets content that somebody cut off. Content that cannot be read at the moment stays:
    /// descriptors or memory are short, or the disk has a temporary fault.
    fn pass_over(&self, bytes: &Range<u64>, error: &io::Error) {
        tracing::debug!(layer = self.name, %error, "data file not readable at the moment");
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.take_away(&self.numbers(bytes).collect::<Vec<_>>());
        }
    }

    fn try_read(&self, bytes: &Range<u64>, epoch: u64) -> io::Result<Bytes> {
        let files = self.open_files()?.ok_or(io::ErrorKind::NotFound)?;
        for number in self.numbers(bytes) {
            self.check(&files, number, epoch)?;
        }
        let mut content = vec![0; length(bytes)?];
        files.data.read_exact_at(&mut content, bytes.start)?;
        Ok(content.into())
    }

    /// Compares a chunk with its digest, unless this process has done so. One that differs is
    /// forgotten.
    pub(super) fn check(&self, files: &Files, number: u32, epoch: u64) -> io::Result<()> {
        let presence = self.chunks.get(number);
        let Some(digest) = self.digest(number) else {
            return Ok(());
        };
        if presence.is_checked || presence.state == State::Absent {
            return Ok(());
        }
        let is_right = match self.hash(files, number) {
            Ok(found) => found == digest,
            // Somebody cut the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        if is_right {
            self.confirm(files, number, presence.state, epoch);
            return Ok(());
        }
        // Another reader may have noticed the same.
        if self.take_away_since(epoch, number) {
            tracing::warn!(layer = self.name, chunk = %digest, "chunk damaged on disk; it is fetched again");
            metrics().cache_damaged.inc();
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "content has another digest",
        ))
    }

    fn hash(&self, files: &Files, number: u32) -> io::Result<Digest> {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE];
        let Range { mut start, end } = self.place(number)?;
        while start < end {
            let length = usize::try_from(end - start).unwrap_or(PIECE).min(PIECE);
            files.data.read_exact_at(&mut piece[..length], start)?;
            hasher.update(&piece[..length]);
            start += length as u64;
        }
        Ok(hasher.into())
    }

    /// Notes that a chunk was compared with its digest. One that was doubtful is so no more.
    fn confirm(&self, files: &Files, number: u32, state: State, epoch: u64) {
        let _share = self.writes.read();
        if self.epoch.load(Ordering::SeqCst) != epoch {
            return;
        }
        if state != State::Doubtful {
            self.chunks.set_checked(number, state);
            return;
        }
        self.set(number, Presence::checked(State::Written));
        if let Err(error) = files.map.set(number, 1, State::Written) {
            tracing::debug!(layer = self.name, %error, "map not written");
        }
        self.is_dirty.store(true, Ordering::SeqCst);
    }
}

fn length(bytes: &Range<u64>) -> io::Result<usize> {
    usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)
}
