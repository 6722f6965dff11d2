//! Predicts the files that a container of an image reads when it starts, without running one.
//!
//! ```text
//! TOCs ▶ view (layers merged) ┐
//! configuration ▶ argv, env   ├▶ launch ▶ loader, system, shell, python, node, java, servers
//! few files' content ▶ elf …  ┘                  ▼
//!                               walk: the files in order
//! ```
//! All of it parses untrusted programs. Every loop and every copy takes from a budget (`fuel`), and
//! the work is done in a process with few rights and limits on memory and time: `predictor` starts
//! it, `child` and `sandbox` run in it, `wire` is the protocol between them. The result is a guess,
//! made once per image: decisions of a program at run time are not known, both branches of a script
//! count, and files that the guess misses are fetched when they are read. Layers that were not
//! converted have no TOC. Their files are not named: they are unpacked before the start anyway.

mod blobs;
mod child;
mod elf;
mod error;
mod fuel;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
mod hostile;
mod java;
mod launch;
mod loader;
mod node;
mod predictor;
mod python;
mod sandbox;
mod servers;
mod shell;
mod shell_lexer;
mod sparse;
mod system;
#[cfg(test)]
mod tests;
mod view;
mod walk;
mod wire;

use std::time::Instant;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::layers::MAX_LAYERS;
use crate::layers::open::TocDigest;
use crate::oci::Digest;
use crate::oci::manifest::ImageManifest;
use crate::oci::media_type::{self, ManifestKind};
use crate::profile::FileUse;
use crate::store::{ImageRecord, Object};
use crate::telemetry::metrics;
use crate::tocs::Tocs;
use blobs::{Layer, Read, Task};
pub use child::work;
pub use error::Error;
use fuel::{End, Fuel};
use launch::Process;
pub(crate) use predictor::Blame;
use predictor::Image;
pub use predictor::PredictionError;
pub use predictor::Predictor;
pub use sandbox::Limits;
use view::join;
use walk::Walk;

/// The largest configuration that is parsed. Those of real images have tens of KiB.
const MAX_CONFIGURATION: u64 = 4 << 20;
/// Records that are read from the store at once.
const READS_AT_ONCE: usize = 16;

/// The files that a container reads at its start, in order, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    pub(crate) files: Vec<FileUse>,
    /// The reason why there may be more files.
    ended: Option<End>,
}

/// The part of an image's configuration that describes the process (OCI image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Execution>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Execution {
    #[serde(default, rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(default, rename = "Cmd")]
    command: Option<Vec<String>>,
    #[serde(default, rename = "Env")]
    environment: Option<Vec<String>>,
    #[serde(default, rename = "WorkingDir")]
    directory: Option<String>,
}

impl Predictor {
    /// Returns the files that a container of a converted image reads at its start, in that order,
    /// as far as they can be known without running it. The result for the same image is always the
    /// same.
    ///
    /// Empty for an index, for an image without a converted layer, and for an image whose
    /// configuration is not in the store: a converted image with external TOCs keeps the
    /// configuration of its source image.
    ///
    /// # Errors
    /// If the store fails, a stored layer does not match its record, or the prediction took too
    /// much.
    pub async fn predicted_files(
        &self,
        tocs: &Tocs,
        record: &ImageRecord,
    ) -> Result<Vec<FileUse>, Error> {
        let Some(image) = find_image(tocs, record).await? else {
            return Ok(Vec::new());
        };
        let started = Instant::now();
        let predicted = self.predict(image).await;
        metrics()
            .prediction_seconds
            .observe(started.elapsed().as_secs_f64());
        let outcome = predicted
            .as_ref()
            .map_or_else(PredictionError::outcome, Prediction::outcome);
        metrics()
            .predictions
            .get_or_create(&[("outcome", outcome)])
            .inc();
        let Prediction { files, ended } = predicted?;
        let took = started.elapsed();
        tracing::info!(source = %record.source, files = files.len(), ?ended, ?took, "start predicted");
        Ok(files)
    }
}

