//! What a container of an image will read when it starts, said without running one.
//!
//! ```text
//! TOCs ▶ view (layers merged) ┐
//! configuration ▶ argv, env   ├▶ launch ▶ loader, system, shell, python, node, java, servers ▶ walk: files in order
//! few files' content ▶ elf …  ┘
//! ```
//! All of it works on others' programs: it is asked for fuel in every loop and before every copy (`fuel`), and is done
//! in a process that may use little and reach nothing (`predictor` starts it, `child` and `sandbox` are it, `wire` is
//! between them). A guess, made once per image: what a program decides at run time is not known, both branches of a script count, and
//! what the guess misses is fetched when it is read. Layers that were not converted have no TOC: their files are named by
//! no one, they are unpacked before the start anyway.

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

/// The largest configuration that is looked at; those of real images have tens of KiB.
const MAX_CONFIGURATION: u64 = 4 << 20;
/// Records that are read from the store at once.
const READS_AT_ONCE: usize = 16;

/// What a container reads at its start, in order, as far as it could be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    pub(crate) files: Vec<FileUse>,
    /// Why there may be more of them.
    ended: Option<End>,
}

/// The part of an image's configuration that says what runs (OCI image-spec, config.md).
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
    /// The files that a container of a twin reads at its start, in the order in which it reads them, as far as they can
    /// be known without running it. The same for the same twin.
    ///
    /// Empty for an index, for an image nothing of which was converted, and for one whose configuration is not in the
    /// store: a twin with external TOCs keeps its source's.
    ///
    /// # Errors
    /// When the store fails, a stored layer is not what its record says, or looking at the image took too much.
    pub async fn predicted_files(
        &self,
        tocs: &Tocs,
        record: &ImageRecord,
    ) -> Result<Vec<FileUse>, Error> {
        let Some(image) = predictable(tocs, record).await? else {
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
        tracing::info!(source = %record.source, files = files.len(), ?ended, ?took, "static profile made");
        Ok(files)
    }
}

/// What is told of an image to whoever predicts its start; `None` where there is nothing to say.
async fn predictable(tocs: &Tocs, record: &ImageRecord) -> Result<Option<Image>, Error> {
    let is_image = media_type::manifest_kind(&record.media_type) == Some(ManifestKind::Image);
    if !is_image || record.twin == record.source {
        return Ok(None);
    }
    let store = tocs.store();
    let Some(manifest) = store.find(&record.twin).await? else {
        return Ok(None);
    };
    let manifest = store.read_all(&manifest).await?;
    // Others' documents may have megabytes.
    let manifest =
        tokio::task::spawn_blocking(move || serde_json::from_slice::<ImageManifest>(&manifest))
            .await;
    let Some(manifest) = manifest.ok().and_then(Result::ok) else {
        return Ok(None);
    };
    let configuration = store.find(&manifest.config.digest).await?;
    let configuration = configuration.filter(|object| object.size <= MAX_CONFIGURATION);
    let Some(configuration) = configuration.filter(|_| manifest.layers.len() <= MAX_LAYERS) else {
        tracing::debug!(twin = %record.twin, "no static profile: the configuration is not in the store, or too large");
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

/// A layer as it is told, and its blobs.
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
    let told = Layer {
        size: blob.size,
        toc_digest: layer.toc_digest.to_string(),
        external_toc: external.as_ref().map(|toc| toc.size),
    };
    Ok((Some(told), (Some(blob), external)))
}

/// The files that the image reads when it is executed; or why it could not be read.
fn predict(task: &Task, read: Box<Read<'_>>) -> Result<Prediction, String> {
    predict_with(task, read, &Fuel::new())
}

fn predict_with(task: &Task, read: Box<Read<'_>>, fuel: &Fuel) -> Result<Prediction, String> {
    let configuration: Configuration =
        serde_json::from_str(&task.configuration).unwrap_or_default();
    let mut walk = Walk::new(task, read, fuel.clone());
    // Whoever makes the container looks up its user before anything runs.
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
