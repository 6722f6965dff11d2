//! The names of a tree while it is being built: found by parent and text, in constant time.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::error::TocError;
use super::tree::Span;

/// A name while the tree is built.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftName {
    pub(super) parent: u32,
    pub(super) inode: u32,
    pub(super) text: Span,
}

/// Names and their bytes.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) table: Vec<DraftName>,
    pub(super) arena: Vec<u8>,
    index: HashTable<u32>,
    /// Seeded: a TOC cannot choose names that collide.
    hasher: RandomState,
}

impl Names {
    /// Adds `bytes` to the arena.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Result<Span, TocError> {
        let too_much = |_| TocError::Limit {
            what: "bytes of names",
            limit: u64::from(u32::MAX),
        };
        let end = self.arena.len() + bytes.len();
        u32::try_from(end).map_err(too_much)?;
        let start = u32::try_from(self.arena.len()).map_err(too_much)?;
        let len = u32::try_from(bytes.len()).map_err(too_much)?;
        self.arena.extend_from_slice(bytes);
        Ok(Span { start, len })
    }

    /// The position of a name in the table.
    pub(super) fn find(&self, parent: u32, text: &[u8]) -> Option<u32> {
        let same = |position: &u32| {
            let name = &self.table[*position as usize];
            name.parent == parent && &self.arena[name.text.range()] == text
        };
        self.index
            .find(self.hasher.hash_one((parent, text)), same)
            .copied()
    }

    /// Adds a name that [`Names::find`] does not find.
    pub(super) fn add(
        &mut self,
        parent: u32,
        text: &[u8],
        inode: u32,
        limit: u32,
    ) -> Result<(), TocError> {
        let over = TocError::Limit {
            what: "names",
            limit: u64::from(limit),
        };
        let Some(position) = u32::try_from(self.table.len())
            .ok()
            .filter(|count| *count < limit)
        else {
            return Err(over);
        };
        let span = self.keep(text)?;
        self.table.push(DraftName {
            parent,
            inode,
            text: span,
        });
        let Self {
            table,
            arena,
            index,
            hasher,
        } = self;
        let rehash = |position: &u32| {
            let name = &table[*position as usize];
            hasher.hash_one((name.parent, &arena[name.text.range()]))
        };
        index.insert_unique(hasher.hash_one((parent, text)), position, rehash);
        Ok(())
    }
}
