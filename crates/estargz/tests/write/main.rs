//! Writing: tars of every kind become blobs whose stream, members and listing are what they should be.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test by panicking"
)]

mod against;
mod archive;
mod golden;
mod hostile;
mod layout;
mod links;
mod order;
mod processor;
mod properties;
mod reader;
mod sparse;
mod support;
mod verify;
mod walker;
