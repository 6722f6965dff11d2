//! The node's cache and the table of pending chunks: the product's own files.

#[path = "../../../src/agent/data/mod.rs"]
pub mod data;
pub mod fetch;
pub mod tree;
