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

pub(crate) mod config;
pub(crate) mod credentials;
pub(crate) mod daemon;
pub(crate) mod erofs;
pub(crate) mod fuse;
pub(crate) mod layer;
pub(crate) mod layer_mount;
pub(crate) mod layers;
pub(crate) mod mountpoint;
pub(crate) mod numbers;
pub(crate) mod observe;
pub(crate) mod prefetch;
pub(crate) mod service;
pub(crate) mod snapshots;
mod user_namespace;

/// The agent's section of a configuration file.
pub use config::{Background, Config, DriverKind, ImageRule, KeeperKind};
/// The proxy that learns the logins of pods' pulls.
pub use credentials::{CriCredentials, ImageService};
