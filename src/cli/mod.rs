//! The command line: a file for each command, and the only place that prints.
//!
//! Exit codes: 0 done; 1 the result is negative (`verify` found a difference, `store check` damage,
//! `doctor` or `agent doctor` a fault, or a conversion requested by `warm` failed); 2 the command failed
//! (usage, input and output, network).

#[cfg(feature = "agent")]
mod agent;
mod config;
mod convert;
#[cfg(feature = "serve")]
mod doctor;
mod inspect;
#[cfg(feature = "agent")]
mod optimize;
mod output;
#[cfg(feature = "predict")]
mod predict;
mod profiles;
mod progress;
mod reference;
mod registry_args;
#[cfg(feature = "agent")]
mod rpull;
#[cfg(feature = "serve")]
mod serve;
#[cfg(any(feature = "serve", feature = "agent"))]
mod service;
mod store;
mod table;
mod verify;
mod warm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::{Config, Layer, Loaded};
use crate::failure::Failure;
use crate::signals::interruptible;

/// The exit code of a command that failed: usage, input and output, network.
const CANNOT: u8 = 2;

/// Makes any container image start before it is downloaded.
#[derive(Debug, clap::Parser)]
#[command(name = "starlift", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
struct Global {
    /// The configuration file [default: ./starlift.toml, else /etc/starlift/starlift.toml, if it
    /// exists]
    #[arg(long, value_name = "FILE", env = "STARLIFT_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// The format of log lines: text or json
    #[arg(long, value_name = "FORMAT", global = true)]
    log: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    #[cfg(feature = "agent")]
    Agent(agent::Args),
    Convert(convert::Args),
    #[cfg(feature = "agent")]
    Optimize(Box<optimize::Args>),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Warm(Box<warm::Args>),
    #[cfg(feature = "serve")]
    Doctor(doctor::Args),
    #[cfg(feature = "agent")]
    Rpull(rpull::Args),
    Store(store::Args),
    Config(config::Args),
    #[cfg(feature = "predict")]
    #[command(hide = true)]
    Predict(predict::Args),
    #[command(hide = true)]
    Reference(reference::Args),
}

impl Global {
    /// Returns the effective configuration with `flags` on top.
    fn load(&self, mut flags: Vec<Layer>) -> Result<Loaded, Failure> {
        flags.extend(
            self.log
                .iter()
                .map(|format| Layer::flag("--log", &["log", "format"], format.as_str())),
        );
        // Other programs may have variables that are not UTF-8. Starlift's names and values are
        // text.
        let environment = std::env::vars_os().filter_map(|(name, value)| both_text(name, value));
        Config::load(self.config.as_deref(), environment, flags).map_err(Failure::from_error)
    }
}

fn both_text(name: OsString, value: OsString) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// Runs the command line of this process, and returns its exit code.
pub fn main() -> ExitCode {
    set_huge_pages(false);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(&cli) {
        Ok(code) => code,
        Err(failure) => {
            output::error_line(&failure.to_string());
            ExitCode::from(CANNOT)
        }
    }
}

/// Sets whether the kernel gives huge pages to this process and to those that it starts. With them
/// conversions are slower, and an agent is larger. If the kernel refuses, all is as it was.
fn set_huge_pages(are_wanted: bool) {
    let _as_it_was = rustix::thread::disable_transparent_huge_pages(!are_wanted);
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let global = &cli.global;
    match &cli.command {
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args, global),
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(args, global),
        Command::Convert(args) => until_interrupted(convert::run(args, global)),
        #[cfg(feature = "agent")]
        Command::Optimize(args) => optimize::run(args, global),
        Command::Inspect(args) => until_interrupted(inspect::run(args, global)),
        Command::Verify(args) => until_interrupted(verify::run(args, global)),
        // Handles signals itself, because they end a repetition without a failure.
        Command::Warm(args) => on_a_runtime(warm::run(args, global)),
        #[cfg(feature = "serve")]
        Command::Doctor(args) => until_interrupted(doctor::run(args, global)),
        #[cfg(feature = "agent")]
        Command::Rpull(args) => on_a_runtime(rpull::run(args, global)).map(|()| ExitCode::SUCCESS),
        Command::Store(args) => until_interrupted(store::run(args, global)),
        Command::Config(args) => config::run(args, global),
        #[cfg(feature = "predict")]
        Command::Predict(args) => predict::run(args),
        Command::Reference(args) => reference::run(args),
    }
}

/// Runs a command on its own runtime. An interrupt drops the command and thus deletes its temporary
/// files.
fn until_interrupted(
    command: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    on_a_runtime(interruptible(command))
}

fn on_a_runtime<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Runtime::new().map_err(Failure::when("threads cannot be started"))?;
    let outcome = runtime.block_on(command);
    // Does not wait for tasks in the background, because nothing uses their results.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
