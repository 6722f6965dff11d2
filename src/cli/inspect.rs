//! `starlift inspect`: shows the parts of an image or a layer. Reads manifests, footers and TOCs,
//! but no layer.

use std::path::Path;
use std::process::ExitCode;

use bytesize::ByteSize;

use super::registry_args::RegistryArgs;
use super::table::{Table, printable};
use super::{Global, output};
use crate::failure::Failure;
use crate::inspect::blob::Blob;
use crate::inspect::open::OpenImage;
use crate::inspect::profiles::ImageProfiles;
use crate::inspect::provenance::ImageStatements;
use crate::inspect::report::{FileReport, LayerReport, Report, TocReport};
use crate::oci::Platform;

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
    /// Show the signed statements on the image; `verify --provenance-key` verifies them
    #[arg(long, conflicts_with_all = ["toc", "profile"])]
    provenance: bool,
    /// Only this platform of a multi-platform image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    if Path::new(&args.what).is_file() {
        if args.profile || args.provenance {
            return Err(Failure::new(
                "only an image has a profile and statements, not the file of a layer",
            ));
        }
        file(args).await?;
    } else {
        image(args, global).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn file(args: &Args) -> Result<(), Failure> {
    let blob = Blob::open(Path::new(&args.what))?;
    let index = blob.index().await?;
    if args.toc {
        let toc = index
            .toc
            .ok_or_else(|| Failure::new(format!("{} holds no TOC", args.what)))?;
        return output::print_bytes(toc.json());
    }
    let report = FileReport::of(&blob, index)?;
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

async fn image(args: &Args, global: &Global) -> Result<(), Failure> {
    let config = global.load(Vec::new())?.config;
    let registries = args.registry.registries(&config);
    let image = OpenImage::open(registries, &args.what, args.platform.as_ref()).await?;
    if args.toc {
        return output::print_bytes(&image.toc_of_layer(args.layer).await?);
    }
    if args.profile {
        return print_profiles(&image.profiles().await?, args.json);
    }
    if args.provenance {
        return print_statements(&image.statements().await?, args.json);
    }
    let report = image.report().await?;
    for (digest, failure) in &report.broken {
        output::say(&format!("{digest}: {failure}"));
    }
    if report.missing > 0 {
        output::say(&format!(
            "not in the source: {} images of the index",
            report.missing
        ));
    }
    if args.json {
        output::print_json(&report)
    } else {
        output::print(&tables(&report, &args.what))
    }
}

fn print_profiles(images: &[ImageProfiles], json: bool) -> Result<(), Failure> {
    if json {
        return output::print_json(&images);
    }
    for ImageProfiles { image, profiles } in images {
        output::print(&format!("{image}\n"))?;
        if profiles.is_empty() {
            output::print("  no profile refers to it\n")?;
        }
        for profile in profiles {
            output::print(&super::profiles::text(profile))?;
        }
    }
    Ok(())
}

fn print_statements(images: &[ImageStatements], json: bool) -> Result<(), Failure> {
    if json {
        return output::print_json(&images);
    }
    let mut text = String::new();
    for ImageStatements { image, statements } in images {
        text.push_str(&format!("{image}\n"));
        if statements.is_empty() {
            text.push_str("  no signed statement refers to it\n");
        }
        for statement in statements {
            text.push_str(&format!("  statement   {}\n", statement.artifact));
            if let Some(failure) = &statement.failure {
                text.push_str(&format!("  not read: {}\n", printable(failure)));
            }
            if let (Some(source), Some(generation)) = (&statement.source, &statement.generation) {
                text.push_str(&format!("  source      {source}\n"));
                text.push_str(&format!("  generation  {}\n", printable(generation)));
            }
            for key in &statement.keys {
                text.push_str(&format!(
                    "  key         {} (not verified)\n",
                    printable(key)
                ));
            }
        }
    }
    output::print(&text)
}

fn tables(report: &Report, name: &str) -> String {
    let mut text = format!("{name}\n{}  {}\n", report.digest, report.media_type);
    for image in &report.images {
        let platform = image.platform.as_deref().unwrap_or("no platform");
        text.push_str(&format!("\n{platform}  {}\n", image.digest));
        for (key, value) in &image.annotations {
            text.push_str(&format!("  {key}={}\n", value.as_str().unwrap_or("?")));
        }
        text.push_str(&layers(&image.layers).to_string());
    }
    text
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
