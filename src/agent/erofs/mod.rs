//! The EROFS driver: the kernel reads a layer's names from a metadata image that the agent wrote,
//! and its content from the layer's data file.
//!
//! ```text
//! read(2) ▶ page cache ▶ EROFS ─▶ the layer's file in the FUSE mount lazy-data ▶ the agent
//!                              └▶ the data file, once all of it is there
//! ```
//! The FUSE tree (`filesystem`) is the other driver, over the same data files. It serves the layers
//! that EROFS cannot express, and all layers on kernels that lack a part.

mod driver;
mod image;
mod mount;
mod mounts;
mod probe;

pub(crate) use driver::{Driver, DriverReport};
pub(crate) use mounts::{ErofsMounts, clear};
pub(super) use probe::{NAME as PROBE, SIZE as PROBE_SIZE};
pub(crate) use probe::{Probe, ProbeError};
