//! `starlift agent status`: shows the report of a running agent.

use std::process::ExitCode;

use bytesize::ByteSize;

use super::Place;
use crate::agent::daemon::api;
use crate::agent::erofs::Driver;
use crate::agent::layers::report::{LayerReport, Report};
use crate::agent::prefetch::profiles::{ProfileReport, State};
use crate::cli::table::Table;
use crate::cli::{Global, output};
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.place.layers())?;
    let report = api::report(&loaded.config.agent.root)
        .await
        .map_err(Failure::from_error)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let mut lazy = Table::new();
    lazy.row([
        "IMAGE", "LAYER", "SIZE", "FETCHED", "HELD", "DRIVER", "REQUESTS", "ERRORS",
    ]);
    for layer in &report.layers {
        lazy.row([
            layer.image.as_str(),
            short(&layer.digest.to_string()),
            &size(layer.blob_size),
            &size(
                layer.read_bytes
                    + layer.prefetched_bytes
                    + layer.profile_bytes
                    + layer.background_bytes,
            ),
            &held(layer),
            driver(layer),
            &layer.requests.to_string(),
            &layer.errors.to_string(),
        ]);
    }
    let mut text = format!(
        "{} of {} on disk, {} chunks\nDriver of new layers: {}\n\n",
        size(report.cache.bytes),
        size(report.cache_limit),
        report.cache.chunks,
        report.driver
    );
    if let Some(free) = report.free_space.filter(|free| free.shortage() > 0) {
        text += &format!(
            "{} of the disk are free, {} have to be (agent.min_free): nothing is prefetched\n\n",
            size(free.bytes),
            size(free.floor)
        );
    }
    for directory in &report.unmounted {
        text += &format!(
            "{} is not mounted: images are unpacked until it is\n\n",
            directory.display()
        );
    }
    text += &if report.layers.is_empty() {
        "No layer is mounted lazily.\n".to_owned()
    } else {
        lazy.to_string()
    };
    for layer in &report.layers {
        if let Some(damage) = &layer.damage {
            text += &format!(
                "\n{} {} cannot be read: {damage}\n",
                layer.image,
                short(&layer.digest.to_string())
            );
        }
    }
    if !report.profiles.is_empty() {
        let mut profiles = Table::new();
        profiles.row([
            "IMAGE",
            "WORKLOAD",
            "PROFILE OF",
            "FILES",
            "HERE",
            "FETCHED",
        ]);
        for profile in &report.profiles {
            profiles.row(profile_row(profile).each_ref().map(String::as_str));
        }
        text += &format!("\n{profiles}");
    }
    if !report.refusals.is_empty() {
        let mut unpacked = Table::new();
        unpacked.row(["IMAGE", "LAYER", "TIMES", "UNPACKED, BECAUSE"]);
        for refusal in &report.refusals {
            let (digest, times) = (refusal.digest.to_string(), refusal.times.to_string());
            unpacked.row([
                refusal.image.as_str(),
                short(&digest),
                &times,
                &refusal.reason,
            ]);
        }
        text += &format!("\n{unpacked}");
    }
    text
}

fn profile_row(profile: &ProfileReport) -> [String; 6] {
    let (image, workload) = (
        profile.image.clone(),
        String::from(profile.workload.clone()),
    );
    let numbers = match profile.state {
        State::Used => [
            profile.files.to_string(),
            profile.held_files.to_string(),
            size(profile.bytes),
        ],
        State::Asked => ["asked".to_owned(), String::new(), String::new()],
        State::None => ["none".to_owned(), String::new(), String::new()],
    };
    let [files, held, bytes] = numbers;
    [image, workload, profile.server.clone(), files, held, bytes]
}

/// Returns the share of the contents of a layer's files that is on this node.
fn held(layer: &LayerReport) -> String {
    match layer.content {
        Some(content) if content.bytes > 0 => {
            format!("{}%", content.held_bytes * 100 / content.bytes)
        }
        Some(_) => "100%".to_owned(),
        None => "?".to_owned(),
    }
}

/// Returns how a layer's files are shown. `native`: the kernel reads the data file itself.
fn driver(layer: &LayerReport) -> &'static str {
    match layer.driver {
        Driver::Erofs if layer.is_native => "erofs, native",
        driver => driver.as_str(),
    }
}

fn short(digest: &str) -> &str {
    digest.get(.."sha256:".len() + 12).unwrap_or(digest)
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
