//! Reads and writes eStargz and zstd:chunked layers.
//!
//! No async, no network, no clock and no thread that outlives a call's arguments: readers say which bytes they need
//! and take them, writers go from a [`std::io::Read`] to a [`std::io::Write`].

pub mod chunk;
pub mod codec;
pub mod digest;
pub mod entry;
pub mod footer;
pub mod pool;
pub mod tar;
pub mod toc;
pub mod verify;
pub mod write;

pub use chunk::Chunk;
pub use digest::Digest;
pub use entry::{Entry, EntryKind};
pub use footer::Footer;
pub use toc::{Toc, UnverifiedToc};
