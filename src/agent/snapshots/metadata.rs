//! The names, ids and parents of all snapshots, in one redb file.
//!
//! A change is one durable transaction; there is one at a time, and readers never wait for it.

use std::collections::HashSet;
use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition, WriteTransaction};

use super::error::Error;
use super::record::{Kind, Lower, Record};

/// A snapshot's name to its [`Record`] as JSON.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// A snapshot's id to its name: known even where the record makes no sense.
const NAMES: TableDefinition<'_, u64, &str> = TableDefinition::new("names");
/// Ids: (parent, child).
const CHILDREN: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const LAST_ID: &str = "last-id";

#[derive(Debug)]
pub(super) struct Metadata {
    db: Database,
}

/// A transaction; dropped without [`Change::commit`] it changes nothing.
pub(super) struct Change {
    transaction: WriteTransaction,
}

impl Metadata {
    /// Opens the file, new if need be. Only one process can have it open.
    pub(super) fn open(file: &Path) -> Result<Self, Error> {
        let metadata = Self { db: Database::create(file)? };
        let change = metadata.change()?;
        change.transaction.open_table(RECORDS)?;
        change.transaction.open_table(NAMES)?;
        change.transaction.open_table(CHILDREN)?;
        change.transaction.open_table(COUNTERS)?;
        change.commit()?;
        Ok(metadata)
    }

    /// For tests that write what no change would.
    #[cfg(test)]
    pub(super) fn database(&self) -> &Database {
        &self.db
    }

    pub(super) fn change(&self) -> Result<Change, Error> {
        Ok(Change { transaction: self.db.begin_write()? })
    }

    /// The snapshot `name`, or that it does not exist.
    pub(super) fn record(&self, name: &str) -> Result<Record, Error> {
        read(&self.db.begin_read()?.open_table(RECORDS)?, name)
    }

    /// The snapshot `name` and what lies under it, top first.
    pub(super) fn with_lowers(&self, name: &str) -> Result<(Record, Vec<Lower>), Error> {
        let records = self.db.begin_read()?.open_table(RECORDS)?;
        let record = read(&records, name)?;
        let lowers = lowers(&records, record.parent.as_deref())?;
        Ok((record, lowers))
    }

    /// The committed snapshot `parent` and all below it, top first.
    pub(super) fn chain(&self, parent: Option<&str>) -> Result<Vec<Record>, Error> {
        chain(&self.db.begin_read()?.open_table(RECORDS)?, parent)
    }

    /// Every snapshot in the order of names. What makes no sense is passed over, and counted.
    pub(super) fn all(&self) -> Result<(Vec<(String, Record)>, usize), Error> {
        let records = self.db.begin_read()?.open_table(RECORDS)?;
        let (mut all, mut damaged) = (Vec::new(), 0);
        for entry in records.iter()? {
            let (name, json) = entry?;
            match parse(name.value(), json.value()) {
                Ok(record) => all.push((name.value().to_owned(), record)),
                Err(error) => {
                    tracing::warn!(%error, "a snapshot is passed over");
                    damaged += 1;
                }
            }
        }
        Ok((all, damaged))
    }
}

impl Change {
    pub(super) fn commit(self) -> Result<(), Error> {
        Ok(self.transaction.commit()?)
    }

    pub(super) fn record(&self, name: &str) -> Result<Record, Error> {
        read(&self.transaction.open_table(RECORDS)?, name)
    }

    pub(super) fn exists(&self, name: &str) -> Result<bool, Error> {
        Ok(self.transaction.open_table(RECORDS)?.get(name)?.is_some())
    }

    /// What lies under a child of `parent`, top first. Errors if `parent` does not exist or is not committed.
    pub(super) fn lowers(&self, parent: Option<&str>) -> Result<Vec<Lower>, Error> {
        lowers(&self.transaction.open_table(RECORDS)?, parent)
    }

    pub(super) fn next_id(&self) -> Result<u64, Error> {
        let mut counters = self.transaction.open_table(COUNTERS)?;
        let id = counters.get(LAST_ID)?.map_or(0, |last| last.value()) + 1;
        counters.insert(LAST_ID, id)?;
        Ok(id)
    }

    /// Adds a snapshot under a free name. Its parent must exist.
    pub(super) fn insert(&self, name: &str, record: &Record) -> Result<(), Error> {
        if let Some(parent) = &record.parent {
            let parent = self.record(parent)?.id;
            self.transaction.open_table(CHILDREN)?.insert((parent, record.id), ())?;
        }
        self.transaction.open_table(NAMES)?.insert(record.id, name)?;
        self.replace(name, record)
    }

    /// Writes the record of a snapshot anew; id and parent stay.
    pub(super) fn replace(&self, name: &str, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_vec(record).map_err(|source| Error::Damaged { name: name.to_owned(), source })?;
        self.transaction.open_table(RECORDS)?.insert(name, json.as_slice())?;
        Ok(())
    }

    /// Gives the snapshot `old` another name, which must be free, and another record with its id and parent.
    pub(super) fn rename(&self, old: &str, new: &str, record: &Record) -> Result<(), Error> {
        self.transaction.open_table(RECORDS)?.remove(old)?;
        self.transaction.open_table(NAMES)?.insert(record.id, new)?;
        self.replace(new, record)
    }

    /// The id of a snapshot, also of one whose record makes no sense.
    pub(super) fn id(&self, name: &str) -> Result<u64, Error> {
        let error = match self.record(name) {
            Ok(record) => return Ok(record.id),
            Err(error @ Error::Damaged { .. }) => error,
            Err(error) => return Err(error),
        };
        for entry in self.transaction.open_table(NAMES)?.iter()? {
            let (id, of) = entry?;
            if of.value() == name {
                return Ok(id.value());
            }
        }
        Err(error)
    }

    pub(super) fn has_children(&self, id: u64) -> Result<bool, Error> {
        let children = self.transaction.open_table(CHILDREN)?;
        let mut range = children.range((id, 0)..=(id, u64::MAX))?;
        Ok(range.next().transpose()?.is_some())
    }

    /// Removes a snapshot without children.
    pub(super) fn remove(&self, name: &str, id: u64) -> Result<(), Error> {
        self.transaction.open_table(CHILDREN)?.retain(|(_, child), ()| child != id)?;
        self.transaction.open_table(NAMES)?.remove(id)?;
        self.transaction.open_table(RECORDS)?.remove(name)?;
        Ok(())
    }

    pub(super) fn ids(&self) -> Result<HashSet<u64>, Error> {
        let names = self.transaction.open_table(NAMES)?;
        let ids = names.iter()?.map(|entry| Ok(entry?.0.value()));
        ids.collect()
    }
}

fn read(records: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Record, Error> {
    let json = records.get(name)?.ok_or_else(|| Error::NotFound(name.to_owned()))?;
    parse(name, json.value())
}

fn parse(name: &str, json: &[u8]) -> Result<Record, Error> {
    serde_json::from_slice(json).map_err(|source| Error::Damaged { name: name.to_owned(), source })
}

fn lowers(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: Option<&str>,
) -> Result<Vec<Lower>, Error> {
    Ok(chain(records, parent)?.iter().map(Record::lower).collect())
}

/// `parent` and all below it, top first.
fn chain(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: Option<&str>,
) -> Result<Vec<Record>, Error> {
    let mut chain = Vec::new();
    let mut next = parent.map(str::to_owned);
    while let Some(name) = next {
        let record = read(records, &name)?;
        if record.kind != Kind::Committed {
            return Err(Error::ParentNotCommitted(name));
        }
        next = record.parent.clone();
        chain.push(record);
    }
    Ok(chain)
}
