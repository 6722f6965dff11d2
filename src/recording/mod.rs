//! Runs an image once, on lazily mounted layers, and records which files it reads.
//!
//! ```text
//! SRC ▶ a layout of lazy layers ▶ mounts ▶ overlay ▶ runc ▶ files in the order of first use
//! ```

mod bundle;
pub(crate) mod container;
mod image;
mod lazy_image;
pub(crate) mod mounts;
mod run;
mod user;
pub(crate) mod workload;

pub(crate) use lazy_image::{LazyImage, Recorded, RunOptions, RunReport};
