//! The content of lazy layers on this node: one sparse data file for each layer.
//!
//! ```text
//! DataStore ─▶ LayerData ─▶ Places (from the TOC)
//!  limits        presence, reads, writes ─▶ files: <layer>.data, <layer>.map
//! ```
//! Every regular file has a fixed place in its layer's data file, so that a kernel file system can
//! use the file as its device. The map says which chunks are there. A chunk is compared with its
//! digest when it arrives, and again at its first use after a start: a chunk that a power cut or the
//! disk damaged is forgotten and fetched again. A full disk is not an error: chunks then live in
//! memory for a while. Reading what is here never writes.

mod chunks;
pub(crate) mod crash;
mod eviction;
mod files;
mod index;
mod layer_data;
mod lease;
mod map;
mod mapped;
mod places;
mod punch;
mod space;
mod store;
#[cfg(test)]
pub(crate) mod tests;

pub use layer_data::{Checked, Hold, LayerData};
pub use places::{BLOCK, Piece, Places, TooLarge};
pub use space::FreeSpace;
pub use store::{CacheUsage, DataStore, Limits};
