//! Lazy mounts against what they replace: an image that containerd unpacked onto ext4; and against the reference
//! snapshotter, which mounts lazily too.

mod containers;
mod memory;
mod reads;
mod start;

use std::path::PathBuf;

use crate::report::Report;

/// The reference snapshotter's name in containerd, and in the tables.
const REFERENCE: &str = "reference";
/// Our agent's.
const LAZY: &str = "lazy";
/// Another build of our agent, to compare with.
const BEFORE: &str = "before";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What is measured.
    #[arg(value_enum, default_values = ["containers", "reads", "memory", "start"])]
    parts: Vec<Part>,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Another executable of the agent, measured beside it in `containers`.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Rounds; in each, every contestant runs once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Files of the layers whose memory is measured.
    #[arg(long, value_delimiter = ',', default_values = ["100000", "500000"])]
    files: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Containers,
    Reads,
    Memory,
    Start,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin(
        "agent",
        "Lazy mounts, against ext4 and the reference snapshotter",
    )?;
    report.note(format!(
        "{} rounds, the contestants by turns; medians (least–most)",
        arguments.rounds
    ));
    for part in &arguments.parts {
        match part {
            Part::Containers => containers::measure(arguments, &mut report)?,
            Part::Reads => reads::measure(arguments, &mut report)?,
            Part::Memory => memory::measure(arguments, &mut report)?,
            Part::Start => start::measure(arguments, &mut report)?,
        }
    }
    Ok(report)
}
