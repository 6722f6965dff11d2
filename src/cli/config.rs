//! `starlift config`: prints the effective configuration, or the reference of all keys.

use std::process::ExitCode;

use super::{Global, output};
use crate::failure::Failure;

/// A test compares it with the documentation of the configuration's structs.
const REFERENCE: &str = include_str!("../../docs/CONFIGURATION.md");

/// Print the effective configuration, with the origin of each value
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the reference of all keys instead
    #[arg(long)]
    reference: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    if args.reference {
        output::print(REFERENCE)?;
    } else {
        output::print(&global.load(Vec::new())?.to_toml())?;
    }
    Ok(ExitCode::SUCCESS)
}
