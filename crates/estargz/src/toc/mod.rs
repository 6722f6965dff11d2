//! The table of contents: its JSON, its limits and the tree it describes.
//!
//! ```text
//! bytes of the TOC's section ─ UnverifiedToc::parse ─▶ UnverifiedToc ─ verify(digest) ─▶ Toc
//! ```

mod build;
mod cover;
mod error;
mod json;
mod limits;
mod names;
mod path;
mod time;
mod tree;
mod unverified;
mod write;

pub use error::TocError;
pub use limits::Limits;
pub use tree::{Entries, Kind, Located, Node, NodeId, Time, Toc};
pub use unverified::UnverifiedToc;
pub use write::TocWriter;
