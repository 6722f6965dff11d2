//! What an image's configuration and files suggest: found out once, beside everything else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::error::Error;
use super::{Profiles, Shared};
use crate::predict::Blame;
use crate::profile::Knowledge;
use crate::store::{self, StackRecord};
use crate::telemetry::log;

/// Raised whenever a prediction may say something else of the same image: those given up are then looked at again.
const PREDICTIONS: u32 = 1;
/// How long who asks for a profile waits for the image to be looked at: a node starts its container meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

impl Profiles {
    /// Has the image looked at, unless it was or others see to it. The looking goes on when the caller stops waiting.
    pub(super) async fn predict(&self, image: &StackRecord) {
        if self.shared.unlooked.contains_key(&image.config) {
            return;
        }
        let looked = self.shared.looking.join(image.config.clone(), || {
            let (this, image) = (self.clone(), image.clone());
            async move {
                if let Err(error) = this.look(&image).await {
                    tracing::warn!(source = %image.source, error = log::chain(&error), "nothing is suggested of an image");
                    this.shared.unlooked.insert(image.config, ()).await;
                }
            }
        });
        // One that was broken off is made when it is next asked for.
        let _outcome = looked.await;
    }

    /// The same for a caller in a hurry.
    pub(super) async fn predict_soon(&self, image: &StackRecord) {
        if timeout(PATIENCE, self.predict(image)).await.is_err() {
            tracing::debug!(source = %image.source, "what is suggested of an image comes too late for one who asked");
        }
    }

    async fn look(&self, image: &StackRecord) -> Result<(), Error> {
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
        // Before anything of the image is looked at: what ends this process must not end the next one, and so on.
        let before = by.clone();
        self.note(image, move |knowledge| knowledge.is_tried(&before))
            .await?;
        let Shared {
            predictor, tocs, ..
        } = self.shared.as_ref();
        match predictor.predicted_files(tocs, &record).await {
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
                    // One more time, and then never again.
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
