//! A run of an image on lazily mounted layers.

use std::path::Path;

use super::bundle::{self, Network};
use super::container::Container;
use super::mounts::RootFs;
use super::user::User;
use super::workload::{Mount, Workload};

use crate::agent::layer::spec::LayerSpec;
use crate::agent::observe::{Observatory, Recording, Shown};
use crate::failure::Failure;
use crate::oci::Digest;
use crate::registry::{self, UpstreamConfig};
use crate::transport::Upstreams;

/// The registry name of the layout. No real registry has it.
const HOST: &str = "localhost";

/// A layer of the image that is run.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) toc_digest: Option<Digest>,
}

/// The image's layers, each mounted at a directory.
#[derive(Debug)]
pub(crate) struct MountedLayers {
    observatory: Observatory,
    layers: Vec<Shown>,
}

/// A container running on mounted layers. The container is removed before its root file system.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) container: Container,
    rootfs: RootFs,
    recording: Recording,
}

impl MountedLayers {
    /// Mounts the layers of the image `manifest` in `layout`, below `folder`.
    pub(crate) async fn set(
        folder: &Path,
        layout: &Path,
        manifest: &Digest,
        layers: &[Layer],
    ) -> Result<Self, Failure> {
        let layout = layout
            .to_str()
            .ok_or_else(|| Failure::new("path of the temporary folder is not UTF-8"))?;
        let local = UpstreamConfig {
            url: format!("oci:{layout}"),
            ..UpstreamConfig::default()
        };
        let upstreams = registry::Config {
            upstream: [(HOST.to_owned(), local)].into(),
            ..registry::Config::default()
        };
        let upstreams = Upstreams::new(&upstreams).map_err(Failure::from_error)?;
        let observatory = Observatory::mount(folder, upstreams)
            .await
            .map_err(Failure::from_error)?;
        let mut shown = Vec::new();
        for layer in layers {
            let message = format!(
                "{} cannot be mounted lazily, so its reads cannot be recorded",
                layer.digest
            );
            shown.push(
                observatory
                    .show(&spec(layer, manifest))
                    .await
                    .map_err(Failure::when(message))?,
            );
        }
        Ok(Self {
            observatory,
            layers: shown,
        })
    }

    /// Starts the workload in a container whose files are below `folder`.
    pub(crate) fn start(
        &self,
        folder: &Path,
        workload: &Workload,
        network: Network,
        mounts: &[Mount],
    ) -> Result<Run, Failure> {
        let paths: Vec<_> = self.layers.iter().map(|layer| layer.path.clone()).collect();
        // Recording begins before this process reads a file of the image: the kernel keeps its
        // pages, and the container's later read of that file would not be seen.
        let recording = self.observatory.begin(&self.layers);
        let rootfs = RootFs::mount(folder, &paths)?;
        let user = User::find(&workload.user, &rootfs.path)?;
        let bundle = folder.join("bundle");
        bundle::write(&bundle, &rootfs.path, workload, &user, network, mounts)?;
        let container = Container::start(folder, &bundle)?;
        Ok(Run {
            container,
            rootfs,
            recording,
        })
    }

    /// Returns the files that were read, each with the number of its layer, in the order of first
    /// use.
    pub(crate) fn files(&self, recording: Recording) -> Vec<(usize, Vec<u8>)> {
        self.observatory.end(recording, &self.layers)
    }
}

impl Run {
    /// Removes the container and its root file system.
    pub(crate) fn end(self) -> Recording {
        drop(self.container);
        drop(self.rootfs);
        self.recording
    }
}

fn spec(layer: &Layer, manifest: &Digest) -> LayerSpec {
    LayerSpec {
        reference: format!("{HOST}/image:1"),
        digest: layer.digest.clone(),
        toc_digest: layer.toc_digest.clone(),
        manifest_digest: Some(manifest.clone()),
        image_layers: Vec::new(),
        layers_above: Vec::new(),
        labels: Default::default(),
    }
}
