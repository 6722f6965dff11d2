//! The table of contents: its JSON, its limits and the tree it describes.

mod write;

pub use write::TocWriter;
