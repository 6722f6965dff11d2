//! What a container of an image will read when it starts, said without running one.
//!
//! ```text
//! TOCs ▶ view (layers merged) ┐
//! configuration ▶ argv, env   ├▶ launch ▶ loader, system, shell, python, node, java, servers ▶ walk: files in order
//! few files' content ▶ elf …  ┘
//! ```
//! A guess, made once per image: what a program decides at run time is not known, both branches of a script count, and
//! what the guess misses is fetched when it is read. Layers that were not converted have no TOC: their files are named by
//! no one, they are unpacked before the start anyway.

mod elf;
mod java;
mod launch;
mod loader;
mod node;
mod python;
mod servers;
mod shell;
mod sparse;
mod system;
#[cfg(test)]
mod tests;
mod view;
mod walk;
mod words;

use std::time::Instant;

use futures::future::try_join_all;
use serde::Deserialize;

use super::converter::Converter;
use super::error::Error;
use super::tocs::Tocs;
use crate::oci::Digest;
use crate::oci::manifest::ImageManifest;
use crate::oci::media_type::{self, ManifestKind};
use crate::profile::FileUse;
use crate::store::ImageRecord;
use crate::store::records::ConvertedLayer;
use launch::Process;
use view::join;
use walk::Walk;

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

impl Converter {
    /// The files that a container of a twin reads at its start, in the order in which it reads them, as far as they can
    /// be known without running it. The same for the same twin.
    ///
    /// Empty for an index, for an image nothing of which was converted, and for one whose configuration is not in the
    /// store: a twin with external TOCs keeps its source's.
    ///
    /// # Errors
    /// When the store fails, or a stored layer is not what its record says.
    pub async fn static_profile(&self, record: &ImageRecord) -> Result<Vec<FileUse>, Error> {
        let is_image = media_type::manifest_kind(&record.media_type) == Some(ManifestKind::Image);
        if !is_image || record.twin == record.source {
            return Ok(Vec::new());
        }
        let Some(manifest) = self.document::<ImageManifest>(&record.twin).await? else { return Ok(Vec::new()) };
        let Some(configuration) = self.document::<Configuration>(&manifest.config.digest).await? else {
            tracing::debug!(twin = %record.twin, "no static profile: the configuration is not in the store");
            return Ok(Vec::new());
        };
        let layers = try_join_all(manifest.layers.iter().map(|layer| self.tocs().layer(&layer.digest))).await?;
        let started = Instant::now();
        let files = profile(self.tocs(), &layers, configuration.config.unwrap_or_default()).await?;
        tracing::info!(source = %record.source, files = files.len(), took = ?started.elapsed(), "static profile made");
        Ok(files)
    }

    /// A document of the twin, if the store has it and it is one.
    async fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<Option<T>, Error> {
        let Some(object) = self.shared.store.find(digest).await? else { return Ok(None) };
        let bytes = self.shared.store.read_all(&object).await?;
        Ok(serde_json::from_slice(&bytes).ok())
    }
}

/// The files that the image of these layers, bottom first, reads when this is executed.
async fn profile(tocs: &Tocs, layers: &[Option<ConvertedLayer>], execution: Execution) -> Result<Vec<FileUse>, Error> {
    let mut walk = Walk::new(tocs, layers).await?;
    // Whoever makes the container looks up its user before anything runs.
    for path in ["/etc/passwd", "/etc/group"] {
        walk.name_path(path);
    }
    launch::start(&mut walk, execution.process()).await?;
    Ok(walk.finish())
}

impl Execution {
    fn process(self) -> Process {
        let argv = self.entrypoint.into_iter().chain(self.command).flatten().collect();
        let environment = self.environment.into_iter().flatten();
        let pairs = environment
            .filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        let directory = join("/", &self.directory.unwrap_or_default());
        Process { argv, env: pairs.collect(), directory, depth: 0 }
    }
}
