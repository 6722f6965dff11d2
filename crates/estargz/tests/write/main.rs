//! Writing: the stream, the members and the TOC of blobs from tars of every kind.
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
