//! The node's cache and the table of pending chunks.

pub mod layer;
