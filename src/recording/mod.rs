//! Runs an image once, on lazily mounted layers, and records which files it reads.
//!
//! ```text
//! a layout of lazy layers ▶ mounts ▶ overlay ▶ runc ▶ files in the order of first use
//! ```
//! `record` is the file that keeps them. It is read by programs without an agent too.

#[cfg(feature = "agent")]
pub(crate) mod bundle;
#[cfg(feature = "agent")]
pub(crate) mod container;
#[cfg(feature = "agent")]
pub(crate) mod mounts;
pub(crate) mod record;
#[cfg(feature = "agent")]
mod run;
#[cfg(feature = "agent")]
mod user;
#[cfg(feature = "agent")]
pub(crate) mod workload;

#[cfg(feature = "agent")]
pub(crate) use run::{Layer, MountedLayers};
