//! A pull of one image into containerd.

use indicatif::ProgressBar;
use serde::Serialize;

use super::content;
use super::image::Image;
use super::labels::{Dialect, Labels, Source};
use super::session::Session;
use super::unpack::{self, Outcome, Unpacker};
use crate::failure::Failure;
use crate::oci::{Digest, ImageName, Platform};
use crate::transport::Endpoint;

/// An image to pull, and the settings of the pull.
#[derive(Debug)]
pub(crate) struct Pull<'a> {
    pub(crate) image: &'a ImageName,
    pub(crate) platform: Platform,
    pub(crate) snapshotter: &'a str,
    /// The names of the labels that describe layers to the snapshotter.
    pub(crate) dialect: Dialect,
    /// Whether the snapshotter is asked not to verify layers.
    pub(crate) skip_verify: bool,
    /// Labels for the image in containerd.
    pub(crate) labels: Labels,
}

/// The result of a pull.
#[derive(Debug, Serialize)]
pub(crate) struct PullReport {
    reference: String,
    pub(crate) digest: Digest,
    media_type: String,
    /// The manifest of the platform's image. `digest` may be that of an index.
    manifest: Digest,
    snapshotter: String,
    /// The snapshot with all layers; `None` for an image without layers.
    chain_id: Option<Digest>,
    pub(crate) layers: Vec<PulledLayer>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PulledLayer {
    digest: Digest,
    pub(crate) size: u64,
    diff_id: Digest,
    chain_id: Digest,
    pub(crate) outcome: Outcome,
}

impl Pull<'_> {
    /// Pulls the image. If it fails or is dropped, only the session's lease keeps the objects that
    /// were added to containerd. `counter` counts the bytes of fetched blobs.
    pub(crate) async fn run(
        &self,
        endpoint: &Endpoint,
        session: &Session,
        counter: &ProgressBar,
    ) -> Result<PullReport, Failure> {
        let image = Image::read(endpoint, &self.platform).await?;
        let reference = self.image.to_string();
        let source = Source {
            dialect: self.dialect,
            reference: reference.clone(),
            manifest: image.digest().clone(),
            skip_verify: self.skip_verify,
        };
        image.keep(session, self.image).await?;
        let unpacker = Unpacker {
            session,
            endpoint,
            name: self.image,
            snapshotter: self.snapshotter,
            counter,
        };
        for other in image.others() {
            unpacker.fetch(other).await?;
        }
        let layers = unpack::layers_of(&image, &source);
        let outcomes = unpacker.unpack(&layers).await?;
        let chain_id = layers.last().map(|layer| layer.chain_id.clone());
        if let Some(chain_id) = &chain_id {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
            content::label(
                session,
                image.config(),
                [(key, chain_id.to_string())].into(),
            )
            .await?;
        }
        image
            .record(session, &reference, self.labels.clone())
            .await?;
        let target = image.target();
        Ok(PullReport {
            reference,
            digest: target.digest.clone(),
            media_type: target.media_type.clone(),
            manifest: image.digest().clone(),
            snapshotter: self.snapshotter.to_owned(),
            chain_id,
            layers: layers
                .into_iter()
                .zip(outcomes)
                .map(PulledLayer::new)
                .collect(),
        })
    }
}

impl PulledLayer {
    fn new((layer, outcome): (unpack::Layer, Outcome)) -> Self {
        let unpack::Layer {
            descriptor,
            diff_id,
            chain_id,
            ..
        } = layer;
        Self {
            digest: descriptor.digest,
            size: descriptor.size,
            diff_id,
            chain_id,
            outcome,
        }
    }
}
