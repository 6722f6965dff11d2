//! Failures of predictions.

use super::predictor::{Blame, PredictionError};
use crate::store;
use crate::tocs;

/// A failure to predict the start of an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Tocs(#[from] tocs::Error),
    #[error("predicting the start of the image failed")]
    Prediction(#[from] PredictionError),
}

impl Error {
    /// Returns the cause of the failure: the image or this server.
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Prediction(failure) => failure.blame(),
            Self::Store(_) | Self::Tocs(_) => Blame::Ours,
        }
    }
}
