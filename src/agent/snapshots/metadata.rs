//! The names, IDs and parents of all snapshots, in one redb file.
//!
//! A snapshot of a lazily mounted layer brings the layer's record and the end of its blob, so that
//! one sync makes all of it durable.
//!
//! A change is one durable transaction. There is one at a time, and readers never wait for it.
//!
//! After its first I/O error, redb refuses everything until the file is opened again. A disk that
//! was full for a moment must not make the node's snapshots unusable, so the next transaction opens
//! the file again.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use parking_lot::{RwLock, RwLockReadGuard};
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable, TableDefinition,
    TableError, WriteTransaction,
};

use super::error::Error;
use super::record::{Kind, Lower, Record, StoredLayer};

/// A snapshot's name to its [`Record`] as JSON.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// A snapshot's ID to its name, known even if the record is damaged.
const NAMES: TableDefinition<'_, u64, &str> = TableDefinition::new("names");
/// Ids: (parent, child).
const CHILDREN: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const LAST_ID: &str = "last-id";
/// The ID of a lazy snapshot to its layer's record, and to the end of the blob.
const LAYERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("layers");
const TAILS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("tails");
/// Bytes of the file that redb holds in memory. Its own default is 1 GiB, which the ends of blobs
/// would fill for nothing: they are read at most once.
const CACHE: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct Metadata {
    file: PathBuf,
    /// Locked shared by all transactions, and exclusively while the file is opened again. `None`
    /// after that failed.
    db: RwLock<Option<Database>>,
}

/// A transaction. Without [`Change::commit`] it changes nothing.
pub(super) struct Change<'a> {
    transaction: WriteTransaction,
    /// Released after the transaction, because fields are dropped in this order.
    _open: RwLockReadGuard<'a, Option<Database>>,
}

impl Metadata {
    /// Opens the file, and creates it if need be. Only one process can have it open.
    pub(super) fn open(file: &Path) -> Result<Self, Error> {
        let db = builder().create(file)?;
        if is_incomplete(&db)? {
            let transaction = db.begin_write()?;
            transaction.open_table(RECORDS)?;
            transaction.open_table(NAMES)?;
            transaction.open_table(CHILDREN)?;
            transaction.open_table(COUNTERS)?;
            transaction.open_table(LAYERS)?;
            transaction.open_table(TAILS)?;
            transaction.commit()?;
        }
        Ok(Self {
            file: file.to_owned(),
            db: RwLock::new(Some(db)),
        })
    }

    /// For tests that write damaged records, or make the disk fail.
    #[cfg(test)]
    pub(super) fn database(&self) -> &RwLock<Option<Database>> {
        &self.db
    }

    /// Begins a change. If an earlier transaction met an I/O error, opens the file again first.
    pub(super) fn change(&self) -> Result<Change<'_>, Error> {
        match self.begin() {
            Err(error) if error.is_io() => {
                self.reopen()?;
                self.begin()
            }
            outcome => outcome,
        }
    }

    fn begin(&self) -> Result<Change<'_>, Error> {
        let open = self.db.read();
        let transaction = open.as_ref().ok_or_else(Error::closed)?.begin_write()?;
        Ok(Change {
            transaction,
            _open: open,
        })
    }

    /// Reads one state of the file. After an I/O error, opens the file again and retries once.
    fn read<T>(&self, look: impl Fn(&ReadTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let once = || {
            let open = self.db.read();
            let transaction = open.as_ref().ok_or_else(Error::closed)?.begin_read()?;
            look(&transaction)
        };
        match once() {
            Err(error) if error.is_io() => {
                self.reopen()?;
                once()
            }
            outcome => outcome,
        }
    }

    /// Opens the file again unless it can be written. It contains every committed change. A change
    /// whose commit failed may or may not be in it.
    ///
    /// Must be called without a transaction.
    pub(super) fn reopen(&self) -> Result<(), Error> {
        let mut db = self.db.write();
        if db.as_ref().is_some_and(|db| db.begin_write().is_ok()) {
            // Another thread was faster.
            return Ok(());
        }
        // Closed first, because a file can be open only once.
        *db = None;
        // Never created, because the records would be lost.
        *db = Some(builder().open(&self.file)?);
        tracing::warn!(file = %self.file.display(), "metadata reopened after an I/O error");
        Ok(())
    }

    /// Returns the snapshot `name`, or an error if it does not exist.
    pub(super) fn record(&self, name: &str) -> Result<Record, Error> {
        self.read(|transaction| read(&transaction.open_table(RECORDS)?, name))
    }

    /// Returns the snapshot `name` and its lower layers, top first.
    pub(super) fn with_lowers(&self, name: &str) -> Result<(Record, Vec<Lower>), Error> {
        self.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let record = read(&records, name)?;
            let lowers = lowers(&records, record.parent.as_deref())?;
            Ok((record, lowers))
        })
    }

    /// Returns the committed snapshot `parent` and its ancestors, top first.
    pub(super) fn chain(&self, parent: Option<&str>) -> Result<Vec<Record>, Error> {
        self.read(|transaction| chain(&transaction.open_table(RECORDS)?, parent))
    }

    /// Returns every snapshot in the order of names, and the number of damaged records, which are
    /// skipped.
    pub(super) fn all(&self) -> Result<(Vec<(String, Record)>, usize), Error> {
        self.read(|transaction| {
            let (mut all, mut damaged) = (Vec::new(), 0);
            for entry in transaction.open_table(RECORDS)?.iter()? {
                let (name, json) = entry?;
                match parse(name.value(), json.value()) {
                    Ok(record) => all.push((name.value().to_owned(), record)),
                    Err(error) => {
                        tracing::warn!(%error, "snapshot skipped");
                        damaged += 1;
                    }
                }
            }
            Ok((all, damaged))
        })
    }
}

