//! Measures Starlift against its peers, side by side in one run. Speed is a ratio here, never an assertion.

mod convert;
mod harness;

use clap::{Parser, Subcommand};

/// Load tests: each prints a table in Markdown.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// `starlift convert` against `ctr-remote image convert --estargz --oci`. Needs root, containerd and skopeo.
    Convert(convert::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().scenario {
        Scenario::Convert(arguments) => convert::run_and_print(&arguments),
    }
}
