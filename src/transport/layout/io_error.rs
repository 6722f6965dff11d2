//! File operations that fail.

use std::io;

use crate::registry::Error;

/// What a failed file operation means to who asked for an image.
pub(super) fn failed(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound,
        _ => Error::Unavailable(error.to_string()),
    }
}
