//! Which files the kernel has open, and how: kept in a file, since the kernel keeps them open while the agent is away.
//!
//! An inode is read either through the page cache or, while it is open, through a backing file that the kernel reads
//! by itself; a second open in the other way, or with another backing file, is an error (kernel, fs/fuse/iomode.c).
//! The file is written before the kernel hears of an open and after it heard of a close: whatever a crash loses, what
//! is open is in it. It needs no sync, for the kernel's side is lost in a power cut as well.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// Inode, backing identifier, count, how: little-endian.
const SLOT_LEN: usize = 24;

/// For ten thousand files that are open at once.
const RESERVED_LEN: u64 = 10_000 * SLOT_LEN as u64;

/// How an inode is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Cached,
    /// Through the backing file with this identifier.
    Passthrough(u32),
}

/// The open files of a mount.
#[derive(Debug)]
pub struct Opens {
    file: File,
    open: HashMap<u64, Open>,
    free: Vec<u64>,
    slots: u64,
}

#[derive(Debug)]
struct Open {
    how: How,
    count: u32,
    slot: u64,
}

impl Opens {
    /// Reads the file, or begins a new one where nothing is open: with a new mount.
    pub fn load(path: &Path, is_new: bool) -> io::Result<Self> {
        if is_new {
            // Another file: an earlier mount may be served until the last container over it ends.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // A disk that is full later refuses no open. Where blocks cannot be had ahead, each open asks for its own.
        let _refused = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, RESERVED_LEN);
        let mut opens = Self {
            slots: file.metadata()?.len() / SLOT_LEN as u64,
            file,
            open: HashMap::new(),
            free: Vec::new(),
        };
        for slot in 0..opens.slots {
            let mut bytes = [0; SLOT_LEN];
            opens
                .file
                .read_exact_at(&mut bytes, slot * SLOT_LEN as u64)?;
            match decode(&bytes) {
                Some((inode, how, count)) => {
                    drop(opens.open.insert(inode, Open { how, count, slot }))
                }
                None => opens.free.push(slot),
            }
        }
        Ok(opens)
    }

    /// How an inode is open, if it is.
    pub fn how(&self, inode: u64) -> Option<How> {
        self.open.get(&inode).map(|open| open.how)
    }

    /// Counts an open. `how` is what it is where the inode is open already.
    pub fn add(&mut self, inode: u64, how: How) -> io::Result<()> {
        let slot = match self.open.get(&inode) {
            Some(open) => open.slot,
            None => self.free.pop().unwrap_or_else(|| {
                self.slots += 1;
                self.slots - 1
            }),
        };
        let open = self.open.entry(inode).or_insert(Open {
            how,
            count: 0,
            slot,
        });
        open.count = open.count.saturating_add(1);
        self.file
            .write_all_at(&encode(inode, open.how, open.count), slot * SLOT_LEN as u64)
    }

    /// Counts a close, and gives the backing identifier that nothing needs any more.
    pub fn remove(&mut self, inode: u64) -> io::Result<Option<u32>> {
        let Some(open) = self.open.get_mut(&inode) else {
            return Ok(None);
        };
        open.count -= 1;
        let (how, count, slot) = (open.how, open.count, open.slot);
        self.file
            .write_all_at(&encode(inode, how, count), slot * SLOT_LEN as u64)?;
        if count > 0 {
            return Ok(None);
        }
        self.open.remove(&inode);
        self.free.push(slot);
        Ok(match how {
            How::Passthrough(backing) => Some(backing),
            How::Cached => None,
        })
    }
}

fn encode(inode: u64, how: How, count: u32) -> [u8; SLOT_LEN] {
    let (kind, backing) = match how {
        How::Cached => (0_u32, 0),
        How::Passthrough(backing) => (1, backing),
    };
    let mut bytes = [0; SLOT_LEN];
    bytes[..8].copy_from_slice(&inode.to_le_bytes());
    bytes[8..12].copy_from_slice(&backing.to_le_bytes());
    bytes[12..16].copy_from_slice(&count.to_le_bytes());
    bytes[16..20].copy_from_slice(&kind.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Option<(u64, How, u32)> {
    let number = |at: usize| {
        bytes[at..at + 4]
            .iter()
            .rev()
            .fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
    };
    let inode = u64::from(number(4)) << 32 | u64::from(number(0));
    let how = if number(16) == 1 {
        How::Passthrough(number(8))
    } else {
        How::Cached
    };
    let count = number(12);
    (count > 0).then_some((inode, how, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("opens");
        let mut opens = Opens::load(&path, true).unwrap();
        opens.add(7, How::Cached).unwrap();
        opens.add(u64::MAX - 1, How::Passthrough(3)).unwrap();
        opens.add(u64::MAX - 1, How::Passthrough(3)).unwrap();
        opens.add(9, How::Passthrough(4)).unwrap();
        assert_eq!(opens.remove(9).unwrap(), Some(4));
        drop(opens);
        let mut opens = Opens::load(&path, false).unwrap();
        assert_eq!(
            [7, u64::MAX - 1, 9].map(|inode| opens.how(inode)),
            [Some(How::Cached), Some(How::Passthrough(3)), None]
        );
        assert_eq!(
            opens.remove(u64::MAX - 1).unwrap(),
            None,
            "it is open once more"
        );
        assert_eq!(opens.remove(u64::MAX - 1).unwrap(), Some(3));
        assert_eq!(opens.remove(7).unwrap(), None);
        assert_eq!(
            opens.remove(7).unwrap(),
            None,
            "a close too many changes nothing"
        );
        opens.add(1, How::Cached).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            3 * SLOT_LEN as u64,
            "slots are used again"
        );
        assert_eq!(Opens::load(&path, true).unwrap().how(1), None);
    }
}
