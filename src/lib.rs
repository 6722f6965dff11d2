//! Starlift makes any container image start before it is downloaded.
//!
//! The rooms of the crate, and who may import whom, stand in `docs/ARCHITECTURE.md` and are tested.
//! The server is `serve`, `learn`, `predict` and `convert`; the node is `agent`, `recording` and
//! `containerd`; both stand on `transport`, `registry`, `store`, `tocs`, `profile` and `oci`. `cli`
//! is the command line.

pub mod agent;
pub mod aside;
mod backoff;
pub mod budget;
pub mod cli;
mod clock;
pub mod config;
pub mod containerd;
pub mod convert;
mod doctor;
#[cfg(test)]
#[path = "../tests/it/support/eventually.rs"]
mod eventually;
mod failure;
pub mod flight;
#[cfg(test)]
mod fuzzing;
mod inspect;
pub mod layers;
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
