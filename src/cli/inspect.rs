//! `starlift inspect`: shows the parts of an image or a layer. Reads manifests, footers and TOCs,
//! but no layer.

use std::path::Path;
use std::process::ExitCode;

use bytesize::ByteSize;
use serde::Serialize;

use super::profiles::{self, ProfileReport};
use super::registry_args::RegistryArgs;
use super::table::Table;
use super::{Global, output};
use crate::failure::Failure;
use crate::inspect::blob::{Blob, BlobIndex};
use crate::inspect::report::{ImageReport, Kind, LayerReport, TocReport};
use crate::oci::{Digest, Platform};
use crate::transport::{Endpoint, ImageBundle, ImageReader, Location};

/// Show layers, kinds, TOCs and annotations of an image, or of a layer's file
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// `HOST/repository:tag[@digest]`, `oci:DIR[:tag]`, `docker-archive:FILE`, or the file of a
    /// layer
    what: String,
    /// Print JSON
    #[arg(long, conflicts_with = "toc")]
    json: bool,
    /// Print the exact bytes of the TOC of a layer's file, or of the image's layer --layer
    #[arg(long)]
    toc: bool,
    /// The layer whose TOC to print, counted from 0 at the bottom
    #[arg(long, value_name = "N", requires = "toc")]
    layer: Option<usize>,
    /// Show the files that containers of the image read first, how soon they are read, and the
    /// source of this knowledge
    #[arg(long, conflicts_with = "toc")]
    profile: bool,
    /// Only this platform of a multi-platform image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    if Path::new(&args.what).is_file() {
        if args.profile {
            return Err(Failure::new(
                "only an image has a profile, not the file of a layer",
            ));
        }
        file(args).await?;
    } else {
        image(args, global).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The report on a layer in a file.
#[derive(Debug, Serialize)]
struct FileReport {
    size: u64,
    kind: Kind,
    toc: Option<TocReport>,
}

async fn file(args: &Args) -> Result<(), Failure> {
    let blob = Blob::open(Path::new(&args.what))?;
    let BlobIndex { form, toc } = blob.index().await?;
    if args.toc {
        let toc = toc.ok_or_else(|| Failure::new(format!("{} holds no TOC", args.what)))?;
        return output::print_bytes(toc.json());
    }
    let toc = toc.map(|toc| TocReport::of(toc, None, None)).transpose()?;
    let report = FileReport {
        size: blob.size(),
        kind: Kind::of_form(form),
        toc,
    };
    if args.json {
        return output::print_json(&report);
    }
    let mut table = Table::new();
    table.row(["kind", report.kind.name()]);
    table.row(["size", &shown(report.size)]);
    if let Some(toc) = &report.toc {
        table.row(["TOC digest", &toc.digest]);
        table.row(["TOC size", &shown(toc.json_bytes as u64)]);
        table.row(["entries", &toc.entries.to_string()]);
        table.row(["chunks", &toc.chunks.to_string()]);
    }
    output::print(&table.to_string())
}

/// The report on an image or a multi-platform image.
#[derive(Debug, Serialize)]
struct Report {
    digest: Digest,
    media_type: String,
    images: Vec<ImageReport>,
}

async fn image(args: &Args, global: &Global) -> Result<(), Failure> {
    let config = global.load(Vec::new())?.config;
    let location: Location = args.what.parse().map_err(Failure::from_error)?;
    let endpoint = Endpoint::open(&config.upstreams, &location, args.registry.plain_http)?;
    let reader = ImageReader {
        store: None,
        endpoint: &endpoint,
    };
    let root = endpoint.manifest().await?;
    let (digest, media_type) = (root.digest.clone(), root.media_type.clone());
    let mut bundle = ImageBundle::pack(reader, root).await?;
    if let Some(platform) = &args.platform {
        bundle = bundle.select(std::slice::from_ref(platform))?;
    }
    if args.toc {
        return output::print_bytes(&toc_of_layer(args, &endpoint, &bundle).await?);
    }
    if args.profile {
        return profiles(args, &endpoint, &bundle).await;
    }
    let mut images = Vec::new();
    for manifest in bundle.images() {
        match ImageReport::of_image(reader, manifest).await {
            Ok(image) => images.push(image),
            // One of several platforms may be broken or incomplete.
            Err(failure) if manifest.digest != digest => {
                output::say(&format!("{}: {failure}", manifest.digest))
            }
            Err(failure) => return Err(failure),
        }
    }
    if !bundle.missing.is_empty() {
        output::say(&format!(
            "not in the source: {} images of the index",
            bundle.missing.len()
        ));
    }
    let report = Report {
        digest,
        media_type,
        images,
    };
    if args.json {
        output::print_json(&report)
    } else {
        output::print(&report.tables(&args.what))
    }
}

/// The profiles of one image.
#[derive(Debug, Serialize)]
struct Profiled {
    image: Digest,
    profiles: Vec<ProfileReport>,
}

async fn profiles(args: &Args, endpoint: &Endpoint, bundle: &ImageBundle) -> Result<(), Failure> {
    let mut images = Vec::new();
    for manifest in bundle.images() {
        let profiles = profiles::of_image(endpoint, manifest).await?;
        images.push(Profiled {
            image: manifest.digest.clone(),
            profiles,
        });
    }
    if args.json {
        return output::print_json(&images);
    }
    for Profiled { image, profiles } in &images {
        output::print(&format!("{image}\n"))?;
        if profiles.is_empty() {
            output::print("  no profile refers to it\n")?;
        }
        for profile in profiles {
            output::print(&profile.table())?;
        }
    }
    Ok(())
}

async fn toc_of_layer(
    args: &Args,
    endpoint: &Endpoint,
    bundle: &ImageBundle,
) -> Result<Vec<u8>, Failure> {
    let [manifest] = *bundle.images() else {
        return Err(Failure::new(
            "the image has several platforms: name one with --platform",
        ));
    };
    let image: crate::oci::manifest::ImageManifest = crate::transport::document::parse(manifest)?;
    let number = match (args.layer, image.layers.len()) {
        (Some(number), _) => number,
        (None, 1) => 0,
        (None, count) => {
            return Err(Failure::new(format!(
                "the image has {count} layers: name one with --layer"
            )));
        }
    };
    let layer = image.layers.get(number);
    let layer = layer
        .ok_or_else(|| Failure::new(format!("the image has {} layers", image.layers.len())))?;
    let toc = Blob::Remote { endpoint, layer }.index().await?.toc;
    let toc =
        toc.ok_or_else(|| Failure::new(format!("the layer {} holds no TOC", layer.digest)))?;
    Ok(toc.json().to_vec())
}

impl Report {
    fn tables(&self, name: &str) -> String {
        let mut text = format!("{name}\n{}  {}\n", self.digest, self.media_type);
        for image in &self.images {
            let platform = image.platform.as_deref().unwrap_or("no platform");
            text.push_str(&format!("\n{platform}  {}\n", image.digest));
            for (key, value) in &image.annotations {
                text.push_str(&format!("  {key}={}\n", value.as_str().unwrap_or("?")));
            }
            text.push_str(&layers(&image.layers).to_string());
        }
        text
    }
}

fn layers(layers: &[LayerReport]) -> Table {
    let mut table = Table::new();
    table.row([
        "layer",
        "kind",
        "size",
        "unpacked",
        "entries",
        "chunks",
        "digest",
        "TOC digest",
    ]);
    for (number, layer) in layers.iter().enumerate() {
        let toc = layer.toc.as_ref();
        table.row([
            number.to_string().as_str(),
            layer.kind.name(),
            &shown(layer.size),
            &layer.uncompressed_size.map(shown).unwrap_or_default(),
            &toc.map(|toc| toc.entries.to_string()).unwrap_or_default(),
            &toc.map(|toc| toc.chunks.to_string()).unwrap_or_default(),
            &layer.digest.to_string(),
            &toc.map(toc_column).unwrap_or_default(),
        ]);
    }
    table
}

fn toc_column(toc: &TocReport) -> String {
    let remark = match toc.named_by_manifest {
        Some(true) => "",
        Some(false) => " (the manifest names another)",
        None => " (the manifest names none)",
    };
    format!("{}{remark}", toc.digest)
}

fn shown(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}