/// Reads the parts of an image that a prediction needs. `None` if nothing can be predicted.
async fn find_image(tocs: &Tocs, record: &ImageRecord) -> Result<Option<Image>, Error> {
    let is_image = media_type::manifest_kind(&record.media_type) == Some(ManifestKind::Image);
    if !is_image || record.converted == record.source {
        return Ok(None);
    }
    let store = tocs.store();
    let Some(manifest) = store.find(&record.converted).await? else {
        return Ok(None);
    };
    let manifest = store.read_all(&manifest).await?;
    // An untrusted manifest may have megabytes.
    let manifest =
        tokio::task::spawn_blocking(move || serde_json::from_slice::<ImageManifest>(&manifest))
            .await;
    let Some(manifest) = manifest.ok().and_then(Result::ok) else {
        return Ok(None);
    };
    let configuration = store.find(&manifest.config.digest).await?;
    let configuration = configuration.filter(|object| object.size <= MAX_CONFIGURATION);
    let Some(configuration) = configuration.filter(|_| manifest.layers.len() <= MAX_LAYERS) else {
        tracing::debug!(converted = %record.converted, "start not predicted: configuration missing or too large, or too many layers");
        return Ok(None);
    };
    let configuration =
        String::from_utf8_lossy(&store.read_all(&configuration).await?).into_owned();
    let digests: Vec<Digest> = manifest
        .layers
        .into_iter()
        .map(|layer| layer.digest)
        .collect();
    let layers = stream::iter(digests).map(|digest| async move { layer(tocs, &digest).await });
    let layers: Vec<_> = layers.buffered(READS_AT_ONCE).try_collect().await?;
    let (layers, blobs) = layers.into_iter().unzip();
    Ok(Some(Image {
        task: Task {
            configuration,
            layers,
        },
        blobs,
        store: store.clone(),
    }))
}

/// Returns the description of a layer, and its blobs.
async fn layer(
    tocs: &Tocs,
    digest: &Digest,
) -> Result<(Option<Layer>, (Option<Object>, Option<Object>)), Error> {
    let Some(layer) = tocs.layer(digest).await? else {
        return Ok((None, (None, None)));
    };
    let Some(blob) = tocs.store().find(&layer.digest).await? else {
        return Ok((None, (None, None)));
    };
    let external = match &layer.external_toc {
        Some(toc) => tocs.store().find(toc).await?,
        None => None,
    };
    let description = Layer {
        size: blob.size,
        toc_digest: TocDigest::Json(layer.toc_digest),
        external_toc: external.as_ref().map(|toc| toc.size),
    };
    Ok((Some(description), (Some(blob), external)))
}

/// Returns the files that the image reads when it is started, or the reason why it could not be
/// read.
fn predict(task: &Task, read: Box<Read<'_>>) -> Result<Prediction, String> {
    predict_with(task, read, &Fuel::new())
}

fn predict_with(task: &Task, read: Box<Read<'_>>, fuel: &Fuel) -> Result<Prediction, String> {
    let configuration: Configuration =
        serde_json::from_str(&task.configuration).unwrap_or_default();
    let mut walk = Walk::new(task, read, fuel.clone());
    // The runtime looks up the container's user before anything runs.
    for path in ["/etc/passwd", "/etc/group"] {
        walk.name_path(path);
    }
    launch::start(
        &mut walk,
        &configuration.config.unwrap_or_default().process(),
    );
    Ok(Prediction {
        files: walk.finish()?,
        ended: fuel.ended(),
    })
}

impl Execution {
    fn process(self) -> Process {
        let argv = self
            .entrypoint
            .into_iter()
            .chain(self.command)
            .flatten()
            .collect();
        let environment = self.environment.into_iter().flatten();
        let pairs = environment.filter_map(|pair| {
            pair.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        let directory = join("/", &self.directory.unwrap_or_default());
        Process {
            argv,
            env: pairs.collect(),
            directory,
            depth: 0,
        }
    }
}
