//! Why an image's profile can be neither read nor learned.

use std::sync::Arc;

#[cfg(feature = "predict")]
use crate::predict;
use crate::store;
use crate::tocs;

/// Why an image's profile can be neither read nor learned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The store failed for a concurrent caller with the same request.
    #[error(transparent)]
    Shared(Arc<store::Error>),
    #[error(transparent)]
    Tocs(#[from] tocs::Error),
    #[cfg(feature = "predict")]
    #[error(transparent)]
    Prediction(#[from] predict::Error),
    #[error("profile document cannot be serialized")]
    Document(#[from] serde_json::Error),
    #[error("work was interrupted")]
    BrokenOff,
}
