//! Starlift makes any container image start before it is downloaded.
//!
//! The map of the crate: `oci` holds the data types of the OCI specifications, `profile` the record
//! of the files that containers read, `upstream` pulls, `store` keeps, `convert` makes converted
//! images, `serve` serves them, `agent` mounts them lazily, `cli` is the command line.
//! `docs/ARCHITECTURE.md` says which module may import which, and a test enforces it.

pub mod agent;
pub mod aside;
pub mod budget;
pub mod cli;
pub mod config;
pub mod containerd;
pub mod convert;
pub mod flight;
#[cfg(test)]
mod fuzzing;
pub mod oci;
pub mod profile;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod upstream;
