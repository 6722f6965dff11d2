//! Accounts for the memory of documents in answers. A client may read an answer slowly, and
//! thousands of answers may wait.

use std::time::Duration;

use bytes::Bytes;

use crate::aside::aside;
use crate::budget::{Budget, Weight};

use super::error::ApiError;

/// The memory for documents of answers: 64 of the largest, or tens of thousands of ordinary ones.
const BUDGET: u64 = 256 << 20;

/// How long an answer waits for memory before it is refused.
const PATIENCE: Duration = Duration::from_secs(2);

/// The memory for documents of answers.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    budget: Budget,
}

/// Bytes that keep their weight until their last piece is sent.
struct WeighedBytes {
    bytes: Bytes,
    _weight: Weight,
}

impl AsRef<[u8]> for WeighedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Documents {
    pub(crate) fn new() -> Self {
        Self {
            budget: Budget::new("documents of answers", BUDGET),
        }
    }

    /// Reserves memory for a document of `size` bytes that is about to be read.
    pub(crate) async fn take(&self, size: u64) -> Result<Weight, ApiError> {
        self.budget
            .take_within(size, PATIENCE)
            .await
            .map_err(|full| ApiError::full(&full))
    }

    /// Reserves the memory of a document that is already in memory.
    pub(crate) async fn weigh(&self, bytes: Bytes) -> Result<Bytes, ApiError> {
        let weight = self.take(bytes.len() as u64).await?;
        Ok(Self::bind(bytes, weight))
    }

    /// Returns the JSON of a value, which takes at most `size` bytes. Its memory is reserved.
    pub(crate) async fn json<T>(&self, size: u64, value: T) -> Result<Bytes, ApiError>
    where
        T: serde::Serialize + Send + 'static,
    {
        let mut weight = self.take(size).await?;
        let work = usize::try_from(size).unwrap_or(usize::MAX);
        let json = aside(work, move || {
            // A vector that doubles would keep up to twice the text.
            serde_json::to_vec(&value).map(Vec::into_boxed_slice)
        })
        .await;
        // Only maps whose keys are not strings fail, and no answer has them.
        let json = json.map_err(|error| ApiError::inside(&error))?;
        weight.shrink_to(json.len() as u64);
        Ok(Self::bind(json.into(), weight))
    }

    /// Ties the weight to the bytes that it was taken for.
    pub(crate) fn bind(bytes: Bytes, weight: Weight) -> Bytes {
        Bytes::from_owner(WeighedBytes {
            bytes,
            _weight: weight,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_keeps_its_weight_until_its_last_piece_is_dropped() {
        let documents = Documents::new();
        let half = usize::try_from(BUDGET / 2).unwrap();
        let mut first = documents.weigh(Bytes::from(vec![1; half])).await.unwrap();
        let piece = first.split_to(10);
        drop(first);
        let second = documents.weigh(Bytes::from(vec![2; half])).await.unwrap();
        assert!(
            documents.budget.try_take(1).is_err(),
            "a piece keeps the whole in memory"
        );
        drop(piece);
        documents.take(1).await.unwrap();
        drop(second);
        assert_eq!(documents.budget.free(), BUDGET);
    }
}
