//! Which files of an image containers read, in which order and how soon: the vocabulary of agent
//! and server.
//!
//! ```text
//! a start ▶ Observation ─┐
//! ranges  ▶ Observation ─┼▶ Knowledge (of one image, bounded) ▶ Profile ▶ prefetch
//! prediction, recording ▶ files ─┘
//! ```
//! Nothing here reads a clock, a network or an image. The caller passes the time and knows whether
//! a file exists.

pub mod artifact;
mod document;
mod extents;
mod file;
mod knowledge;
mod learned;
mod observation;
mod stack;
mod summary;
mod workload;

pub use document::{
    MAX_PROFILE_BYTES, MEDIA_TYPE, Profile, ProfileError, ProfiledFile, Source, Sources,
};
pub use extents::Extents;
pub use file::{FileUse, MAX_PATH_BYTES};
pub use knowledge::{Knowledge, MAX_KNOWN_FILES, MAX_WORKLOADS};
pub use learned::{HALF_LIFE, MAX_OBSERVERS};
pub use observation::{MAX_FILES, MAX_OBSERVATION_BYTES, Observation, ObservationError};
pub use stack::Stack;
pub use summary::{Summary, WorkloadSummary};
pub use workload::{ParseWorkloadError, Workload};
