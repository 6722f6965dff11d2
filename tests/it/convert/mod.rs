//! Images become twins: whole, once, and never by halves.
#![expect(
    clippy::unwrap_used,
    reason = "what a test's helper unwraps is asserted"
)]

mod bench;
mod faults;
mod hostile;
mod images;
mod indexes;
mod once;
mod pass_through;
pub(crate) mod predictions;
mod slow;
mod tocs;
