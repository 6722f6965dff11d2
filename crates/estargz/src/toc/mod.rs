//! The table of contents: its JSON, its limits and the tree it describes.
//!
//! ```text
//! bytes of the TOC's section ─ UnverifiedToc::parse ─▶ UnverifiedToc ─ verify(digest) ─▶ Toc
//! ```

pub(crate) mod build;
mod cover;
mod error;
pub(crate) mod json;
mod limits;
mod names;
pub(crate) mod owners;
mod path;
pub(crate) mod time;
mod tree;
pub(crate) mod unverified;
mod write;

pub use error::TocError;
pub use limits::Limits;
pub(crate) use limits::{MAX_CHUNK_BYTES, MAX_JSON_BYTES};
pub use tree::{Entries, Kind, Located, Node, NodeId, Time, Toc};
pub use unverified::UnverifiedToc;
pub use write::TocWriter;
