//! Records the files of some mounts that are opened and read: while a container starts, or while
//! `starlift optimize` runs one.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::agent::layer::tree::FileId;
use crate::agent::numbers::LayerNumber;
use crate::profile::Extents;

/// Ranges of one file that are stored before adjacent ones are merged.
const MAX_PARTS: usize = 512;

/// The recordings. A note costs one atomic load while nothing is recorded, else a table lookup.
/// Names of files are not stored, and tables do not outgrow their bounds.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// The number of recordings, readable without a lock.
    running: AtomicUsize,
    tables: RwLock<Vec<Arc<Table>>>,
}

/// A recording that runs until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Recording {
    recorder: Arc<Recorder>,
    table: Arc<Table>,
}

/// One file that was used during a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Used {
    /// The number of its mount.
    pub number: LayerNumber,
    pub id: FileId,
    /// Time from the start of the recording to the file's first use.
    pub after: Duration,
    /// The ranges that were read, in whole chunks. Empty if the file was opened and the kernel had
    /// its pages.
    pub extents: Extents,
}

/// The notes of one recording.
#[derive(Debug)]
struct Table {
    begun: Instant,
    mounts: HashSet<LayerNumber>,
    limit: usize,
    noted: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    files: Vec<File>,
    places: HashMap<(LayerNumber, FileId), usize>,
    last: Option<Instant>,
}

#[derive(Debug)]
struct File {
    number: LayerNumber,
    id: FileId,
    after: Duration,
    parts: Vec<Range<u64>>,
}

impl Recorder {
    /// Records the use of the mounts with these numbers from now on, for the first `limit` files.
    pub(crate) fn begin(
        self: &Arc<Self>,
        mounts: impl IntoIterator<Item = LayerNumber>,
        limit: usize,
    ) -> Recording {
        let (begun, mounts, noted) = (
            Instant::now(),
            mounts.into_iter().collect(),
            Mutex::default(),
        );
        let table = Arc::new(Table {
            begun,
            mounts,
            limit,
            noted,
        });
        let mut tables = self.tables.write();
        tables.push(Arc::clone(&table));
        self.running.store(tables.len(), Ordering::Release);
        Recording {
            recorder: Arc::clone(self),
            table,
        }
    }

    /// Whether anything is recorded.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }

    /// Records that the file was opened, or that the range that `part` returns was read.
    pub(crate) fn note(
        &self,
        number: LayerNumber,
        id: FileId,
        part: impl Fn() -> Option<Range<u64>>,
    ) {
        if !self.is_running() {
            return;
        }
        let tables = self.tables.read();
        for table in tables.iter().filter(|table| table.mounts.contains(&number)) {
            table.note(number, id, part());
        }
    }
}

impl Table {
    fn note(&self, number: LayerNumber, id: FileId, part: Option<Range<u64>>) {
        let now = Instant::now();
        let mut noted = self.noted.lock();
        let Notes {
            files,
            places,
            last,
        } = &mut *noted;
        *last = Some(now);
        let place = match places.get(&(number, id)) {
            Some(place) => *place,
            None if files.len() >= self.limit => return,
            None => {
                places.insert((number, id), files.len());
                files.push(File {
                    number,
                    id,
                    after: now.duration_since(self.begun),
                    parts: Vec::new(),
                });
                files.len() - 1
            }
        };
        if let (Some(file), Some(part)) = (files.get_mut(place), part) {
            file.add(part);
        }
    }
}

impl File {
    fn add(&mut self, part: Range<u64>) {
        match self.parts.last_mut() {
            Some(last) if last.start <= part.start && part.start <= last.end => {
                last.end = last.end.max(part.end)
            }
            _ => self.parts.push(part),
        }
        if self.parts.len() > MAX_PARTS {
            self.parts = Extents::new(self.parts.drain(..)).iter().collect();
        }
    }
}

impl Recording {
    pub(crate) fn begun(&self) -> Instant {
        self.table.begun
    }

    /// Returns the time of the last use of any file.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.table.noted.lock().last
    }

    /// Ends the recording and returns each file once, in the order of first use.
    pub(crate) fn end(self) -> Vec<Used> {
        let noted = std::mem::take(&mut *self.table.noted.lock());
        let used = |File {
                        number,
                        id,
                        after,
                        parts,
                    }| Used {
            number,
            id,
            after,
            extents: Extents::new(parts),
        };
        noted.files.into_iter().map(used).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut tables = self.recorder.tables.write();
        tables.retain(|table| !Arc::ptr_eq(table, &self.table));
        self.recorder.running.store(tables.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(recorder: &Recorder, files: &[(u64, u32)]) {
        files
            .iter()
            .for_each(|(number, id)| recorder.note(LayerNumber(*number), FileId(*id), || None));
    }

    fn files(recording: Recording) -> Vec<(u64, u32)> {
        recording
            .end()
            .into_iter()
            .map(|used| (used.number.0, used.id.0))
            .collect()
    }

    #[test]
    fn files_are_noted_once_in_order_between_begin_and_end() {
        let recorder = Arc::new(Recorder::default());
        opened(&recorder, &[(1, 1)]);
        let recording = recorder.begin([1, 2].map(LayerNumber), 10);
        assert_eq!(recording.last(), None);
        opened(&recorder, &[(1, 5), (2, 5), (3, 5), (1, 5), (1, 4)]);
        assert!(recording.last().is_some());
        assert_eq!(files(recording), [(1, 5), (2, 5), (1, 4)]);
        assert_eq!(recorder.running.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn several_recordings_run_at_once() {
        let recorder = Arc::new(Recorder::default());
        let (one, two) = (
            recorder.begin([LayerNumber(1)], 10),
            recorder.begin([1, 2].map(LayerNumber), 10),
        );
        opened(&recorder, &[(2, 1), (1, 1)]);
        assert_eq!(files(one), [(1, 1)]);
        opened(&recorder, &[(1, 2)]);
        assert_eq!(files(two), [(2, 1), (1, 1), (1, 2)]);
    }

    #[test]
    fn only_the_first_files_up_to_the_limit_are_recorded() {
        let recorder = Arc::new(Recorder::default());
        let recording = recorder.begin([LayerNumber(1)], 2);
        opened(&recorder, &[(1, 1), (1, 2), (1, 3), (1, 1)]);
        assert_eq!(files(recording), [(1, 1), (1, 2)]);
    }

    #[test]
    fn parts_that_were_read_become_extents() {
        let recorder = Arc::new(Recorder::default());
        let recording = recorder.begin([LayerNumber(1)], 2);
        opened(&recorder, &[(1, 1)]);
        for part in [0..10, 10..20, 40..50, 5..8] {
            recorder.note(LayerNumber(1), FileId(1), || Some(part.clone()));
        }
        for number in 0..10_000 {
            recorder.note(LayerNumber(1), FileId(2), || {
                Some(number * 20..number * 20 + 10)
            });
        }
        let used = recording.end();
        assert_eq!(used[0].extents, Extents::new([0..20, 40..50]));
        let read = &used[1].extents;
        assert!(
            read.iter().count() <= MAX_PARTS && read.iter().any(|range| range.contains(&199_985))
        );
    }
}
