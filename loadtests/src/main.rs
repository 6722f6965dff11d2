//! Measures Starlift against its peers, side by side in one run. Speed is a ratio here, never an
//! assertion.
//!
//! Each scenario has a file. `images` makes the measured images, `harness` runs processes,
//! `invariants` checks the results meanwhile, `report` and `plot` present them.

mod agent;
mod bucket;
mod codecs;
mod containerd;
mod contest;
mod convert;
mod docker_registry;
mod figures;
mod guarded;
mod h2load;
mod harness;
mod images;
mod invariants;
mod members;
mod memory;
mod node;
mod plot;
mod report;
mod scale;
mod serve;
mod server;
mod soak;
mod start;
#[expect(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "modules of the tests, which may panic, used here in part"
)]
#[path = "../../tests/it/support"]
mod support {
    pub(crate) mod cache;
    pub(crate) mod eventually;
    pub(crate) mod image;
    pub(crate) mod link;
    pub(crate) mod mounts;
    pub(crate) mod s3;
    pub(crate) mod stargz_grpc;
}
mod wrk;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Load tests: each prints a report in Markdown
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
    /// Keep the report, and its plots as SVG, in this folder
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// `starlift convert` against `ctr-remote image convert --estargz --oci`; needs root,
    /// containerd and skopeo
    Convert(convert::Arguments),
    /// Peak memory of `starlift convert` for a layer of 4 GiB
    Memory(memory::Arguments),
    /// Speed and size of every codec considered; needs Go
    Codecs(codecs::Arguments),
    /// `starlift serve`, warm, against nginx and docker-registry; needs both, wrk, curl and skopeo
    Serve(contest::Arguments),
    /// `starlift serve` over a bucket, against nginx with a proxy cache and docker-registry's redirects;
    /// needs the tools of `serve`, and `moto_server`
    Bucket(contest::Arguments),
    /// `starlift agent` against ext4 and the reference snapshotter; needs root, containerd,
    /// `ctr-remote`, runc and Go
    Agent(agent::Arguments),
    /// Real images started lazily, with and without a profile, against a plain pull; needs the
    /// tools of `agent`, and buildah
    Start(start::Arguments),
    /// The same images converted with several chunk sizes: starts, bytes, requests, processor time;
    /// needs the tools of `start`, and Go
    Chunks(start::ChunksArguments),
    /// Replicas behind one address: costs of conversions, pulls and ranges, and a model of many nodes
    /// that is checked against them; needs nginx
    Scale(scale::Arguments),
    /// Minutes of load, abuse and faults on three replicas over one bucket; asserts that no byte is
    /// wrong and nothing leaks
    Soak(soak::Arguments),
}

fn main() -> anyhow::Result<()> {
    let Arguments { scenario, out } = Arguments::parse();
    let report = match scenario {
        Scenario::Convert(arguments) => convert::measure_all(&arguments),
        Scenario::Memory(arguments) => memory::measure_all(&arguments),
        Scenario::Codecs(arguments) => codecs::measure_all(&arguments),
        Scenario::Serve(arguments) => serve::measure_all(&arguments),
        Scenario::Bucket(arguments) => bucket::measure_all(&arguments),
        Scenario::Agent(arguments) => agent::measure_all(&arguments),
        Scenario::Start(arguments) => start::measure_all(&arguments),
        Scenario::Chunks(arguments) => start::measure_chunks(&arguments),
        Scenario::Scale(arguments) => scale::measure_all(&arguments),
        Scenario::Soak(arguments) => soak::measure_all(&arguments),
    }?;
    report.finish(out.as_deref())
}
