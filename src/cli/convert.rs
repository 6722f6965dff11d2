//! `starlift convert`: converts an image or a single layer.

use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Bar;
use super::registry_args::RegistryArgs;
use super::table::printable;
use super::{Global, output};
use crate::config::{Config, Layer};
use crate::conversion::layer::{LayerConversion, STANDARD};
use crate::conversion::record::{self, Line};
use crate::conversion::{ConversionReport, ImageConversion};
use crate::failure::Failure;
use crate::oci::Platform;
use crate::transport::Location;

/// Convert an image to eStargz, from and to a registry, a layout or an archive
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image: `HOST/repository:tag[@digest]`, `oci:DIR[:tag]` or `docker-archive:FILE`; with
    /// --layer a file or `-`
    source: String,
    /// The place of the converted image, in the same forms
    destination: String,
    /// Convert a single layer: a tar, plain or compressed with gzip or zstd
    #[arg(long, conflicts_with = "signing_key")]
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
#[derive(Debug, clap::Args)]
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
    /// Sign which source image each converted image was made from, with this private key (PKCS#8,
    /// PEM), and attach the statements
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
}

/// Flags for the format of the layers. The flag names of the reference's tools work too.
#[derive(Debug, clap::Args)]
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
    /// Most bytes of a file in one separately fetched chunk: 256KiB
    #[arg(long, value_name = "SIZE", aliases = ["estargz-chunk-size", "zstdchunked-chunk-size"])]
    chunk_size: Option<String>,
    /// Let files smaller than this share a compressed member
    #[arg(long, value_name = "SIZE", alias = "estargz-min-chunk-size")]
    min_chunk_size: Option<String>,
    /// The place of the added entries: source-first (the default) or classic
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<String>,
}

impl ImageArgs {
    /// Returns the conversion of `source` into `target` that the flags describe.
    pub(super) fn conversion<'a>(
        &'a self,
        source: &'a Location,
        target: &'a Location,
        config: &'a Config,
    ) -> ImageConversion<'a> {
        ImageConversion {
            source,
            target,
            registries: self.registry.registries(config),
            convert: &config.convert,
            store: &config.store,
            store_location: self.store.as_deref(),
            platforms: &self.platform,
            oci: self.oci,
            reuse: self.reuse,
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
        if let Some(key) = &self.signing_key {
            let key = key.to_string_lossy().into_owned();
            set("--signing-key", "signing_key", key.into());
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
        let Args {
            source,
            destination,
            ..
        } = args;
        let conversion = LayerConversion::new(source, destination, &config.convert, prioritized)?;
        layer(conversion, destination, args.image.json).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let source: Location = args.source.parse().map_err(Failure::from_error)?;
    let target: Location = args.destination.parse().map_err(Failure::from_error)?;
    let conversion = args.image.conversion(&source, &target, &config);
    let report = image(conversion, recorded, args.image.json).await?;
    if args.image.json {
        output::print_json(&report)?
    } else {
        print(&report, &args.destination)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Converts an image and shows the progress.
pub(super) async fn image(
    conversion: ImageConversion<'_>,
    recorded: Vec<Line>,
    quiet: bool,
) -> Result<ConversionReport, Failure> {
    let bar = Bar::new("converting", 0, quiet);
    let report = conversion.run(recorded, bar.counter()).await?;
    bar.finish();
    if report.missing > 0 {
        output::say(&format!(
            "left out because the source does not have them: {} images",
            report.missing
        ));
    }
    Ok(report)
}

/// Prints the result for people.
pub(super) fn print(report: &ConversionReport, destination: &str) -> Result<(), Failure> {
    for passed in &report.passed_through {
        output::say(&format!(
            "{} passed through: {}",
            passed.digest, passed.reason
        ));
    }
    output::say(&format!(
        "{destination} was converted from {}",
        report.source
    ));
    if report.statements > 0 {
        output::say(&format!("{} signed statements attached", report.statements));
    }
    output::print(&format!("{}\n", report.converted))
}

/// Converts a layer and prints the result.
async fn layer(conversion: LayerConversion, destination: &str, json: bool) -> Result<(), Failure> {
    let bar = Bar::new("converting", 0, json);
    let counter = bar.counter().clone();
    let report = tokio::task::spawn_blocking(move || conversion.run(&counter)).await;
    bar.finish();
    let report = report.map_err(Failure::from_error)??;
    for path in &report.missing {
        let path = printable(&String::from_utf8_lossy(path));
        output::say(&format!("{path} is not in the layer"));
    }
    let is_stdout_taken = destination == STANDARD;
    if json && !is_stdout_taken {
        return output::print_json(&report);
    }
    output::say(&if json {
        serde_json::to_string(&report).map_err(Failure::from_error)?
    } else {
        format!(
            "{destination}: {} entries, {} chunks, {} bytes",
            report.entries, report.chunks, report.size
        )
    });
    if is_stdout_taken {
        return Ok(());
    }
    output::print(&format!("{}\n", report.digest))
}
