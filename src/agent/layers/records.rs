//! The records of mounted layers on disk, so that a start needs no registry.
//!
//! ```text
//! <root>/layers/<number>.json            a mounted layer
//! <root>/layers/<algorithm>-<hex>.tail   the end of its blob, with the TOC; shared by its mounts
//! <root>/layers/next                     the first number and inode that were never reserved
//! ```
//! A file is written under another name and renamed. A record is written before its layer is
//! visible, and deleted after the layer is hidden.
//!
//! The next process reads these files before an earlier one has released the metadata of the
//! snapshots. Only `next` is synced. A power cut may lose or tear the others: the metadata has a copy
//! of each, durable together with its snapshot, and [`Records::restore`] writes it again.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::agent::layer::data::crash::step;
use crate::agent::layer::opening::remote::{Tail, TocDigest};
use crate::agent::numbers::{Inode, LayerNumber};
use crate::agent::snapshots::StoredLayer;
use crate::oci::Digest;

const NEXT: &str = "next";
/// Digits of the TOC's digest in the name of a layer's files. Their content is compared with the
/// whole.
const TOC_DIGITS: usize = 16;
/// The first number of a layer, and the first inode after the root's.
const FIRST: Next = Next {
    number: LayerNumber(1),
    inode: Inode(Inode::ROOT.0 + 1),
};
/// Numbers and inodes that are reserved with one sync. Those that are not used by the end of the
/// process are lost: of 2^64.
const NUMBERS: u64 = 64;
const INODES: u64 = 1 << 20;

/// A mounted layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub number: LayerNumber,
    /// The inode of its root. The inodes of its files follow.
    pub inode: Inode,
    pub inodes: u32,
    /// The image reference, as the client writes it.
    pub reference: String,
    pub digest: Digest,
    pub toc_digest: TocDigest,
    pub blob_size: u64,
    /// The offset in the blob at which the stored end begins.
    pub tail_start: u64,
    /// The size of the data file, if the layer is mounted as EROFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_size: Option<u64>,
}

/// The first number and inode that were never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    number: LayerNumber,
    inode: Inode,
}

impl Record {
    /// Returns the name of the layer's files, which all its mounts share.
    pub(crate) fn data_name(&self) -> String {
        data_name(&self.digest, &self.toc_digest)
    }
}

/// Returns the name of the files of a layer: a blob may be mounted with several TOCs.
pub(crate) fn data_name(digest: &Digest, toc: &TocDigest) -> String {
    let (TocDigest::Json(toc) | TocDigest::Section(toc)) = toc;
    let algorithm = digest.algorithm().name();
    let beginning: String = toc.hex().chars().take(TOC_DIGITS).collect();
    format!("{algorithm}-{}-{beginning}", digest.hex())
}

#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    reserved: Mutex<Option<Reserved>>,
}

/// The numbers and inodes that this process may use.
#[derive(Debug, Clone, Copy)]
struct Reserved {
    next: Next,
    end: Next,
}

impl Reserved {
    /// Takes a number and `inodes` inodes, and returns them as `reserve` does.
    fn take(&mut self, inodes: u32) -> Option<(LayerNumber, Inode)> {
        let Next { number, inode } = self.next;
        let next = Next {
            number: LayerNumber(number.0 + 1),
            inode: Inode(inode.0 + u64::from(inodes)),
        };
        let is_within = next.number <= self.end.number && next.inode <= self.end.inode;
        is_within.then(|| {
            self.next = next;
            (number, inode)
        })
    }
}

