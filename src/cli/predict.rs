//! `starlift predict`: a process that predicts the start of one image. Only a server starts it.

use std::process::ExitCode;
use std::time::Duration;

use crate::failure::Failure;
use crate::predict::{Limits, work};

/// Predict the files that a container reads first; a server starts this and uses its standard input
/// and output
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Bytes of memory that may be used
    #[arg(long, value_name = "BYTES")]
    memory: u64,
    /// Seconds on a processor that may be used
    #[arg(long, value_name = "SECONDS")]
    processor: u64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let processor = Duration::from_secs(args.processor);
    let limits = Limits {
        memory: args.memory,
        processor,
        ..Limits::default()
    };
    work(&limits).map_err(Failure::when("prediction failed"))?;
    Ok(ExitCode::SUCCESS)
}
