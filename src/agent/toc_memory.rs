//! How much memory the TOCs of layers may take: while they are opened, and as long as they are mounted.

use estargz::Toc;

use crate::budget::{Budget, Full, Weight};

/// For the compressed bytes: two of the longest.
const SECTIONS: u64 = 128 << 20;
/// For the JSON and the trees that are built of it: one of the largest, or some hundred ordinary ones.
const PARSING: u64 = 512 << 20;
/// For the trees of mounted layers: five million files. A layer that does not fit any more is unpacked.
const TREES: u64 = 1 << 30;
/// A tree takes up to five times its JSON while it is built, and no more than the reader's limits allow.
const TREE_GROWTH: u64 = 5;
const MAX_TREE: u64 = 320 << 20;

/// The memory of all TOCs; clones share it.
///
/// Opening a layer takes of `sections` first, then of `parsing`, and of each once: nobody waits in a circle.
#[derive(Debug, Clone)]
pub struct TocMemory {
    sections: Budget,
    parsing: Budget,
    trees: Budget,
}

impl Default for TocMemory {
    fn default() -> Self {
        Self {
            sections: Budget::new("TOC sections", SECTIONS),
            parsing: Budget::new("TOC parsing", PARSING),
            trees: Budget::new("layer trees", TREES),
        }
    }
}

impl TocMemory {
    /// Takes `bytes` of compressed TOC; waits in order.
    ///
    /// # Errors
    /// When no TOC may be as long.
    pub async fn section(&self, bytes: u64) -> Result<Weight, Full> {
        self.sections.take(bytes).await
    }

    /// Takes what parsing so many bytes of JSON needs; waits in order.
    ///
    /// # Errors
    /// When no TOC may be as long.
    pub async fn parsing(&self, json_bytes: u64) -> Result<Weight, Full> {
        let tree = json_bytes.saturating_mul(TREE_GROWTH).min(MAX_TREE);
        self.parsing.take(json_bytes.saturating_add(tree)).await
    }

    /// Takes what `toc` holds as long as it is mounted.
    ///
    /// # Errors
    /// When too much is mounted.
    pub fn tree(&self, toc: &Toc) -> Result<Weight, Full> {
        self.trees.try_take(toc.memory_bytes())
    }
}

#[cfg(test)]
mod tests {
    use estargz::toc::Limits;

    use super::*;

    #[tokio::test]
    async fn the_largest_toc_fits() {
        let (memory, limits) = (TocMemory::default(), Limits::default());
        assert!(memory.section(limits.max_compressed_bytes).await.is_ok());
        assert!(memory.parsing(limits.max_json_bytes).await.is_ok());
        assert!(memory.parsing(u64::MAX).await.is_err());
    }
}
