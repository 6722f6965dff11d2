//! Runs the workload once on the image's lazily mounted layers, and returns the files that it read,
//! with their layers.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::workload::{Until, WorkloadArgs};
use crate::agent::observe::Recording;
use crate::cli::convert::{self, Job};
use crate::cli::output;
use crate::config::Config;
use crate::convert::{Format, Setting};
use crate::failure::Failure;
use crate::inspect::report::LayerReport;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Digest, Manifest, Platform, Reference};
use crate::recording::bundle::Network;
use crate::recording::container::End;
use crate::recording::record::Line;
use crate::recording::workload::RunConfig;
use crate::recording::{Layer, MountedLayers};
use crate::signals::{interrupt, interruptible, termination};
use crate::transport::document::{is_index, parse};
use crate::transport::platform::child_of;
use crate::transport::{Endpoint, ImageReader, LayoutImage, Location};

/// The signal that stops a workload, if its image does not name one.
const KILL: &str = "SIGKILL";

/// The outcome of the workload.
#[derive(Debug, Serialize)]
pub(super) struct Observed {
    platform: Platform,
    /// `None` if it was stopped.
    exit_code: Option<i32>,
    files: usize,
}

/// The image that is run.
struct Image {
    manifest: Manifest,
    config: RunConfig,
}

struct ConvertedImage {
    folder: TempDir,
    layers: Vec<LayerReport>,
    manifest: Digest,
}

/// Runs the image for this machine's platform. No mount and no process outlives the call.
pub(super) async fn observe(
    job: Job<'_>,
    args: &WorkloadArgs,
) -> Result<(Vec<Line>, Observed), Failure> {
    let folder = tempfile::Builder::new().prefix("starlift-").tempdir();
    let folder = folder.map_err(Failure::when("temporary folder cannot be created"))?;
    let (image, converted, mounted) = interruptible(async {
        let image = Image::find(job).await?;
        let converted = ConvertedImage::make(job, &image.manifest, folder.path()).await?;
        let layers = converted.layers()?;
        let mounted = MountedLayers::set(
            folder.path(),
            converted.folder.path(),
            &converted.manifest,
            &layers,
        )
        .await?;
        Ok((image, converted, mounted))
    })
    .await?;
    let (end, recording) = perform(&image, &mounted, folder.path(), args).await?;
    let files = mounted.files(recording);
    // The mounted layers are read from the converted image, so that both stay until here.
    drop((mounted, converted));
    let lines: Vec<Line> = files
        .into_iter()
        .filter_map(|(layer, path)| line(&image, layer, path))
        .collect();
    let exit_code = match end {
        End::Exited(status) => status.code(),
        End::Stopped => None,
    };
    let observed = Observed {
        platform: Platform::of_this_machine(),
        exit_code,
        files: lines.len(),
    };
    Ok((lines, observed))
}

/// Returns a line of the record. `None` if the path is not UTF-8, because a record is JSON.
fn line(image: &Image, layer: usize, path: Vec<u8>) -> Option<Line> {
    match String::from_utf8(path) {
        Ok(path) => Some(Line::new(path, image.manifest.digest.clone(), layer)),
        Err(error) => {
            let path = String::from_utf8_lossy(error.as_bytes()).into_owned();
            output::say(&format!(
                "{path:?} was read but is left out: its name is not UTF-8"
            ));
            None
        }
    }
}

async fn perform(
    image: &Image,
    mounted: &MountedLayers,
    folder: &Path,
    args: &WorkloadArgs,
) -> Result<(End, Recording), Failure> {
    let workload = args.workload(&image.config)?;
    let network = if args.net_host {
        Network::Host
    } else {
        Network::Loopback
    };
    let signal = image
        .config
        .stop_signal
        .as_deref()
        .filter(|signal| !signal.is_empty())
        .unwrap_or(KILL);
    let mut run = mounted.start(folder, &workload, network, &args.mount)?;
    let end = match args.until() {
        Until::After(period) => {
            interruptible(run.container.wait(tokio::time::sleep(period), signal)).await
        }
        Until::Interrupt => {
            output::say("the workload runs until it ends or Ctrl-C is pressed");
            tokio::select! {
                end = run.container.wait(interrupt(), signal) => end,
                failure = termination() => Err(failure),
            }
        }
    };
    Ok((end?, run.end()))
}

impl Image {
    async fn find(job: Job<'_>) -> Result<Self, Failure> {
        let platform = Platform::of_this_machine();
        if !job.args.platform.is_empty()
            && !job
                .args
                .platform
                .iter()
                .any(|wanted| wanted.matches(&platform))
        {
            let reason = "only an image for this machine can be run: take another's files from --record-in, or convert";
            return Err(Failure::new(format!(
                "{platform} is not among the platforms: {reason}"
            )));
        }
        let endpoint = Endpoint::open(
            &job.config.upstreams,
            job.source,
            job.args.registry.plain_http,
        )?;
        let mut manifest = endpoint.manifest().await?;
        if is_index(&manifest) {
            let reference = Reference::Digest(child_of(&manifest, &platform)?.digest);
            let child = endpoint
                .source
                .manifest(&endpoint.repository, &reference)
                .await;
            manifest = child.map_err(Failure::when(format!(
                "reading the manifest for {platform}"
            )))?;
        }
        #[derive(Deserialize)]
        struct Configuration {
            #[serde(default)]
            config: Option<RunConfig>,
        }
        let config = parse::<ImageManifest>(&manifest)?.config;
        let bytes = ImageReader {
            store: None,
            endpoint: &endpoint,
        }
        .bytes(&config)
        .await?;
        let config: Configuration = serde_json::from_slice(&bytes).map_err(Failure::when(
            format!("{} is not an image configuration", config.digest),
        ))?;
        Ok(Self {
            manifest,
            config: config.config.unwrap_or_default(),
        })
    }
}

impl ConvertedImage {
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

    /// Converts one image with the fast setting, because its layers are read only once.
    async fn make(job: Job<'_>, manifest: &Manifest, beside: &Path) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(beside)
            .map_err(Failure::when("temporary folder cannot be created"))?;
        let mut config: Config = job.config.clone();
        (
            config.convert.format,
            config.convert.setting,
            config.convert.level,
        ) = (Format::Estargz, Setting::Fast, None);
        let tag = "1".parse().map_err(Failure::from_error)?;
        let target = Location::Layout(LayoutImage {
            dir: folder.path().to_owned(),
            repository: None,
            tag: Some(tag),
            digest: None,
        });
        let source = job.source.at(&manifest.digest);
        let args = job.args.bare();
        let job = Job {
            source: &source,
            target: &target,
            args: &args,
            config: &config,
        };
        let mut images = convert::image(job, Vec::new()).await?.images;
        let image = images
            .pop()
            .ok_or_else(|| Failure::new("no image that can be run"))?;
        Ok(Self {
            folder,
            layers: image.layers,
            manifest: image.digest,
        })
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit_code {
            Some(0) => write!(f, "the workload ended by itself"),
            Some(code) => write!(f, "the workload failed with the exit code {code}"),
            None => write!(f, "the workload was stopped"),
        }
    }
}
