//! Why something stored cannot be shown.

use std::sync::Arc;

use crate::learn;
use crate::store;
use crate::tocs;

/// Why something stored cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The store failed for a concurrent caller with the same request.
    #[error(transparent)]
    Shared(Arc<store::Error>),
    #[error(transparent)]
    Learn(#[from] learn::Error),
    #[error(transparent)]
    Tocs(#[from] tocs::Error),
}
