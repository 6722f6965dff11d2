//! The data types of the OCI image and distribution specifications.
//!
//! Nothing here does IO or imports another module of this crate.

pub mod annotations;
pub mod artifact;
pub mod digest;
pub mod document;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hub;
pub(crate) mod lenient;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod platform;
pub mod range;
pub mod reference;
pub mod route;
pub(crate) mod stream;
pub mod translate;
pub(crate) mod weight;

pub use artifact::Artifact;
pub use digest::Digest;
pub use manifest::{Descriptor, Manifest};
pub use name::ImageName;
pub use platform::Platform;
pub use reference::{Reference, Repository, Tag};
