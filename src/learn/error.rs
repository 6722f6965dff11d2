//! Why nothing can be said, or learned, of how an image is used.

use std::sync::Arc;

use crate::predict;
use crate::store;
use crate::tocs;

/// Why nothing can be said, or learned, of how an image is used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The store failed someone else who asked for the same.
    #[error(transparent)]
    Shared(Arc<store::Error>),
    #[error(transparent)]
    Tocs(#[from] tocs::Error),
    #[error(transparent)]
    Prediction(#[from] predict::Error),
    #[error("a document of ours cannot be written")]
    Document(#[from] serde_json::Error),
    #[error("the work broke off")]
    BrokenOff,
}
