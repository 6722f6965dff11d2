//! How much of a layer is on this node.

use serde::{Deserialize, Serialize};

/// The content of a layer's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub bytes: u64,
    pub held_bytes: u64,
    pub held_chunks: u64,
}
