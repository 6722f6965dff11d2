//! What an image's configuration and files suggest: found out once, beside everything else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Profiles;
use crate::convert::error::Error;
use crate::profile::Knowledge;
use crate::store::{self, StackRecord};
use crate::telemetry::log;

/// How long who asks for a profile waits for the image to be looked at: a node starts its container meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

impl Profiles {
    /// Has the image looked at, unless it was or others see to it. The looking goes on when the caller stops waiting.
    pub(super) async fn suggest(&self, image: &StackRecord) {
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
    pub(super) async fn suggest_soon(&self, image: &StackRecord) {
        if timeout(PATIENCE, self.suggest(image)).await.is_err() {
            tracing::debug!(source = %image.source, "what is suggested of an image comes too late for one who asked");
        }
    }

    async fn look(&self, image: &StackRecord) -> Result<(), Error> {
        if self.known(&image.config).await?.has_suggestions() {
            return Ok(());
        }
        let converter = &self.shared.converter;
        let Some(record) = self.shared.store.image(converter.generation(), &image.source).await? else { return Ok(()) };
        let files = converter.static_profile(&record).await?;
        let merge: store::Merge = Arc::new(move |knowledge: &mut Knowledge| knowledge.suggest(files.clone()));
        self.shared.store.learn(&image.config, &merge).await?;
        self.shared.known.invalidate(&image.config).await;
        Ok(())
    }
}
