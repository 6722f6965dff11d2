//! The map of a data file on disk: which chunks it holds, and how sure that is.
//!
//! ```text
//! 0    magic, version, number of chunks, TOC digest, boot, inode of the data file, checksum
//! 128  one byte for each chunk: '.' absent, 'w' written, 'd' durable, '?' doubtful
//! ```
//! A byte is set after the content is written, and cleared before it is taken away. The page cache
//! keeps both in this order when the agent is killed. A power cut does not: a chunk counts as
//! durable only once its content was synced before its byte. All other chunks become doubtful when
//! the node boots again, and are compared with their digest before they are read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use estargz::Digest;

use super::crash::step;

const MAGIC: &[u8; 8] = b"starlmap";
const VERSION: u32 = 1;
/// Bytes before the first chunk's.
const HEADER: usize = 128;
/// Bytes that the checksum covers, and the bytes of the checksum.
const SUMMED: usize = 72;
const CHECKSUM: usize = 16;

/// The state of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Absent,
    /// Written before the node booted, and perhaps not completely.
    Doubtful,
    /// Written since the node booted.
    Written,
    /// Written, and synced to the disk.
    Durable,
}

/// The identity of the kernel's uptime. `None` if there is none, which equals nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot(Option<[u8; 16]>);

/// The data file that a map describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) chunks: u32,
    pub(super) toc: Digest,
    /// The inode of the data file: a map does not fit a data file that was made anew.
    pub(super) inode: u64,
}

/// An open map.
#[derive(Debug)]
pub(super) struct Map(File);

impl State {
    const ALL: [Self; 4] = [Self::Absent, Self::Doubtful, Self::Written, Self::Durable];

    fn byte(self) -> u8 {
        match self {
            Self::Absent => b'.',
            Self::Doubtful => b'?',
            Self::Written => b'w',
            Self::Durable => b'd',
        }
    }

    fn of_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.byte() == byte)
    }
}

impl Boot {
    pub(super) fn current() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let id = id
            .map(|text| text.trim().replace('-', ""))
            .unwrap_or_default();
        let mut bytes = [0; 16];
        Self(hex::decode_to_slice(id, &mut bytes).ok().map(|()| bytes))
    }

    #[cfg(test)]
    pub(super) fn of_test(id: [u8; 16]) -> Self {
        Self(Some(id))
    }

    fn is(self, other: [u8; 16]) -> bool {
        self.0 == Some(other)
    }
}

impl Map {
    /// Creates the map, in place of one that exists.
    pub(super) fn create(
        path: &Path,
        subject: &Subject,
        boot: Boot,
        states: impl Iterator<Item = State>,
    ) -> io::Result<Self> {
        let new = path.with_extension("map.new");
        let mut bytes = header(subject, boot).to_vec();
        bytes.extend(states.map(State::byte));
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        step();
        let written = file.write_all_at(&bytes, 0);
        step();
        if let Err(error) = written.and_then(|()| fs::rename(&new, path)) {
            let _gone = fs::remove_file(&new);
            return Err(error);
        }
        Ok(Self(file))
    }

    pub(super) fn new(file: File) -> Self {
        Self(file)
    }

    /// Returns the number of chunks that a map of this length has.
    pub(super) fn chunks(&self) -> io::Result<u32> {
        let chunks = self.0.metadata()?.len().saturating_sub(HEADER as u64);
        u32::try_from(chunks).map_err(io::Error::other)
    }

    /// Reads the states of the chunks. `None` if the map is damaged or describes another data file.
    /// Chunks that were written before the node booted are doubtful. Returns also whether some of
    /// them were not before.
    pub(super) fn read(
        &self,
        subject: &Subject,
        boot: Boot,
    ) -> io::Result<Option<(Vec<State>, bool)>> {
        let wanted = HEADER as u64 + u64::from(subject.chunks);
        if self.0.metadata()?.len() != wanted {
            return Ok(None);
        }
        let mut bytes = vec![0; HEADER + subject.chunks as usize];
        self.0.read_exact_at(&mut bytes, 0)?;
        let (head, bytes) = bytes.split_at(HEADER);
        let Some(written_in) = boot_of(head, subject) else {
            return Ok(None);
        };
        let states: Option<Vec<State>> = bytes.iter().copied().map(State::of_byte).collect();
        let Some(mut states) = states else {
            return Ok(None);
        };
        let is_stale = !boot.is(written_in);
        if is_stale {
            let written = states.iter_mut().filter(|state| **state == State::Written);
            written.for_each(|state| *state = State::Doubtful);
        }
        Ok(Some((states, is_stale)))
    }

