//! `starlift convert`: converts an image or a single layer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tempfile::TempDir;

use super::progress::Bar;
use super::registry_args::RegistryArgs;
use super::{Global, layer, output};
use crate::config::{Config, Layer};
use crate::convert::Converter;
use crate::failure::Failure;
use crate::inspect::report::ImageReport;
use crate::oci::{Digest, Manifest, Platform};
use crate::recording::record;
use crate::store::{self, ImageRecord, Store};
use crate::transport::{Destination, Endpoint, ImageBundle, ImageReader, Location, external_toc};

/// Interval between updates of the progress bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Convert an image to eStargz, from and to a registry, a layout or an archive
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image: `HOST/repository:tag[@digest]`, `oci:DIR[:tag]` or `docker-archive:FILE`; with
    /// --layer a file or `-`
    source: String,
    /// The place of the converted image, in the same forms
    destination: String,
    /// Convert a single layer: a tar, plain or compressed with gzip or zstd
    #[arg(long)]
    layer: bool,
    /// Put the files of this record first; `ctr-remote image optimize --record-out` writes the same
    /// format
    #[arg(long, value_name = "FILE", conflicts_with = "keep_diff_id",
        aliases = ["estargz-record-in", "zstdchunked-record-in"])]
    record_in: Option<PathBuf>,
    #[command(flatten)]
    image: ImageArgs,
}

/// Flags of every command that converts an image.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ImageArgs {
    /// Print the result as JSON, and nothing else
    #[arg(long)]
    pub(super) json: bool,
    /// Keep converted layers in this store, a folder or a bucket's URL, where the next conversion
    /// finds them
    #[arg(long, value_name = "URL-or-DIR")]
    store: Option<String>,
    /// Write OCI media types instead of Docker's; layouts and archives always have OCI's
    #[arg(long)]
    oci: bool,
    /// Take only this platform of a multi-platform image (repeatable, or separated by commas)
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    pub(super) platform: Vec<Platform>,
    /// Convert every platform of a multi-platform image
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Keep the order of files in layers that are already eStargz
    #[arg(long)]
    reuse: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
}

/// Flags for the format of the layers. The flag names of the reference's tools work too.
#[derive(Debug, Default, clap::Args)]
struct FormatArgs {
    /// Write eStargz layers (the default)
    #[arg(long)]
    estargz: bool,
    /// Write zstd:chunked layers
    #[arg(long, conflicts_with_all = ["estargz", "external_toc"])]
    zstdchunked: bool,
    /// Put each TOC next to its layer instead of into it, so that diff-ids do not change
    #[arg(long, alias = "estargz-external-toc")]
    external_toc: bool,
    /// Keep diff-ids; the same as --external-toc, which always keeps them
    #[arg(long, alias = "estargz-keep-diff-id")]
    keep_diff_id: bool,
    /// Compression level: 1 to 12 for gzip, 1 to 19 for zstd
    #[arg(long, value_name = "N", aliases = ["estargz-compression-level", "zstdchunked-compression-level"])]
    level: Option<u8>,
    /// Compress faster, for a few percent more size
    #[arg(long)]
    fast: bool,
    /// Most bytes of a file in one separately fetched chunk: 4MiB
    #[arg(long, value_name = "SIZE", aliases = ["estargz-chunk-size", "zstdchunked-chunk-size"])]
    chunk_size: Option<String>,
    /// Let files smaller than this share a compressed member
    #[arg(long, value_name = "SIZE", alias = "estargz-min-chunk-size")]
    min_chunk_size: Option<String>,
    /// The place of the added entries: source-first (the default) or classic
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<String>,
}

/// One conversion of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) source: &'a Location,
    pub(super) target: &'a Location,
    pub(super) args: &'a ImageArgs,
    pub(super) config: &'a Config,
}

impl ImageArgs {
    /// Returns the flags without those for the conversion itself.
    pub(super) fn bare(&self) -> Self {
        Self {
            json: self.json,
            registry: self.registry,
            ..Self::default()
        }
    }

    /// Whether the flags require streams that are the source's.
    pub(super) fn keeps_diff_ids(&self) -> bool {
        self.format.external_toc || self.format.keep_diff_id
    }

