//! Compares lazy mounts with the image that containerd unpacks onto ext4, and with the reference
//! snapshotter, which mounts lazily too.

mod containers;
mod memory;
mod pull;
mod reads;
mod reference;
mod start;
mod sweep;

use std::path::PathBuf;

use crate::harness::run;
use crate::node::reference_of_today;
use crate::report::Report;

/// The reference snapshotter's name in containerd and in the tables.
const REFERENCE: &str = "reference";
/// The name of Starlift's agent.
const LAZY: &str = "lazy";
/// The name of an agent whose layers are mounted as EROFS.
const EROFS: &str = "lazy-erofs";
/// The name of another build of the agent, for comparison.
const BEFORE: &str = "before";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The measurements to run.
    #[arg(value_enum, default_values = ["containers", "reads", "memory", "start", "pull", "reference", "sweep"])]
    parts: Vec<Part>,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Another executable of the agent, which `containers` measures beside the first.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Rounds. Every contestant runs once in each round.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The numbers of files in the layers whose memory is measured.
    #[arg(long, value_delimiter = ',', default_values = ["100000", "500000"])]
    files: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Containers,
    Reads,
    Memory,
    Start,
    Pull,
    Reference,
    Sweep,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin(
        "agent",
        "Lazy mounts, against ext4 and the reference snapshotter",
    )?;
    report.note(format!(
        "{} rounds, alternating contestants; medians (least–most)",
        arguments.rounds
    ));
    let of_today = reference_of_today();
    report.note(format!(
        "containerd: {}; the reference: {}",
        run("containerd --version")?.trim(),
        of_today.map_or("Debian's", |_| "its current version")
    ));
    for part in &arguments.parts {
        match part {
            Part::Containers => containers::measure(arguments, &mut report)?,
            Part::Reads => reads::measure(arguments, &mut report)?,
            Part::Memory => memory::measure(arguments, &mut report)?,
            Part::Start => start::measure(arguments, &mut report)?,
            Part::Pull => pull::measure(arguments, &mut report)?,
            Part::Reference => reference::measure(arguments, &mut report)?,
            Part::Sweep => sweep::measure(arguments, &mut report)?,
        }
    }
    Ok(report)
}