    /// Sets the state of `count` chunks from `first` on.
    pub(super) fn set(&self, first: u32, count: u32, state: State) -> io::Result<()> {
        let bytes = vec![state.byte(); count as usize];
        self.0
            .write_all_at(&bytes, HEADER as u64 + u64::from(first))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

fn header(subject: &Subject, boot: Boot) -> [u8; HEADER] {
    let fields = [
        &MAGIC[..],
        &VERSION.to_le_bytes(),
        &subject.chunks.to_le_bytes(),
        subject.toc.as_bytes(),
        &boot.0.unwrap_or_default(),
        &subject.inode.to_le_bytes(),
    ]
    .concat();
    let mut header = [0; HEADER];
    header[..SUMMED].copy_from_slice(&fields);
    let sum = Digest::of(&fields);
    header[SUMMED..SUMMED + CHECKSUM].copy_from_slice(&sum.as_bytes()[..CHECKSUM]);
    header
}

/// Returns the boot in which the map of `subject` was written. `None` if `head` is not the header
/// of such a map.
fn boot_of(head: &[u8], subject: &Subject) -> Option<[u8; 16]> {
    let boot = head.get(48..64)?.try_into().ok()?;
    (*head == header(subject, Boot(Some(boot)))).then_some(boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject = Subject {
        chunks: 4,
        toc: Digest::from_bytes([7; 32]),
        inode: 9,
    };
    const NOW: Boot = Boot(Some([1; 16]));

    fn map(folder: &Path) -> Map {
        Map::create(&folder.join("a.map"), &SUBJECT, NOW, State::ALL.into_iter()).unwrap()
    }

    #[test]
    fn states_are_read_as_they_were_set() {
        let folder = tempfile::tempdir().unwrap();
        let map = map(folder.path());
        assert_eq!(
            map.read(&SUBJECT, NOW).unwrap().unwrap(),
            (State::ALL.to_vec(), false)
        );
        map.set(0, 2, State::Durable).unwrap();
        map.set(3, 1, State::Absent).unwrap();
        let states = map.read(&SUBJECT, NOW).unwrap().unwrap().0;
        use State::{Absent, Durable, Written};
        assert_eq!(states, [Durable, Durable, Written, Absent]);
    }

    #[test]
    fn content_written_before_the_node_booted_is_doubtful() {
        let folder = tempfile::tempdir().unwrap();
        let map = map(folder.path());
        for boot in [Boot(Some([2; 16])), Boot(None)] {
            let (states, is_stale) = map.read(&SUBJECT, boot).unwrap().unwrap();
            use State::{Absent, Doubtful, Durable};
            assert_eq!(states, [Absent, Doubtful, Doubtful, Durable]);
            assert!(is_stale);
        }
        assert!(Boot::current().0.is_some(), "Linux has a boot ID");
    }

    #[test]
    fn a_damaged_map_and_one_of_another_data_file_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.map");
        let is_read = |subject: &Subject| {
            let map = Map::new(File::open(&path).unwrap());
            map.read(subject, NOW).unwrap().is_some()
        };
        drop(map(folder.path()));
        assert!(is_read(&SUBJECT));
        for other in [
            Subject {
                inode: 8,
                ..SUBJECT
            },
            Subject {
                chunks: 3,
                ..SUBJECT
            },
            Subject {
                toc: Digest::of(b""),
                ..SUBJECT
            },
        ] {
            assert!(!is_read(&other), "{other:?}");
        }
        let right = fs::read(&path).unwrap();
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 0x80;
            fs::write(&path, &wrong).unwrap();
            assert!(!is_read(&SUBJECT), "byte {at}");
            fs::write(&path, &right[..at]).unwrap();
            assert!(!is_read(&SUBJECT), "{at} bytes");
        }
    }
}
