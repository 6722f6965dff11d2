//! containerd: its gRPC APIs, and a client that brings an image into it.
//!
//! ```text
//! registry ▶ Image (index, manifest, configuration) ▶ content store, under a lease
//!            └ layers ▶ Unpacker ▶ snapshotter ─ has it: lazy
//!                                              └ mounts: fetch ▶ content store ▶ apply ▶ commit
//! ```

mod api;
mod content;
mod image;
pub(crate) mod labels;
pub(crate) mod lease;
mod media_type;
pub(crate) mod plugins;
pub(crate) mod program;
pub(crate) mod pull;
pub(crate) mod session;
pub(crate) mod unpack;
pub(crate) mod version;

pub use api::{runtime, services, types};
