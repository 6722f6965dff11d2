//! Starlift makes any container image start before it is downloaded.
//!
//! The map of the crate: `oci` holds the words, `profile` what containers read, `upstream` pulls, `store` keeps, `convert`
//! makes twins, `serve` hands them out, `agent` mounts them lazily, `cli` is the command line. Who may import whom stands
//! in `docs/ARCHITECTURE.md` and is tested.

pub mod agent;
pub mod aside;
pub mod budget;
pub mod cli;
mod clock;
pub mod config;
pub mod containerd;
pub mod convert;
mod failure;
pub mod flight;
#[cfg(test)]
mod fuzzing;
pub mod learn;
pub mod oci;
pub mod predict;
pub mod profile;
mod recording;
pub mod registry;
pub mod serve;
pub mod store;
pub mod telemetry;
mod tempfiles;
pub mod tocs;
pub mod transport;
