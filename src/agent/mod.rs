//! The node agent: a containerd snapshotter that mounts layers lazily.
//!
//! ```text
//! containerd ─ gRPC ▶ service ─▶ snapshots (ordinary)   on disk
//!                          └───▶ layers (lazy)          records, mounts, prefetch
//! container ─ read(2) ▶ kernel ─ FUSE ▶ fuse ▶ layers ▶ layer ▶ its data file
//!                         └ EROFS ─┘                      └─ a registry
//! ```
//! `layer` is one layer on this node, `layers` are those that are mounted, and `erofs` and `fuse`
//! show them. `prefetch` fetches what nobody has read yet, after the files that the image's profile
//! names. `service` answers containerd, `credentials` learns the logins of its pulls, and `daemon`
//! composes the parts and lets the mounts outlive the process. `observe` is a mount for one process,
//! without containerd.

pub mod config;
pub mod credentials;
pub mod daemon;
pub mod erofs;
pub mod fuse;
pub mod layer;
pub mod layer_mount;
pub mod layers;
pub mod mountpoint;
pub mod observe;
pub mod prefetch;
pub mod service;
pub mod snapshots;

pub use config::Config;
