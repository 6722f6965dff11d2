//! The documents of an image: which layers and children are converted, and the new configuration,
//! manifest and index.
//!
//! Pure: every process makes the same bytes from the same input.

pub(crate) mod claims;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod plan;
pub(crate) mod reason;
pub(crate) mod weigh;
