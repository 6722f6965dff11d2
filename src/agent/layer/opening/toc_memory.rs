//! Limits the memory for TOCs of layers: while layers are opened, and as long as they are mounted.

use estargz::Toc;

use crate::budget::{Budget, Full, Weight};

/// For the compressed bytes: two TOCs of the maximum size.
const SECTIONS: u64 = 128 << 20;
/// For the JSON and the trees that are built from it: one TOC of the maximum size, or some hundred
/// ordinary ones.
const PARSING: u64 = 512 << 20;
/// For the trees of mounted layers and the tables of their data files: six million files. A layer
/// that does not fit is unpacked. Large tables are in mapped files, so that this limits the disk that
/// they take as well.
const TREES: u64 = 1 << 30;
/// A file's place in the data file. A chunk's state, the time of its last use, and its entry in the
/// index of all chunks, which is at least half full.
const FILE: u64 = 16;
const CHUNK: u64 = 1 + 4 + 2 * 17;
/// A tree takes up to five times its JSON while it is built, and no more than the reader's limits
/// allow.
const TREE_GROWTH: u64 = 5;
const MAX_TREE: u64 = 320 << 20;

/// The share of `SECTIONS` for layers that no client has asked for yet: clients always find the
/// other half.
const AHEAD_SHARE: u64 = 2;

/// The memory of all TOCs. Clones share it.
///
/// Opening a layer takes from `ahead` first if no client has asked for it, then from `sections`,
/// then from `parsing`, once each, so there is no deadlock.
#[derive(Debug, Clone)]
pub(crate) struct TocMemory {
    ahead: Budget,
    sections: Budget,
    parsing: Budget,
    trees: Budget,
    is_ahead: bool,
}

/// The memory of a compressed TOC, released on drop.
#[derive(Debug)]
pub(crate) struct SectionWeight {
    ahead: Option<Weight>,
    section: Weight,
}

impl Default for TocMemory {
    fn default() -> Self {
        Self {
            ahead: Budget::new("TOC sections ahead", SECTIONS / AHEAD_SHARE),
            sections: Budget::new("TOC sections", SECTIONS),
            parsing: Budget::new("TOC parsing", PARSING),
            trees: Budget::new("layer trees", TREES),
            is_ahead: false,
        }
    }
}

impl SectionWeight {
    /// Returns all but `bytes`, once the real size replaces a guess.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let Self { ahead, section } = self;
        section.shrink_to(bytes);
        if let Some(ahead) = ahead {
            ahead.shrink_to(bytes);
        }
    }
}

impl TocMemory {
    /// Returns the memory for layers that no client has asked for yet.
    #[must_use]
    pub(crate) fn ahead(&self) -> Self {
        Self {
            is_ahead: true,
            ..self.clone()
        }
    }

    /// Reserves memory for `bytes` of compressed TOC. Callers wait in order.
    ///
    /// # Errors
    /// If a TOC of this size exceeds the whole budget. Layers that no client has asked for do not
    /// wait: if their share is full.
    pub(crate) async fn section(&self, bytes: u64) -> Result<SectionWeight, Full> {
        let ahead = self.is_ahead.then(|| self.ahead.try_take(bytes));
        let ahead = ahead.transpose()?;
        let section = self.sections.take(bytes).await?;
        Ok(SectionWeight { ahead, section })
    }

    /// Reserves memory for parsing `json_bytes` of JSON. Callers wait in order.
    ///
    /// # Errors
    /// If a TOC of this size exceeds the whole budget.
    pub(crate) async fn parsing(&self, json_bytes: u64) -> Result<Weight, Full> {
        let tree = json_bytes.saturating_mul(TREE_GROWTH).min(MAX_TREE);
        self.parsing.take(json_bytes.saturating_add(tree)).await
    }

    /// Reserves the memory that a layer takes as long as it is mounted.
    ///
    /// # Errors
    /// If the mounted layers take too much.
    pub(crate) fn tree(&self, toc: &Toc) -> Result<Weight, Full> {
        let (nodes, chunks) = (toc.len() as u64, toc.chunk_count() as u64);
        let data = chunks.min(nodes) * FILE + chunks * CHUNK;
        self.trees.try_take(toc.memory_bytes() + data)
    }
}

#[cfg(test)]
mod tests {
    use estargz::toc::Limits;
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_largest_toc_fits() {
        let (memory, limits) = (TocMemory::default(), Limits::default());
        assert!(memory.section(limits.max_compressed_bytes).await.is_ok());
        assert!(memory.parsing(limits.max_json_bytes).await.is_ok());
        assert!(memory.parsing(u64::MAX).await.is_err());
    }

    #[tokio::test]
    async fn clients_find_memory_while_layers_wait_for_theirs() {
        let memory = TocMemory::default();
        let mut waiting = memory.ahead().section(SECTIONS / 2).await.unwrap();
        let more = memory.ahead();
        assert!(more.section(1).await.is_err());
        let asked = memory.section(SECTIONS / 2).now_or_never();
        assert!(asked.is_some_and(|weight| weight.is_ok()));
        waiting.shrink_to(1 << 20);
        assert!(more.section(1 << 20).await.is_ok());
    }
}
