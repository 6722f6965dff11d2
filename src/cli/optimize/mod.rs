//! `starlift optimize`: runs an image's workload on lazily mounted layers, records the files that
//! it reads, and writes a converted image whose layers have those files first.
//!
//! ```text
//! SRC ▶ temporary layout ▶ lazy mounts ▶ overlay ▶ runc ▶ files in order ─┐
//!                                        --record-in ─────────────────────┼▶ SRC, converted ▶ DST
//!                                                           --record-out ◀┘
//! ```

mod observe;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use super::convert::{self, ConversionReport, ImageArgs, Job};
use super::{Global, on_a_runtime, output, profiles};
use crate::failure::Failure;
use crate::recording::record::{self, Line};
use crate::recording::{container, mounts};
use crate::signals::interruptible;
use crate::transport::Location;
use observe::{Observed, observe};
use workload::WorkloadArgs;

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
    made: ConversionReport,
    /// `None` if a record was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Observed>,
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
    }
    on_a_runtime(optimize(args, global))
}

async fn optimize(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = global.load(args.image.layers())?.config;
    let source: Location = args.source.parse().map_err(Failure::from_error)?;
    let target: Location = args.destination.parse().map_err(Failure::from_error)?;
    if args.profile {
        profiles::check(&target)?;
    }
    let job = Job {
        source: &source,
        target: &target,
        args: &args.image,
        config: &config,
    };
    let (recorded, workload) = match &args.record_in {
        Some(file) => (record::read(file)?, None),
        None => observe(job, &args.workload)
            .await
            .map(|(recorded, observed)| (recorded, Some(observed)))?,
    };
    if let Some(file) = &args.record_out {
        record::write(file, &recorded)?;
    }
    print_summary(&recorded, workload.as_ref());
    let made = interruptible(convert::image(job, recorded.clone())).await?;
    if args.profile {
        let attached = interruptible(profiles::attach(job, &made, &recorded)).await?;
        output::say(&format!(
            "{attached} profiles attached to {}",
            args.destination
        ));
    }
    if args.image.json {
        output::print_json(&Optimized { made, workload })?;
    } else {
        made.print(&args.destination)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_summary(recorded: &[Line], workload: Option<&Observed>) {
    if let Some(workload) = workload {
        output::say(&format!(
            "{workload}; it read {} files of the image",
            recorded.len()
        ));
    }
    if recorded.is_empty() {
        output::say("no files are recorded: the converted image has the usual order");
    }
}
