//! The records of mounted layers on disk, so that a start needs no registry.
//!
//! ```text
//! <root>/layers/<number>.json            a mounted layer
//! <root>/layers/<algorithm>-<hex>.tail   the end of its blob, with the TOC; shared by its mounts
//! <root>/layers/next                     the first number and inode that were never used
//! ```
//! A file is written under another name and renamed. A record is written before its layer is
//! visible, and deleted after the layer is hidden.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::remote::{Tail, TocDigest};
use crate::oci::Digest;

const NEXT: &str = "next";
/// Digits of the TOC's digest in the name of a layer's files. Their content is compared with the
/// whole.
const TOC_DIGITS: usize = 16;
/// The first number of a layer, and the first inode after the root's.
const FIRST: Next = Next {
    number: 1,
    inode: 2,
};

/// A mounted layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub number: u64,
    /// The inode of its root. The inodes of its files follow.
    pub inode: u64,
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
    number: u64,
    inode: u64,
}

impl Record {
    /// Returns the name of the layer's files, which all its mounts share.
    pub fn data_name(&self) -> String {
        data_name(&self.digest, &self.toc_digest)
    }
}

/// Returns the name of the files of a layer: a blob may be mounted with several TOCs.
pub(super) fn data_name(digest: &Digest, toc: &TocDigest) -> String {
    let (TocDigest::Json(toc) | TocDigest::Section(toc)) = toc;
    let algorithm = digest.algorithm().name();
    let beginning: String = toc.hex().chars().take(TOC_DIGITS).collect();
    format!("{algorithm}-{}-{beginning}", digest.hex())
}

#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn open(root: &Path) -> io::Result<Self> {
        let folder = root.join("layers");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self { folder })
    }

    /// Reserves a number and `inodes` inodes for a layer, and returns the number and the first
    /// inode. They are never reserved again, not even after a crash.
    ///
    /// One caller at a time.
    pub fn reserve(&self, inodes: u32) -> io::Result<(u64, u64)> {
        let path = self.folder.join(NEXT);
        let next = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            // If the file is missing, there must be no record: a record could have the numbers
            // already.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.load()?.is_empty() => {
                FIRST
            }
            Err(error) => return Err(error),
        };
        let after = Next {
            number: next.number + 1,
            inode: next.inode + u64::from(inodes),
        };
        self.write(NEXT, &serde_json::to_vec(&after)?)?;
        Ok((next.number, next.inode))
    }

    pub fn insert(&self, record: &Record, tail: &Tail) -> io::Result<()> {
        let tail_name = tail_name(&record.digest);
        if !self.folder.join(&tail_name).exists() {
            self.write(&tail_name, &tail.bytes)?;
        }
        self.write(&record_name(record.number), &serde_json::to_vec(record)?)
    }

    /// Writes a record again.
    pub fn replace(&self, record: &Record) -> io::Result<()> {
        self.write(&record_name(record.number), &serde_json::to_vec(record)?)
    }

    /// Deletes a record. The end of the blob goes with the last record that needs it.
    pub fn remove(&self, record: &Record) -> io::Result<()> {
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
    pub fn load(&self) -> io::Result<Vec<(u64, io::Result<Record>)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse().ok());
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
    pub fn tail(&self, record: &Record) -> io::Result<Tail> {
        let bytes = fs::read(self.folder.join(tail_name(&record.digest)))?;
        Ok(Tail {
            blob_size: record.blob_size,
            start: record.tail_start,
            bytes: bytes.into(),
        })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.folder.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join(name))?;
        File::open(&self.folder)?.sync_all()
    }
}

fn record_name(number: u64) -> String {
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

    fn record(number: u64, digest: &Digest) -> Record {
        Record {
            number,
            inode: 2,
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

    #[test]
    fn numbers_are_never_reserved_again() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        assert_eq!(records.reserve(10).unwrap(), (1, 2));
        assert_eq!(records.reserve(5).unwrap(), (2, 12));
        assert_eq!(
            Records::open(root.path()).unwrap().reserve(1).unwrap(),
            (3, 17)
        );
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
    fn a_damaged_record_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        records
            .insert(&record(2, &Digest::sha256_of(b"layer")), &tail())
            .unwrap();
        fs::write(root.path().join("layers/1.json"), "{").unwrap();
        let loaded = records.load().unwrap();
        assert!(matches!(loaded.as_slice(), [(1, Err(_)), (2, Ok(_))]));
    }
}
