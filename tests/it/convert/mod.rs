//! Images are converted: completely, once, and never visible in part.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test helper fails the test"
)]

mod bench;
mod faults;
mod hostile;
mod images;
mod indexes;
mod once;
mod pass_through;
pub(crate) mod predictions;
mod replicas;
mod slow;
mod tocs;
