//! `starlift optimize`: runs an image's workload on lazily mounted layers, records the files that
//! it reads, and writes a converted image whose layers have those files first.
//!
//! ```text
//! SRC ▶ temporary layout ▶ lazy mounts ▶ overlay ▶ runc ▶ files in order ─┐
//!                                        --record-in ─────────────────────┼▶ SRC, converted ▶ DST
//!                                                           --record-out ◀┘
//! ```

mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use super::convert::{self, ImageArgs};
use super::progress::Bar;
use super::{Global, on_a_runtime, output, set_huge_pages};
use crate::conversion::record::{self, Line};
use crate::conversion::{ConversionReport, ImageConversion};
use crate::failure::Failure;
use crate::recording::{LazyImage, Recorded, RunOptions, RunReport, container, mounts};
use crate::signals::{interrupt, interruptible, termination};
use crate::transport::Location;
use workload::{Until, WorkloadArgs};

/// Run an image to see which files it reads, and convert it with those files first
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image: `HOST/repository:tag[@digest]`, `oci:DIR[:tag]` or `docker-archive:FILE`
    source: String,
    /// The place of the converted image, in the same forms
    destination: String,
    /// Write the files that were read, in order, for --record-in
    #[arg(long, value_name = "FILE", conflicts_with = "record_in")]
    record_out: Option<PathBuf>,
    /// Run nothing, and take the files from this record
    #[arg(long, value_name = "FILE")]
    record_in: Option<PathBuf>,
    /// Attach a profile of the files that were read to DST, as a referrer, so that every node can
    /// prefetch them, whatever the order of files in the layers
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    image: ImageArgs,
}

/// The result: the converted image, and the outcome of the workload.
#[derive(Debug, serde::Serialize)]
struct Optimized {
    #[serde(flatten)]
    report: ConversionReport,
    /// `None` if a record was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<RunReport>,
}

/// Runs the command on its own runtime. If layers have to be mounted, its threads have their own
/// mount namespace.
pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    if args.image.keeps_diff_ids() {
        return Err(Failure::new(
            "another order of files needs other diff-ids: --external-toc keeps them",
        ));
    }
    if args.record_in.is_none() {
        container::check()?;
        mounts::keep_to_ourselves()?;
        // The workload inherits the setting.
        set_huge_pages(true);
    }
    on_a_runtime(optimize(args, global))
}

async fn optimize(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = global.load(args.image.layers())?.config;
    let source: Location = args.source.parse().map_err(Failure::from_error)?;
    let target: Location = args.destination.parse().map_err(Failure::from_error)?;
    if args.profile && matches!(target, Location::Archive(_)) {
        return Err(Failure::new(
            "--profile needs a registry or a layout: an archive holds only an image",
        ));
    }
    let conversion = args.image.conversion(&source, &target, &config);
    let (lines, workload) = match &args.record_in {
        Some(file) => (record::read(file)?, None),
        None => {
            let Recorded { lines, report, .. } =
                Box::pin(run_once(&conversion, &args.workload, args.image.json)).await?;
            (lines, Some(report))
        }
    };
    if let Some(file) = &args.record_out {
        record::write(file, &lines)?;
    }
    print_summary(&lines, workload.as_ref());
    let quiet = args.image.json;
    let converted = Box::pin(convert::image(conversion, lines.clone(), quiet));
    let report = interruptible(converted).await?;
    if args.profile {
        let attached = interruptible(conversion.attach_profiles(&report, &lines)).await?;
        output::say(&format!(
            "{attached} profiles attached to {}",
            args.destination
        ));
    }
    if args.image.json {
        output::print_json(&Optimized { report, workload })?;
    } else {
        convert::print(&report, &args.destination)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the image for this machine's platform. No mount and no process outlives the call.
async fn run_once(
    conversion: &ImageConversion<'_>,
    args: &WorkloadArgs,
    quiet: bool,
) -> Result<Recorded, Failure> {
    let bar = Bar::new("converting", 0, quiet);
    let mounted = Box::pin(LazyImage::mount(conversion, bar.counter()));
    let image = interruptible(mounted).await?;
    bar.finish();
    let overrides = args.overrides();
    let options = RunOptions {
        overrides: &overrides,
        mounts: &args.mount,
        has_host_network: args.net_host,
    };
    let recorded = match args.until() {
        Until::After(period) => {
            interruptible(image.run(options, tokio::time::sleep(period))).await?
        }
        Until::Interrupt => {
            output::say("the workload runs until it ends or Ctrl-C is pressed");
            tokio::select! {
                recorded = image.run(options, interrupt()) => recorded?,
                failure = termination() => return Err(failure),
            }
        }
    };
    for path in &recorded.unnamed {
        let path = String::from_utf8_lossy(path);
        output::say(&format!(
            "{path:?} was read but is left out: its name is not UTF-8"
        ));
    }
    Ok(recorded)
}

fn print_summary(lines: &[Line], workload: Option<&RunReport>) {
    if let Some(workload) = workload {
        output::say(&format!(
            "{workload}; it read {} files of the image",
            lines.len()
        ));
    }
    if lines.is_empty() {
        output::say("no files are recorded: the converted image has the usual order");
    }
}