impl Records {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let folder = root.join("layers");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self {
            folder,
            reserved: Mutex::default(),
        })
    }

    /// Reserves a number and `inodes` inodes for a layer, and returns the number and the first
    /// inode. They are never reserved again, not even after a crash.
    pub(crate) fn reserve(&self, inodes: u32) -> io::Result<(LayerNumber, Inode)> {
        let mut reserved = self.reserved.lock();
        if let Some(taken) = reserved.as_mut().and_then(|reserved| reserved.take(inodes)) {
            return Ok(taken);
        }
        let next = match *reserved {
            Some(reserved) => reserved.next,
            None => self.first_unreserved()?,
        };
        let end = Next {
            number: LayerNumber(next.number.0 + NUMBERS),
            inode: Inode(next.inode.0 + u64::from(inodes) + INODES),
        };
        self.write(NEXT, &serde_json::to_vec(&end)?, Sync::Now)?;
        let reserved = reserved.insert(Reserved { next, end });
        reserved
            .take(inodes)
            .ok_or(io::ErrorKind::InvalidInput.into())
    }

    fn first_unreserved(&self) -> io::Result<Next> {
        match fs::read(self.folder.join(NEXT)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            // If the file is missing, there must be no record: a record could have the numbers
            // already.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.load()?.is_empty() => {
                Ok(FIRST)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn insert(&self, record: &Record, tail: &Tail) -> io::Result<()> {
        let tail_name = tail_name(&record.digest);
        if !self.has(&tail_name, &tail.bytes) {
            self.write(&tail_name, &tail.bytes, Sync::Never)?;
        }
        self.replace(record)
    }

    /// Writes a record again.
    pub(crate) fn replace(&self, record: &Record) -> io::Result<()> {
        let name = record_name(record.number);
        self.write(&name, &serde_json::to_vec(record)?, Sync::Never)
    }

    /// Returns the copy of a layer's files that is stored with its snapshot.
    pub(crate) fn copy(&self, record: &Record) -> io::Result<StoredLayer> {
        Ok(StoredLayer {
            record: serde_json::to_vec(record)?,
            tail: fs::read(self.folder.join(tail_name(&record.digest)))?,
        })
    }

    /// Writes the files of a layer again if a power cut has lost or torn them. Returns its record,
    /// and whether any file was written.
    pub(crate) fn restore(&self, layer: &StoredLayer) -> io::Result<(Record, bool)> {
        let record: Record = serde_json::from_slice(&layer.record)?;
        let files = [
            (tail_name(&record.digest), &layer.tail),
            (record_name(record.number), &layer.record),
        ];
        let mut is_written = false;
        for (name, bytes) in files {
            if !self.has(&name, bytes) {
                self.write(&name, bytes, Sync::Never)?;
                is_written = true;
            }
        }
        Ok((record, is_written))
    }

    /// Whether a file has exactly this content.
    fn has(&self, name: &str, bytes: &[u8]) -> bool {
        let path = self.folder.join(name);
        let length = fs::metadata(&path).map(|found| found.len());
        length.is_ok_and(|length| length == bytes.len() as u64)
            && fs::read(&path).is_ok_and(|found| found == bytes)
    }

    /// Deletes files that a crash has left: those that were not renamed, and the ends of blobs that
    /// no record needs. Does nothing while a record cannot be read.
    pub(crate) fn delete_leftovers(&self) -> io::Result<()> {
        let records: Option<Vec<Record>> = self
            .load()?
            .into_iter()
            .map(|(_, record)| record.ok())
            .collect();
        let Some(records) = records else {
            return Ok(());
        };
        let needed: HashSet<String> = records
            .iter()
            .map(|record| tail_name(&record.digest))
            .collect();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_left = name.ends_with(".new") || name.ends_with(".tail");
            if is_left && !needed.contains(&name) {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Deletes a record. The end of the blob goes with the last record that needs it.
    pub(crate) fn remove(&self, record: &Record) -> io::Result<()> {
        remove(&self.folder.join(record_name(record.number)))?;
        if self.load()?.iter().any(|(_, other)| {
            other
                .as_ref()
                .is_ok_and(|other| other.digest == record.digest)
        }) {
            return Ok(());
        }
        remove(&self.folder.join(tail_name(&record.digest)))
    }

    /// Returns every record with its number, or the error of a record that cannot be read.
    pub(crate) fn load(&self) -> io::Result<Vec<(LayerNumber, io::Result<Record>)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse().ok().map(LayerNumber));
            let Some(number) = stem.filter(|_| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            }) else {
                continue;
            };
            records.push((
                number,
                fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
            ));
        }
        records.sort_by_key(|(number, _)| *number);
        Ok(records)
    }

    /// Returns the end of a layer's blob.
    pub(crate) fn tail(&self, record: &Record) -> io::Result<Tail> {
        let bytes = fs::read(self.folder.join(tail_name(&record.digest)))?;
        Ok(Tail {
            blob_size: record.blob_size,
            start: record.tail_start,
            bytes: bytes.into(),
        })
    }

    fn write(&self, name: &str, bytes: &[u8], sync: Sync) -> io::Result<()> {
        let new = self.folder.join(format!("{name}.new"));
        step();
        let mut file = File::create(&new)?;
        step();
        file.write_all(bytes)?;
        if sync == Sync::Now {
            file.sync_all()?;
        }
        step();
        fs::rename(&new, self.folder.join(name))?;
        if sync == Sync::Now {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// Whether a file survives a power cut from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    Now,
    Never,
}

fn record_name(number: LayerNumber) -> String {
    format!("{number}.json")
}

fn tail_name(digest: &Digest) -> String {
    format!("{}-{}.tail", digest.algorithm().name(), digest.hex())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layer::data::crash::steps::is_killed_after;

    fn record(number: u64, digest: &Digest) -> Record {
        Record {
            number: LayerNumber(number),
            inode: Inode(2),
            inodes: 10,
            reference: "registry.example/app:1".to_owned(),
            digest: digest.clone(),
            toc_digest: TocDigest::Json(Digest::sha256_of(b"toc")),
            blob_size: 100,
            tail_start: 96,
            data_size: None,
        }
    }

    fn tail() -> Tail {
        Tail {
            blob_size: 100,
            start: 96,
            bytes: "tail".into(),
        }
    }

    #[test]
    fn records_come_back_and_share_the_end_of_their_blob() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        let digest = Digest::sha256_of(b"layer");
        let (one, two) = (record(1, &digest), record(2, &digest));
        records.insert(&one, &tail()).unwrap();
        records.insert(&two, &tail()).unwrap();
        let loaded: Vec<Record> = records
            .load()
            .unwrap()
            .into_iter()
            .map(|(_, record)| record.unwrap())
            .collect();
        assert_eq!(loaded, [one.clone(), two.clone()]);
        records.remove(&one).unwrap();
        assert_eq!(records.tail(&two).unwrap().bytes, "tail");
        records.remove(&two).unwrap();
        assert!(records.tail(&two).is_err());
        assert_eq!(fs::read_dir(root.path().join("layers")).unwrap().count(), 0);
    }

    fn reserved(records: &Records, inodes: u32) -> (u64, u64) {
        let (number, inode) = records.reserve(inodes).unwrap();
        (number.0, inode.0)
    }

    #[test]
    fn numbers_are_never_reserved_again() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        assert_eq!(reserved(&records, 10), (1, 2));
        assert_eq!(reserved(&records, 5), (2, 12));
        // More inodes than are left, and then more numbers.
        assert_eq!(reserved(&records, u32::MAX), (3, 17));
        let mut last = (3, 17 + u64::from(u32::MAX) - 1);
        for _ in 0..2 * NUMBERS {
            let next = reserved(&records, 1);
            assert_eq!(next, (last.0 + 1, last.1 + 1));
            last = next;
        }
        let (number, inode) = reserved(&Records::open(root.path()).unwrap(), 1);
        assert!(number > last.0 && inode > last.1, "{number} {inode}");
        let records = Records::open(root.path()).unwrap();
        records
            .insert(&record(3, &Digest::sha256_of(b"layer")), &tail())
            .unwrap();
        fs::remove_file(root.path().join("layers/next")).unwrap();
        assert!(
            records.reserve(1).is_err(),
            "a mounted layer could have the number"
        );
    }

    #[test]
    fn a_process_that_is_killed_leaves_whole_files() {
        let digest = Digest::sha256_of(b"layer");
        for steps in 0.. {
            let root = tempfile::tempdir().unwrap();
            let records = Records::open(root.path()).unwrap();
            let mut number = 0;
            let work = || {
                number = reserved(&records, 10).0;
                records.insert(&record(number, &digest), &tail()).unwrap();
            };
            let is_killed = is_killed_after(steps, work);
            let next = Records::open(root.path()).unwrap();
            for (_, found) in next.load().unwrap() {
                assert_eq!(next.tail(&found.unwrap()).unwrap().bytes, "tail");
            }
            assert!(reserved(&next, 1).0 > number);
            next.delete_leftovers().unwrap();
            let names = names(root.path());
            assert!(
                !names.iter().any(|name| name.ends_with(".new")),
                "{names:?}"
            );
            if !is_killed {
                assert_eq!((steps, next.load().unwrap().len()), (9, 1));
                return;
            }
        }
    }

    /// Returns the names of the files.
    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root.join("layers")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn files_that_a_power_cut_has_lost_or_torn_are_restored() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        let (one, tail) = (record(1, &Digest::sha256_of(b"layer")), tail());
        records.insert(&one, &tail).unwrap();
        let copy = records.copy(&one).unwrap();
        assert!(!records.restore(&copy).unwrap().1, "nothing was lost");
        let spoil: [fn(&Path); 3] = [
            |path| fs::remove_file(path).unwrap(),
            |path| fs::write(path, "").unwrap(),
            |path| {
                let length = fs::metadata(path).unwrap().len();
                fs::write(path, vec![0; usize::try_from(length).unwrap()]).unwrap();
            },
        ];
        for (spoil, name) in spoil.iter().flat_map(|spoil| {
            let names = [record_name(LayerNumber(1)), tail_name(&one.digest)];
            names.map(|name| (spoil, name))
        }) {
            spoil(&root.path().join("layers").join(&name));
            assert_eq!(records.restore(&copy).unwrap(), (one.clone(), true));
            assert_eq!(records.tail(&one).unwrap().bytes, tail.bytes);
            let loaded = records.load().unwrap();
            assert!(matches!(loaded.as_slice(), [(LayerNumber(1), Ok(found))] if *found == one));
        }
    }

    #[test]
    fn the_end_of_a_blob_without_a_record_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        let [kept, left] = ["kept", "left"].map(|of| Digest::sha256_of(of.as_bytes()));
        for (number, digest) in [(1, &kept), (2, &left)] {
            records.insert(&record(number, digest), &tail()).unwrap();
        }
        fs::remove_file(root.path().join("layers/2.json")).unwrap();
        fs::write(root.path().join("layers/3.json"), "{").unwrap();
        records.delete_leftovers().unwrap();
        assert_eq!(names(root.path()).len(), 4, "3 may need it");
        fs::remove_file(root.path().join("layers/3.json")).unwrap();
        records.delete_leftovers().unwrap();
        let mut names = names(root.path());
        names.sort();
        assert_eq!(names, ["1.json".to_owned(), tail_name(&kept)]);
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        records
            .insert(&record(2, &Digest::sha256_of(b"layer")), &tail())
            .unwrap();
        fs::write(root.path().join("layers/1.json"), "{").unwrap();
        let loaded = records.load().unwrap();
        assert!(matches!(
            loaded.as_slice(),
            [(LayerNumber(1), Err(_)), (LayerNumber(2), Ok(_))]
        ));
    }
}
