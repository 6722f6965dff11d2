//! Errors of snapshots. The gRPC edge translates them into codes.

use std::io;
use std::path::{Path, PathBuf};

/// The longest label, key and value together, in bytes: containerd's own limit.
pub(crate) const MAX_LABEL_LEN: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    #[error("snapshot name is empty")]
    NoName,
    #[error("parent {0:?} is not a committed snapshot")]
    ParentNotCommitted(String),
    #[error("label {0:?} has more than {MAX_LABEL_LEN} bytes, key and value together")]
    LabelTooLong(String),
    #[error("{0:?} does not map the root of a user namespace")]
    IdMap(String),
    #[error("field {0:?} of a snapshot cannot be updated, only labels can")]
    NoSuchField(String),
    #[error("snapshot {0:?} has another parent than the commit names")]
    ParentChanged(String),
    #[error("snapshot {0:?} has children and cannot be removed")]
    HasChildren(String),
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    #[error("snapshot {0:?} is committed: only active snapshots and views are mounted")]
    NotMountable(String),
    #[error("record of snapshot {name:?} is damaged")]
    Damaged {
        name: String,
        source: serde_json::Error,
    },
    #[error(
        "{0} cannot be the root of snapshots: it is not UTF-8, or holds a comma, colon or backslash"
    )]
    Root(PathBuf),
    #[error("snapshot metadata not usable")]
    Metadata(#[source] Box<redb::Error>),
    #[error("{path}")]
    Directory { path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether another process has the snapshots open.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Metadata(error) if matches!(**error, redb::Error::DatabaseAlreadyOpen))
    }

    /// Whether the metadata cannot be read or written at the moment. The cause may be temporary.
    pub(super) fn is_io(&self) -> bool {
        let Self::Metadata(error) = self else {
            return false;
        };
        matches!(
            **error,
            redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed
        )
    }

    /// The error if the metadata could not be opened again after an error.
    pub(super) fn closed() -> Self {
        Self::Metadata(Box::new(redb::Error::DatabaseClosed))
    }

    /// Returns a function for `map_err` after an operation on `path`.
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Directory { path, source }
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for Error {
            fn from(error: redb::$error) -> Self {
                Self::Metadata(Box::new(error.into()))
            }
        }
    )+};
}

from_redb!(
    DatabaseError,
    TransactionError,
    TableError,
    StorageError,
    CommitError
);
