//! An image whose layers are mounted lazily, so that each read of a file is recorded.

use std::fmt;
use std::path::Path;

use indicatif::ProgressBar;
use serde::Serialize;
use tempfile::TempDir;

use super::bundle::Network;
use super::container::End;
use super::image::Image;
use super::run::{Layer, MountedLayers};
use super::workload::{Mount, Overrides};
use crate::conversion::ImageConversion;
use crate::conversion::record::Line;
use crate::convert::{self, Format, Setting};
use crate::failure::Failure;
use crate::inspect::report::LayerReport;
use crate::oci::{Digest, Manifest, Platform};
use crate::transport::{LayoutImage, Location};

/// The signal that stops a workload, if its image does not name one.
const KILL: &str = "SIGKILL";

/// An image that is ready to run. Dropping it unmounts the layers.
#[derive(Debug)]
pub(crate) struct LazyImage {
    image: Image,
    // In the order in which they are dropped: the mounts read the converted image in the folder.
    mounted: MountedLayers,
    _converted: ConvertedImage,
    folder: TempDir,
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunOptions<'a> {
    pub(crate) overrides: &'a Overrides,
    pub(crate) mounts: &'a [Mount],
    /// Whether the container has this machine's network instead of only a loopback interface.
    pub(crate) has_host_network: bool,
}

/// The outcome of a run.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// The files that were read, in the order of first use.
    pub(crate) lines: Vec<Line>,
    /// The paths that were read but cannot be in a record, because they are not UTF-8.
    pub(crate) unnamed: Vec<Vec<u8>>,
    pub(crate) report: RunReport,
}

/// The end of a workload, and the number of files that it read.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    platform: Platform,
    /// `None` if the workload was stopped or killed.
    exit_code: Option<i32>,
    files: usize,
}

/// The image in a layout, in the fast setting because its layers are read only once.
#[derive(Debug)]
struct ConvertedImage {
    folder: TempDir,
    layers: Vec<LayerReport>,
    manifest: Digest,
}

impl LazyImage {
    /// Converts the source of `conversion` for this machine's platform, and mounts its layers. No
    /// file of the image is in the kernel's cache yet. `counter` counts the bytes of the
    /// conversion.
    pub(crate) async fn mount(
        conversion: &ImageConversion<'_>,
        counter: &ProgressBar,
    ) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("starlift-").tempdir();
        let folder = folder.map_err(Failure::when("temporary folder cannot be created"))?;
        let image = Image::find(conversion).await?;
        let converted =
            ConvertedImage::make(conversion, &image.manifest, folder.path(), counter).await?;
        let mounted = MountedLayers::set(
            folder.path(),
            converted.folder.path(),
            &converted.manifest,
            &converted.layers()?,
        )
        .await?;
        Ok(Self {
            image,
            mounted,
            _converted: converted,
            folder,
        })
    }

    /// Runs the image until it ends by itself or `stop_requested` completes. No process outlives
    /// the call, even if it is cancelled.
    pub(crate) async fn run(
        &self,
        options: RunOptions<'_>,
        stop_requested: impl Future<Output = ()>,
    ) -> Result<Recorded, Failure> {
        let config = &self.image.config;
        let workload = options.overrides.workload(config)?;
        let network = if options.has_host_network {
            Network::Host
        } else {
            Network::Loopback
        };
        let signal = config.stop_signal.as_deref();
        let signal = signal.filter(|signal| !signal.is_empty()).unwrap_or(KILL);
        let folder = self.folder.path();
        let mut run = self
            .mounted
            .start(folder, &workload, network, options.mounts)?;
        let end = run.container.wait(stop_requested, signal).await?;
        let files = self.mounted.files(run.end());
        Ok(self.recorded(files, end))
    }

    fn recorded(&self, files: Vec<(usize, Vec<u8>)>, end: End) -> Recorded {
        let (mut lines, mut unnamed) = (Vec::new(), Vec::new());
        for (layer, path) in files {
            match String::from_utf8(path) {
                Ok(path) => lines.push(Line::new(path, self.image.manifest.digest.clone(), layer)),
                Err(error) => unnamed.push(error.into_bytes()),
            }
        }
        let exit_code = match end {
            End::Exited(status) => status.code(),
            End::Stopped => None,
        };
        let report = RunReport {
            platform: Platform::of_this_machine(),
            exit_code,
            files: lines.len(),
        };
        Recorded {
            lines,
            unnamed,
            report,
        }
    }
}

impl ConvertedImage {
    /// Converts the image with this manifest into a layout below `beside`.
    async fn make(
        conversion: &ImageConversion<'_>,
        manifest: &Manifest,
        beside: &Path,
        counter: &ProgressBar,
    ) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(beside)
            .map_err(Failure::when("temporary folder cannot be created"))?;
        let convert = convert::Config {
            format: Format::Estargz,
            setting: Setting::Fast,
            level: None,
            ..conversion.convert.clone()
        };
        let target = Location::Layout(LayoutImage {
            dir: folder.path().to_owned(),
            repository: None,
            tag: Some("1".parse().map_err(Failure::from_error)?),
            digest: None,
        });
        let fast = ImageConversion {
            source: &conversion.source.at(&manifest.digest),
            target: &target,
            convert: &convert,
            store_location: None,
            platforms: &[],
            oci: false,
            reuse: false,
            ..*conversion
        };
        let mut images = fast.run(Vec::new(), counter).await?.images;
        let image = images
            .pop()
            .ok_or_else(|| Failure::new("no image that can be run"))?;
        Ok(Self {
            folder,
            layers: image.layers,
            manifest: image.digest,
        })
    }

    /// Returns the layers with the digests of their TOCs.
    fn layers(&self) -> Result<Vec<Layer>, Failure> {
        let layer = |layer: &LayerReport| {
            let toc_digest = layer.toc_digest.as_deref().map(str::parse).transpose();
            Ok(Layer {
                digest: layer.digest.clone(),
                toc_digest: toc_digest.map_err(Failure::from_error)?,
            })
        };
        self.layers.iter().map(layer).collect()
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit_code {
            Some(0) => write!(f, "the workload ended by itself"),
            Some(code) => write!(f, "the workload failed with the exit code {code}"),
            None => write!(f, "the workload was stopped"),
        }
    }
}
