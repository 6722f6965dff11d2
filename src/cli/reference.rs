//! `starlift reference`: completions for shells and manual pages, made from the definition of the
//! command line. For packages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, output};
use crate::failure::Failure;

/// Write completions for shells, or manual pages
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the completions for a shell
    Completions { shell: Shell },
    /// Write a manual page for each command into a folder, which must exist
    Man { folder: PathBuf },
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut cli = Cli::command();
    match &args.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut cli, "starlift", &mut text);
            output::print_bytes(&text)?;
        }
        Command::Man { folder } => clap_mangen::generate_to(cli, folder).map_err(Failure::when(
            format!("manual pages cannot be written to {}", folder.display()),
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
