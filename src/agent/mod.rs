//! The node agent: what containerd talks to, and what it mounts.
//!
//! `snapshots` keeps the snapshots of a node, `snapshotter` serves them over containerd's gRPC API.

pub mod filter;
pub mod layers;
pub mod server;
pub mod snapshots;
pub mod snapshotter;
pub mod spec;
mod status;
