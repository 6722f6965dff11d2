//! `starlift store`: maintains the store of a server.

use std::path::Path;
use std::process::ExitCode;

use bytesize::ByteSize;

use super::{Global, output};
use crate::config::Layer;
use crate::failure::Failure;
use crate::store::{Finding, Store};

/// Maintain the store of a server
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Check(CheckArgs),
}

/// Read everything in the store and report damage; safe while servers use it
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// A folder, or s3://BUCKET[/PREFIX], gs://…, az://… [default: ./starlift-store]
    #[arg(long, value_name = "URL-or-DIR")]
    store: Option<String>,
    /// Remove damaged objects from the store: a server makes them again at the next request
    #[arg(long)]
    repair: bool,
    /// Most bytes a second to read, such as 50MiB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Check(args) => check(args, global).await,
    }
}

async fn check(args: &CheckArgs, global: &Global) -> Result<ExitCode, Failure> {
    let flag = args
        .store
        .iter()
        .map(|store| Layer::flag("--store", &["store", "location"], store.as_str()));
    let config = global.load(flag.collect())?.config.store;
    let is_folder = !config.location.contains("://");
    if is_folder && !Path::new(&config.location).is_dir() {
        // Opening the store would create it.
        return Err(Failure::new(format!("no store in {}", config.location)));
    }
    let store = Store::open(&config).await.map_err(Failure::from_error)?;
    let mut printed = Ok(());
    let mut found = |finding: &Finding| {
        if printed.is_ok() {
            printed = output::print(&line(finding));
        }
    };
    let rate = args.rate.map_or(0, |rate| rate.as_u64());
    let report = store
        .scrub(args.repair, rate, &mut found)
        .await
        .map_err(Failure::from_error)?;
    printed?;
    let (objects, records, size) = (report.objects, report.records, ByteSize::b(report.bytes));
    let damaged = match (report.damaged, args.repair) {
        (0, _) => "nothing is damaged".to_owned(),
        (damaged, true) => format!("{damaged} damaged and removed"),
        (damaged, false) => format!("{damaged} damaged"),
    };
    output::print(&format!(
        "{objects} objects of {size} and {records} records: {damaged}\n"
    ))?;
    Ok(if report.damaged == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(finding: &Finding) -> String {
    match &finding.digest {
        Some(digest) => format!("{}: {} ({digest})\n", finding.key, finding.damage),
        None => format!("{}: {}\n", finding.key, finding.damage),
    }
}
