//! A layer on a node: the product's own files, and what they need of the rest.

#[path = "../../../../src/agent/layer/data/mod.rs"]
pub mod data;
pub mod fetch;
pub mod tree;
