//! Predictions from an image's configuration and files, made once and in the background.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::time::timeout;

use super::Profiles;
use super::error::Error;
use crate::flight::Flight;
use crate::oci::Digest;
use crate::predict::{Blame, Predictor};
use crate::profile::Knowledge;
use crate::store::{self, StackRecord};
use crate::telemetry::log;

/// Raised whenever the prediction of the same image may change. Images whose prediction was given
/// up are then analysed again.
const PREDICTIONS: u32 = 1;
/// How long a request for a profile waits for the prediction. A node starts its container
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after a failed prediction the image is not analysed again, and the number of such
/// images.
const FAILED_FOR: Duration = Duration::from_secs(5 * 60);
const FAILED_IMAGES: u64 = 10_000;

/// The predictions that are being made, and those that failed a moment ago.
#[derive(Debug)]
pub(super) struct Predictions {
    predictor: Predictor,
    running: Flight<Digest, ()>,
    failed: Cache<Digest, ()>,
}

impl Predictions {
    pub(super) fn new(predictor: Predictor) -> Self {
        Self {
            predictor,
            running: Flight::default(),
            failed: Cache::builder()
                .max_capacity(FAILED_IMAGES)
                .time_to_live(FAILED_FOR)
                .build(),
        }
    }
}

impl Profiles {
    /// Predicts the image's files, unless that was done or another caller is doing it. The analysis
    /// goes on when the caller stops waiting.
    pub(super) async fn predict(&self, image: &StackRecord) {
        let Some(predictions) = &self.predictions else {
            return;
        };
        if predictions.failed.contains_key(&image.config) {
            return;
        }
        let looked = predictions.running.join(image.config.clone(), || {
            let (this, image) = (self.clone(), image.clone());
            let predictions = Arc::clone(predictions);
            async move {
                if let Err(error) = this.look(&predictions.predictor, &image).await {
                    tracing::warn!(source = %image.source, error = log::chain(&error), "start not predicted");
                    predictions.failed.insert(image.config, ()).await;
                }
            }
        });
        // An interrupted analysis is repeated at the next request.
        let _outcome = looked.await;
    }

    /// The same for a caller that cannot wait long.
    pub(super) async fn predict_soon(&self, image: &StackRecord) {
        if timeout(PATIENCE, self.predict(image)).await.is_err() {
            tracing::debug!(source = %image.source, "prediction not ready in time for a request");
        }
    }

    async fn look(&self, predictor: &Predictor, image: &StackRecord) -> Result<(), Error> {
        let by = format!("{}-p{PREDICTIONS}", self.shared.generation.0);
        let known = self.known(&image.config).await?;
        if known.has_prediction() || !known.may_be_tried(&by) {
            return Ok(());
        }
        let Some(record) = self
            .shared
            .store
            .image(&self.shared.generation, &image.source)
            .await?
        else {
            return Ok(());
        };
        // Recorded before the analysis begins, so that an image that crashes this process does not
        // crash the next one, and so on.
        let before = by.clone();
        self.note(image, move |knowledge| knowledge.is_tried(&before))
            .await?;
        match predictor.predicted_files(&self.shared.tocs, &record).await {
            Ok(files) => {
                self.note(image, move |knowledge| {
                    knowledge.set_prediction(files.clone())
                })
                .await
            }
            Err(error) => {
                match error.blame() {
                    Blame::Image => {
                        self.note(image, move |knowledge| knowledge.give_up(&by))
                            .await?
                    }
                    Blame::Ours => self.note(image, Knowledge::was_not_tried).await?,
                    // The image is analysed once more, and then never again.
                    Blame::Unclear => {}
                }
                Err(error.into())
            }
        }
    }

    async fn note(
        &self,
        image: &StackRecord,
        note: impl Fn(&mut Knowledge) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let merge: store::Merge = Arc::new(note);
        self.shared.store.learn(&image.config, &merge).await?;
        self.shared.known.invalidate(&image.config).await;
        Ok(())
    }
}
