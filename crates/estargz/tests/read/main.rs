//! Reading through the public interface: golden blobs, hostile TOCs, properties.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test by panicking"
)]
#![expect(clippy::panic, reason = "a test's helpers fail the test by panicking")]

mod golden;
mod hostile;
mod property;
mod support;
mod tree;
