//! Errors of file operations.

use std::io;

use crate::registry::Error;

/// Returns the upstream error for a failed file operation.
pub(super) fn failed(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound,
        _ => Error::Unavailable(error.to_string()),
    }
}
