//! One load for two servers in turn, and the table and plot of how they compare.

use std::path::{Path, PathBuf};

use crate::figures::Spread;
use crate::h2load;
use crate::harness::Daemon;
use crate::plot::Bar;
use crate::wrk::{self, Load, Seen};

/// The options of a load test that holds contests.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The name of the image, as the tests' `make-image` knows it.
    #[arg(default_value = "rootfs")]
    pub(crate) image: String,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    pub(crate) starlift: PathBuf,
    /// Rounds. Every server gets every load once in each round.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Seconds of each load.
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u64,
}

/// The columns of [`Contest::rows`].
pub(crate) const HEAD: [&str; 8] = [
    "load",
    "server",
    "requests/s",
    "MB/s",
    "p99 ms",
    "CPU ms/request",
    "requests/s ×",
    "per CPU ×",
];

/// The program that sends a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// wrk, over HTTP/1.
    Http1,
    /// h2load, over HTTP/2 without TLS. It asks for the same range again and again.
    Http2 { streams: usize },
}

/// One load, for a URL of Starlift and a URL of its peer.
pub(crate) struct Contest<'s> {
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    pub(crate) client: Client,
    pub(crate) ours: (&'s str, &'s Daemon),
    pub(crate) theirs: (&'static str, &'s str, &'s Daemon),
    pub(crate) our_runs: Vec<Run>,
    pub(crate) their_runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) seen: Seen,
    /// Processor seconds that the server used.
    cpu: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.seen.requests / self.seen.seconds
    }

    fn cpu_of_each(&self) -> f64 {
        self.cpu * 1e3 / self.seen.requests
    }
}

impl Contest<'_> {
    /// Runs the load against both.
    pub(crate) fn round(&mut self, place: &Path) -> anyhow::Result<()> {
        self.our_runs.push(self.run(self.ours, place)?);
        let (_, url, daemon) = self.theirs;
        self.their_runs.push(self.run((url, daemon), place)?);
        Ok(())
    }

    /// Runs it against one of them.
    pub(crate) fn run(&self, (url, daemon): (&str, &Daemon), place: &Path) -> anyhow::Result<Run> {
        let before = daemon.cpu()?;
        let seen = match self.client {
            Client::Http1 => wrk::run(&self.load, url, place)?,
            Client::Http2 { streams } => h2load::run(&self.load, streams, url, place)?,
        };
        Ok(Run {
            seen,
            cpu: daemon.cpu()? - before,
        })
    }

    pub(crate) fn rows(&self) -> [Vec<String>; 2] {
        let median =
            |runs: &[Run], figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure)).median;
        let times = median(&self.our_runs, Run::rate) / median(&self.their_runs, Run::rate);
        let per_cpu =
            median(&self.their_runs, Run::cpu_of_each) / median(&self.our_runs, Run::cpu_of_each);
        [
            ("starlift", &self.our_runs, Some((times, per_cpu))),
            (self.theirs.0, &self.their_runs, None),
        ]
        .map(|(server, runs, ratios)| {
            let spread = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure));
            let ratio =
                |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
            vec![
                self.name.to_owned(),
                server.to_owned(),
                spread(Run::rate).show(0),
                format!(
                    "{:.0}",
                    spread(|run| run.seen.bytes / run.seen.seconds / 1e6).median
                ),
                spread(|run| run.seen.p99_milliseconds).show(2),
                format!("{:.3}", spread(Run::cpu_of_each).median),
                ratio(ratios.map(|ratios| ratios.0)),
                ratio(ratios.map(|ratios| ratios.1)),
            ]
        })
    }

    pub(crate) fn bar(&self) -> Bar {
        let ours = Spread::of(self.our_runs.iter().map(Run::rate));
        let theirs = Spread::of(self.their_runs.iter().map(Run::rate));
        Bar {
            label: self.name.to_owned(),
            value: ours.median / theirs.median,
            least: ours.least / theirs.median,
            most: ours.most / theirs.median,
            group: 0,
        }
    }
}
