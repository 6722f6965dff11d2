//! The node agent: a containerd snapshotter that mounts layers lazily.
//!
//! ```text
//! containerd ─ gRPC ▶ server ▶ snapshotter ▶ snapshots (ordinary)   on disk
//!                                        └─▶ layers (lazy)           records, mounts
//! container ─ read(2) ▶ kernel ─ FUSE ▶ session ▶ fuse ▶ filesystem ▶ layer ▶ data
//!                         └ EROFS ─┘            a registry ◀ upstream ◀ fetch ◀─┘
//! ```
//! `profiles` sends a Starlift server the files that containers read at their start, and prefetches
//! the files that other nodes reported. `run` composes the parts. `keeper` keeps the mount while
//! the agent restarts. `api` serves the status. `observe` is a mount for one process, without
//! containerd.

pub mod api;
mod attach;
pub mod config;
pub mod cri;
pub mod data;
pub mod erofs;
pub mod fetch;
pub mod filesystem;
pub mod filter;
pub mod fuse;
mod idle;
pub mod keeper;
pub mod layer;
pub mod layer_mount;
pub mod layers;
pub mod mount;
mod mounted;
pub mod mountpoint;
mod native;
pub mod notify;
pub mod observe;
mod opening;
mod patience;
pub mod prefetch;
pub mod profiles;
mod pulls;
pub mod recorder;
pub mod records;
pub mod remote;
pub mod report;
pub mod request_timeout;
pub mod root;
pub mod run;
pub mod server;
pub mod session;
pub mod snapshots;
pub mod snapshotter;
pub mod spec;
mod status;
pub mod toc_memory;
pub mod tree;
mod unreachable;

pub use config::Config;