impl Metadata {
    /// Returns the IDs of the lazy snapshots whose layers are stored.
    pub(super) fn layers(&self) -> Result<Vec<u64>, Error> {
        self.read(|transaction| {
            let layers = transaction.open_table(LAYERS)?;
            let ids = layers.iter()?.map(|entry| Ok(entry?.0.value()));
            ids.collect()
        })
    }

    /// Returns the layer of a lazy snapshot, if it is stored.
    pub(super) fn layer(&self, id: u64) -> Result<Option<StoredLayer>, Error> {
        self.read(|transaction| {
            let record = transaction.open_table(LAYERS)?.get(id)?;
            let tail = transaction.open_table(TAILS)?.get(id)?;
            Ok(record.zip(tail).map(|(record, tail)| StoredLayer {
                record: record.value().to_owned(),
                tail: tail.value().to_owned(),
            }))
        })
    }
}

impl Change<'_> {
    pub(super) fn commit(self) -> Result<(), Error> {
        Ok(self.transaction.commit()?)
    }

    pub(super) fn record(&self, name: &str) -> Result<Record, Error> {
        read(&self.transaction.open_table(RECORDS)?, name)
    }

    pub(super) fn exists(&self, name: &str) -> Result<bool, Error> {
        Ok(self.transaction.open_table(RECORDS)?.get(name)?.is_some())
    }

    /// Returns the lower layers of a child of `parent`, top first. Fails if `parent` does not exist
    /// or is not committed.
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
            self.link(parent, record.id)?;
        }
        self.transaction
            .open_table(NAMES)?
            .insert(record.id, name)?;
        self.replace(name, record)
    }

    /// Stores the layer of the lazy snapshot with this ID.
    pub(super) fn store(&self, id: u64, layer: &StoredLayer) -> Result<(), Error> {
        let StoredLayer { record, tail } = layer;
        self.transaction
            .open_table(LAYERS)?
            .insert(id, record.as_slice())?;
        self.transaction
            .open_table(TAILS)?
            .insert(id, tail.as_slice())?;
        Ok(())
    }

    /// Makes the snapshot with the ID `child` a child of the snapshot `parent`.
    pub(super) fn link(&self, parent: &str, child: u64) -> Result<(), Error> {
        let parent = self.record(parent)?.id;
        self.transaction
            .open_table(CHILDREN)?
            .insert((parent, child), ())?;
        Ok(())
    }

    /// Replaces the record of a snapshot. Its ID and parent stay.
    pub(super) fn replace(&self, name: &str, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_vec(record).map_err(|source| Error::Damaged {
            name: name.to_owned(),
            source,
        })?;
        self.transaction
            .open_table(RECORDS)?
            .insert(name, json.as_slice())?;
        Ok(())
    }

    /// Gives the snapshot `old` another name, which must be free, and another record with its ID.
    pub(super) fn rename(&self, old: &str, new: &str, record: &Record) -> Result<(), Error> {
        self.transaction.open_table(RECORDS)?.remove(old)?;
        self.transaction.open_table(NAMES)?.insert(record.id, new)?;
        self.replace(new, record)
    }

    /// Returns the ID of a snapshot, even if its record is damaged.
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

    /// Deletes a snapshot without children.
    pub(super) fn remove(&self, name: &str, id: u64) -> Result<(), Error> {
        self.transaction
            .open_table(CHILDREN)?
            .retain(|(_, child), ()| child != id)?;
        self.transaction.open_table(LAYERS)?.remove(id)?;
        self.transaction.open_table(TAILS)?.remove(id)?;
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

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// Whether tables have never been created. An earlier version had no layers.
fn is_incomplete(db: &Database) -> Result<bool, Error> {
    match db.begin_read()?.open_table(TAILS) {
        Ok(_) => Ok(false),
        Err(TableError::TableDoesNotExist(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn read(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Record, Error> {
    let json = records
        .get(name)?
        .ok_or_else(|| Error::NotFound(name.to_owned()))?;
    parse(name, json.value())
}

fn parse(name: &str, json: &[u8]) -> Result<Record, Error> {
    serde_json::from_slice(json).map_err(|source| Error::Damaged {
        name: name.to_owned(),
        source,
    })
}

fn lowers(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: Option<&str>,
) -> Result<Vec<Lower>, Error> {
    Ok(chain(records, parent)?.iter().map(Record::lower).collect())
}

/// Returns `parent` and its ancestors, top first.
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
