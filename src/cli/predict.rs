//! `starlift predict`: a process that predicts the start of one image, started by a server and by nobody else.

use std::process::ExitCode;
use std::time::Duration;

use crate::failure::Failure;
use crate::predict::{Limits, work};

/// Predict what a container reads first, for the server at the other ends of standard input and output
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
    work(&limits).map_err(Failure::when("nothing is predicted"))?;
    Ok(ExitCode::SUCCESS)
}
