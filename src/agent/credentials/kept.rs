//! Logins in memory that outlives this process if another process holds it too. Never on a disk.
//!
//! ```text
//! 0 ┌ slot ┐      2³⁰ ┌ slot ┐      a slot: check (32) │ generation (8) │ length (8) │ records
//! ```
//!
//! The slots are written alternately, so a process that is killed while it writes leaves the
//! previous slot intact.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use prost::Message as _;
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};

use crate::registry::{Login, Secret};

/// More than all logins together need. The memory between the slots is never touched.
const SLOT: u64 = 1 << 30;
const CHECK: usize = 32;
const HEADER: usize = CHECK + 16;
/// A slot that claims more than this is invalid: `MAX_REPOSITORIES` logins of the maximum size.
const MAX_RECORDS: u64 = 256 << 20;

/// One repository's login.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Record {
    #[prost(string, tag = "1")]
    pub(super) host: String,
    #[prost(string, tag = "2")]
    pub(super) repository: String,
    #[prost(string, tag = "3")]
    user: String,
    #[prost(string, tag = "4")]
    password: String,
    #[prost(string, tag = "5")]
    identity: String,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Records {
    #[prost(message, repeated, tag = "1")]
    records: Vec<Record>,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Kept {
    file: File,
    /// The generation of the newest slot. Its parity is the index of that slot.
    generation: u64,
}

/// Creates anonymous memory without logins.
pub(super) fn memory() -> io::Result<OwnedFd> {
    Ok(memfd_create("logins", MemfdFlags::CLOEXEC)?)
}

impl Kept {
    /// Returns the logins in `memory`, the oldest first, or none if its content is invalid.
    pub(super) fn open(memory: OwnedFd) -> (Self, Vec<Record>) {
        let file = File::from(memory);
        let slots = [0, 1].into_iter().filter_map(|parity| read(&file, parity));
        let (generation, records) = slots
            .max_by_key(|(generation, _)| *generation)
            .unwrap_or_default();
        (Self { file, generation }, records)
    }

    /// Replaces all records by `records`, atomically.
    pub(super) fn write(&mut self, records: Vec<Record>) -> io::Result<()> {
        let generation = self.generation + 1;
        let records = Records { records }.encode_to_vec();
        let mut slot = vec![0; CHECK];
        slot.extend_from_slice(&generation.to_le_bytes());
        slot.extend_from_slice(&(records.len() as u64).to_le_bytes());
        slot.extend_from_slice(&records);
        let check = Sha256::digest(&slot[CHECK..]);
        slot[..CHECK].copy_from_slice(&check);
        self.file.write_all_at(&slot, SLOT * (generation % 2))?;
        self.generation = generation;
        Ok(())
    }
}

fn read(file: &File, parity: u64) -> Option<(u64, Vec<Record>)> {
    let mut slot = vec![0; HEADER];
    file.read_exact_at(&mut slot, SLOT * parity).ok()?;
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let (generation, length) = (number(CHECK)?, number(CHECK + 8)?);
    if length > MAX_RECORDS {
        return None;
    }
    slot.resize(HEADER + usize::try_from(length).ok()?, 0);
    file.read_exact_at(&mut slot, SLOT * parity).ok()?;
    let is_whole = Sha256::digest(&slot[CHECK..])[..] == slot[..CHECK];
    let records = Records::decode(&slot[HEADER..]).ok().filter(|_| is_whole)?;
    Some((generation, records.records))
}

impl Record {
    pub(super) fn new(host: &str, repository: &str, login: &Login) -> Self {
        let mut record = Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            ..Self::default()
        };
        match login {
            Login::Anonymous => {}
            Login::Password { user, password } => {
                (record.user, record.password) = (user.clone(), password.expose().to_owned());
            }
            Login::Identity(token) => token.expose().clone_into(&mut record.identity),
        }
        record
    }

    pub(super) fn login(&self) -> Login {
        match (self.user.as_str(), self.identity.as_str()) {
            ("", "") => Login::Anonymous,
            ("", token) => Login::Identity(Secret::new(token)),
            (user, _) => Login::Password {
                user: user.to_owned(),
                password: Secret::new(&self.password),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &str) -> Record {
        let login = Login::Password {
            user: user.to_owned(),
            password: Secret::new("secret"),
        };
        Record::new("ghcr.io", "a/b", &login)
    }

    fn users(records: &[Record]) -> Vec<&str> {
        records.iter().map(|record| record.user.as_str()).collect()
    }

    #[test]
    fn the_last_complete_slot_is_read() {
        let memory = memory().unwrap();
        let reopened = || Kept::open(memory.try_clone().unwrap());
        assert!(reopened().1.is_empty());
        let (mut kept, _) = reopened();
        kept.write(vec![record("one"), record("two")]).unwrap();
        kept.write(vec![record("three")]).unwrap();
        let (mut kept, records) = reopened();
        assert_eq!(users(&records), ["three"]);

        kept.write(vec![record("four")]).unwrap();
        let newest = SLOT * (kept.generation % 2);
        kept.file
            .write_all_at(b"x", newest + HEADER as u64)
            .unwrap();
        let (mut kept, records) = reopened();
        assert_eq!(users(&records), ["three"], "the fourth was cut off");
        kept.write(vec![record("five")]).unwrap();
        assert_eq!(users(&reopened().1), ["five"]);
    }

    #[test]
    fn invalid_memory_has_no_logins() {
        for content in [&b"short"[..], &[0xff; 4096], &[0; 4096]] {
            let memory = memory().unwrap();
            File::from(memory.try_clone().unwrap())
                .write_all_at(content, 0)
                .unwrap();
            assert!(Kept::open(memory).1.is_empty());
        }
    }
}
