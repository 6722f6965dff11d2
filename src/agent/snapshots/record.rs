//! A snapshot as it is stored, and as it is reported.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::{Error, MAX_LABEL_LEN};
use crate::agent::numbers::LayerNumber;

pub(crate) type Labels = BTreeMap<String, String>;

/// The kind of a snapshot: which operations it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Mounted for reading.
    View,
    /// Mounted for writing, and possibly committed.
    Active,
    /// Never changes. May be a parent.
    Committed,
}

/// A snapshot's disk usage, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Bytes of the allocated blocks.
    pub size: u64,
    pub inodes: u64,
}

/// The description of a snapshot for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub name: String,
    pub parent: Option<String>,
    pub kind: Kind,
    pub labels: Labels,
    pub created: SystemTime,
    pub updated: SystemTime,
}

/// The record of a snapshot, stored under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The name of the snapshot's directory. Never used twice.
    pub(super) id: u64,
    pub(super) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(super) labels: Labels,
    pub(super) created: SystemTime,
    pub(super) updated: SystemTime,
    /// Of a committed snapshot that is not lazy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    /// The number of the lazily mounted layer that is this snapshot's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lazy: Option<LayerNumber>,
    /// Whether no file of that layer has an extended attribute.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) noxattr: bool,
    /// Whether that layer is mounted as EROFS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) erofs: bool,
}

impl Kind {
    /// Returns the spelling in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

impl Info {
    /// Returns the value of a field for [`Filter`](super::filter::Filter): `name`, `parent`,
    /// `kind` or `labels.…`.
    pub fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => Some(&self.name),
            "parent" => Some(self.parent.as_deref().unwrap_or_default()),
            "kind" => Some(self.kind.as_str()),
            "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

impl Record {
    pub(super) fn new(id: u64, kind: Kind, parent: Option<&str>, labels: Labels) -> Self {
        let now = now();
        let parent = parent.map(str::to_owned);
        Self {
            id,
            kind,
            parent,
            labels,
            created: now,
            updated: now,
            usage: None,
            lazy: None,
            noxattr: false,
            erofs: false,
        }
    }

    pub(super) fn info(self, name: &str) -> Info {
        let Self {
            kind,
            parent,
            labels,
            created,
            updated,
            ..
        } = self;
        Info {
            name: name.to_owned(),
            parent,
            kind,
            labels,
            created,
            updated,
        }
    }

    pub(super) fn lower(&self) -> Lower {
        let lazy = |number| {
            Lower::Lazy(LazyLayer {
                number,
                has_xattrs: !self.noxattr,
                is_erofs: self.erofs,
            })
        };
        self.lazy.map_or(Lower::Own(self.id), lazy)
    }
}

/// The place of a committed snapshot's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lower {
    /// The snapshot's own directory, by id.
    Own(u64),
    Lazy(LazyLayer),
}

/// A lazily mounted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LazyLayer {
    pub number: LayerNumber,
    /// Whether one of its files has an extended attribute.
    pub has_xattrs: bool,
    /// Whether it is mounted as EROFS, on a file system of its own.
    pub is_erofs: bool,
}

/// The caller's files about a lazily mounted layer, in the same transaction as its snapshot: the files
/// themselves are not synced, and a power cut may lose them. The snapshots do not look into it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredLayer {
    pub record: Vec<u8>,
    /// The end of the blob.
    pub tail: Vec<u8>,
}

/// Returns the present time. A clock before 1970 must not keep containers from starting.
pub(super) fn now() -> SystemTime {
    SystemTime::now().max(SystemTime::UNIX_EPOCH)
}

/// Returns the labels to be stored. An empty value deletes the label, as in containerd's own store.
pub(super) fn checked(mut labels: Labels) -> Result<Labels, Error> {
    labels.retain(|_, value| !value.is_empty());
    match labels
        .iter()
        .find(|(key, value)| key.len() + value.len() > MAX_LABEL_LEN)
    {
        None => Ok(labels),
        Some((key, _)) => Err(Error::LabelTooLong(key.chars().take(100).collect())),
    }
}

pub(super) fn checked_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        Err(Error::NoName)
    } else {
        Ok(())
    }
}
