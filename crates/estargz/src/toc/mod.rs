//! The table of contents: its JSON, its limits and the tree it describes.
//!
//! ```text
//! bytes of the TOC's section ─ UnverifiedToc::parse ─▶ UnverifiedToc ─ verify(digest) ─▶ Toc
//! ```

pub(crate) mod build;
mod chunks;
mod cover;
mod error;
pub(crate) mod json;
mod names;
pub(crate) mod owners;
mod pack;
mod path;
mod tables;
mod tree;
pub(crate) mod unverified;
mod write;

pub use error::TocError;
pub use tree::{Entries, Kind, Located, Node, NodeId, Toc};
pub use unverified::UnverifiedToc;
pub use write::TocWriter;

pub use crate::limits::Limits;
pub use crate::time::Time;