    /// Returns the flags as layers of the configuration's `[convert]`.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let format = &self.format;
        let mut layers = Vec::new();
        let mut set = |flag: &str, key: &str, value: toml::Value| {
            layers.push(Layer::flag(flag, &["convert", key], value))
        };
        if format.estargz {
            set("--estargz", "format", "estargz".into());
        }
        if format.zstdchunked {
            set("--zstdchunked", "format", "zstdchunked".into());
        }
        if format.external_toc || format.keep_diff_id {
            set("--external-toc", "format", "estargz-external-toc".into());
        }
        if let Some(level) = format.level {
            set("--level", "level", i64::from(level).into());
        }
        if format.fast {
            set("--fast", "setting", "fast".into());
        }
        for (flag, key, value) in [
            ("--chunk-size", "chunk_size", &format.chunk_size),
            ("--min-chunk-size", "min_chunk_size", &format.min_chunk_size),
            ("--layout", "layout", &format.layout),
        ] {
            if let Some(value) = value {
                set(flag, key, value.as_str().into());
            }
        }
        if !self.platform.is_empty() {
            let platforms = self
                .platform
                .iter()
                .map(|platform| toml::Value::from(platform.to_string()))
                .collect();
            set("--platform", "platforms", toml::Value::Array(platforms));
        }
        if self.all_platforms {
            set("--all-platforms", "all_platforms", true.into());
        }
        layers
    }
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = global.load(args.image.layers())?.config;
    let recorded = args
        .record_in
        .as_deref()
        .map(record::read)
        .transpose()?
        .unwrap_or_default();
    if args.layer {
        let prioritized = record::of_layer(recorded);
        layer::convert(
            &args.source,
            &args.destination,
            &config.convert,
            prioritized,
            args.image.json,
        )
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let source: Location = args.source.parse().map_err(Failure::from_error)?;
    let target: Location = args.destination.parse().map_err(Failure::from_error)?;
    let made = image(
        Job {
            source: &source,
            target: &target,
            args: &args.image,
            config: &config,
        },
        recorded,
    )
    .await?;
    if args.image.json {
        output::print_json(&made)?
    } else {
        made.print(&args.destination)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Converts an image, with the files of `recorded` first, and writes it to its target.
pub(super) async fn image(
    job: Job<'_>,
    recorded: Vec<record::Line>,
) -> Result<ConversionReport, Failure> {
    let Job {
        source,
        target,
        args,
        config,
    } = job;
    let endpoint = Endpoint::open(&config.upstreams, source, args.registry.plain_http)?;
    let scratch =
        ScratchStore::open(config, args.store.as_deref(), Destination::folder(target)).await?;
    let source_manifest = endpoint.manifest().await?;
    let priorities = record::of_image(recorded, &endpoint, &source_manifest).await?;
    let priorities = priorities.keeping_lazy_layers(args.reuse);
    let converter = Converter::prioritizing(&config.convert, scratch.store.clone(), priorities);
    let converter = converter.map_err(Failure::from_error)?;
    let record = convert(&converter, &endpoint, &source_manifest, args.json).await?;

    let reader = ImageReader {
        store: Some(&scratch.store),
        endpoint: &endpoint,
    };
    let converted = reader
        .manifest(&record.converted, &record.media_type)
        .await?;
    let packed = ImageBundle::pack(reader, converted).await?;
    let missing = packed.missing.len();
    let mut bundle = packed.without_missing()?;
    if !args.platform.is_empty() {
        bundle = bundle.select(&args.platform)?;
    } else if Destination::takes_one_image(target) {
        bundle = bundle.select(&[Platform::of_this_machine()])?;
    }
    if args.oci || Destination::is_layout(target) {
        bundle = bundle.translated_to_oci()?;
    }
    let tocs = converter
        .toc_image(&endpoint.source, &endpoint.repository, &record)
        .await;
    let tocs = tocs.map_err(Failure::from_error)?;
    let tocs = external_toc::of_bundle(tocs.as_ref(), reader, &bundle).await?;
    let destination = Destination::open(&config.upstreams, target, args.registry.plain_http)?;
    let bar = Bar::new(
        "writing",
        bundle.blobs.iter().map(|blob| blob.size).sum(),
        args.json,
    );
    bundle
        .deliver(reader, destination, tocs.as_ref(), bar.counter())
        .await?;
    bar.finish();
    if missing > 0 {
        output::say(&format!(
            "left out because the source does not have them: {missing} images"
        ));
    }
    Ok(ConversionReport {
        source: source_manifest.digest.clone(),
        generation: converter.generation().0.clone(),
        images: ImageReport::of_bundle(reader, &bundle).await?,
        converted: bundle.root.digest.clone(),
        media_type: bundle.root.media_type.clone(),
        passed_through: record.passed_through,
    })
}

/// Converts an image and shows the progress.
async fn convert(
    converter: &Converter,
    endpoint: &Endpoint,
    source_manifest: &Manifest,
    quiet: bool,
) -> Result<ImageRecord, Failure> {
    let bar = Bar::new("converting", 0, quiet);
    let conversion = converter.convert(&endpoint.source, &endpoint.repository, source_manifest);
    tokio::pin!(conversion);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let outcome = loop {
        tokio::select! {
            outcome = &mut conversion => break outcome,
            _ = ticks.tick() => show(&bar, converter),
        }
    };
    bar.finish();
    outcome.map_err(|error| Failure::when(format!("converting {}", source_manifest.digest))(&error))
}

/// Shows the progress of the layers that are being converted.
fn show(bar: &Bar, converter: &Converter) {
    let conversions = converter.status();
    let layers = conversions.iter().flat_map(|conversion| &conversion.layers);
    let (done, total) = layers.fold((0, 0), |(done, total), layer| {
        (done + layer.done, total + layer.total)
    });
    bar.set(done, total);
}

/// A temporary store for one conversion, or the store that the command line names.
struct ScratchStore {
    store: Store,
    /// Removed when dropped.
    _temporary: Option<TempDir>,
}

impl ScratchStore {
    async fn open(
        config: &Config,
        named: Option<&str>,
        folder: Option<&Path>,
    ) -> Result<Self, Failure> {
        let at = |location: &str| store::Config {
            location: location.to_owned(),
            ..config.store.clone()
        };
        if let Some(location) = named {
            let store = Store::open(&at(location))
                .await
                .map_err(Failure::from_error)?;
            return Ok(Self {
                store,
                _temporary: None,
            });
        }
        let temporary = temporary_folder(folder)?;
        let location = temporary.path().to_str();
        let location =
            location.ok_or_else(|| Failure::new("path of the temporary folder is not UTF-8"))?;
        let store = Store::scratch(&at(location)).map_err(Failure::from_error)?;
        Ok(Self {
            store,
            _temporary: Some(temporary),
        })
    }
}

/// Creates a temporary folder, next to the destination if that is on this machine, because the file
/// system of the destination has the space.
fn temporary_folder(beside: Option<&Path>) -> Result<TempDir, Failure> {
    let builder = &mut tempfile::Builder::new();
    let builder = builder.prefix(".starlift-");
    let folder = match beside {
        Some(folder) if folder.as_os_str().is_empty() => builder.tempdir_in("."),
        Some(folder) => std::fs::create_dir_all(folder).and_then(|()| builder.tempdir_in(folder)),
        None => builder.tempdir(),
    };
    folder.map_err(Failure::when("temporary folder cannot be created"))
}

/// The result of a conversion.
#[derive(Debug, serde::Serialize)]
pub(super) struct ConversionReport {
    source: Digest,
    converted: Digest,
    media_type: String,
    generation: String,
    pub(super) images: Vec<ImageReport>,
    passed_through: Vec<store::records::PassedThrough>,
}

impl ConversionReport {
    pub(super) fn print(&self, destination: &str) -> Result<(), Failure> {
        for passed in &self.passed_through {
            output::say(&format!(
                "{} passed through: {}",
                passed.digest, passed.reason
            ));
        }
        output::say(&format!("{destination} was converted from {}", self.source));
        output::print(&format!("{}\n", self.converted))
    }
}
