//! The entries of a TOC by path. Each is parsed again when the walk reaches it.

use std::collections::{HashMap, HashSet};

use serde_json::value::RawValue;

use crate::entry::EntryKind;
use crate::tar;
use crate::toc::TocError;
use crate::toc::build::exact;
use crate::toc::json::{self, RawEntry};
use crate::toc::owners::Owners;

/// The entries of a TOC.
pub(super) struct TocEntries<'a> {
    texts: Vec<&'a RawValue>,
    slots: HashMap<Vec<u8>, Slot>,
    owners: Owners,
    entries: u64,
    offsets: HashSet<u64>,
}

/// The last entry of a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Its number in the TOC.
    pub(super) number: usize,
    /// How many chunk entries follow it.
    chunks: usize,
    user: u32,
    group: u32,
}

/// An entry with the chunks that follow it.
pub(super) struct File<'a> {
    pub(super) entry: RawEntry<'a>,
    pub(super) chunks: Vec<RawEntry<'a>>,
}

impl<'a> TocEntries<'a> {
    pub(super) fn new(json: &'a [u8]) -> Result<Self, TocError> {
        let mut toc = Self {
            texts: Vec::new(),
            slots: HashMap::new(),
            owners: Owners::default(),
            entries: 0,
            offsets: HashSet::new(),
        };
        let mut last = None;
        json::for_each(json, |text: &'a RawValue| {
            let entry = parse(text)?;
            let number = toc.texts.len();
            toc.texts.push(text);
            toc.offsets.insert(entry.offset);
            if entry.kind == EntryKind::Chunk {
                if let Some(slot) = last
                    .as_ref()
                    .and_then(|path| toc.slots.get_mut::<Vec<u8>>(path))
                {
                    slot.chunks += 1;
                }
                return Ok(());
            }
            toc.entries += 1;
            let (user, group) = toc.owners.of(&entry);
            let path = tar::clean(&exact(
                &entry.name,
                entry.raw_name.as_deref(),
                &entry.name,
                "rawName",
            )?);
            toc.slots.insert(
                path.clone(),
                Slot {
                    number,
                    chunks: 0,
                    user,
                    group,
                },
            );
            last = Some(path);
            Ok(())
        })?;
        Ok(toc)
    }

    /// Takes the offsets in the blob that the entries name.
    pub(super) fn take_offsets(&mut self) -> HashSet<u64> {
        std::mem::take(&mut self.offsets)
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// The slot of a cleaned path.
    pub(super) fn slot(&self, path: &[u8]) -> Option<Slot> {
        self.slots.get(path).copied()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (&Vec<u8>, &Slot)> {
        self.slots.iter()
    }

    pub(super) fn file(&self, slot: Slot) -> Result<File<'a>, TocError> {
        let entry = parse(self.texts[slot.number])?;
        let chunks = &self.texts[slot.number + 1..=slot.number + slot.chunks];
        let chunks = chunks
            .iter()
            .map(|text| parse(text))
            .collect::<Result<_, _>>()?;
        Ok(File { entry, chunks })
    }

    /// The names of the owner and the group.
    pub(super) fn owners(&self, slot: Slot) -> (&str, &str) {
        (self.owners.text(slot.user), self.owners.text(slot.group))
    }
}

fn parse(text: &RawValue) -> Result<RawEntry<'_>, TocError> {
    serde_json::from_str(text.get()).map_err(TocError::Json)
}
