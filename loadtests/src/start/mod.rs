//! Starts real images on a node that holds nothing of them, with a long round trip to the registry:
//! after a plain pull, mounted lazily, and mounted lazily with a profile.

mod chunks;
mod made;
mod ready;
mod rows;
mod starts;

use std::path::PathBuf;

use anyhow::Context as _;

use crate::figures::{Spread, float};
use crate::images::layer_bytes;
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
pub(crate) use chunks::{Arguments as ChunksArguments, measure_all as measure_chunks};
pub(crate) use made::Workload;
use rows::{BY_HAND, LEARNED, NO_PROFILE, PLAIN, ROWS, STATIC};
use starts::{MEGABITS, ROUND_TRIP, Starts};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The names of the images, as `src/start/make-image` knows them.
    #[arg(default_values = ["nginx", "python", "node", "jvm", "postgres"])]
    images: Vec<String>,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Rounds. Every row has one start in each round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// The starts of one image in every way.
#[derive(Debug)]
struct Contest {
    workload: Workload,
    starts: Vec<Starts>,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("start", "Starts of real images, over a link")?;
    report.note(format!(
        "{} rounds, alternating rows; medians (least–most)",
        arguments.rounds
    ));
    report.note(format!(
        "{MEGABITS} Mbit/s, {} ms round trip; containerd, agent, their folders and the link are new for each start; each \
         row has a registry of its own (`starlift serve`)",
        ROUND_TRIP.as_millis()
    ));
    report.note(
        "ready: nginx and node serve a page, python and jvm say a word, postgres answers a query; seconds from the \
         beginning of the pull, requests and bytes until then",
    );
    report.note(
        "learned: after this many starts on other nodes that were reported to the server; measured starts are not \
         reported",
    );
    report.note("by hand: the faster of `starlift optimize` and `ctr-remote image optimize`");
    let contests: Vec<Contest> = arguments
        .images
        .iter()
        .map(|name| Contest::hold(arguments, name))
        .collect::<anyhow::Result<_>>()?;
    report.table(
        "The targets",
        &[
            "image",
            "learned of 1 start ÷ by hand (≤ 1.1)",
            "of 3 starts ÷ by hand (≤ 1.1)",
            "share of the gap that static closes (≥ 0.5)",
            "slowest lazy start ÷ plain pull (< 1)",
        ],
        contests
            .iter()
            .map(Contest::bars)
            .collect::<anyhow::Result<_>>()?,
    );
    for contest in &contests {
        report.table(
            contest.caption()?,
            &[
                "",
                "ready s",
                "× plain pull",
                "× by hand",
                "pull s",
                "requests",
                "MB",
            ],
            contest
                .starts
                .iter()
                .map(|starts| contest.row(starts))
                .collect::<anyhow::Result<_>>()?,
        );
        report.plot(contest.plot());
    }
    Ok(report)
}

impl Contest {
    fn hold(arguments: &Arguments, name: &str) -> anyhow::Result<Self> {
        let (workload, place) = (Workload::get(name)?, tempfile::tempdir()?);
        let begin = |row| Starts::begin(row, &workload, &arguments.starlift, place.path(), None);
        let mut starts: Vec<Starts> = ROWS.iter().map(begin).collect::<anyhow::Result<_>>()?;
        for _ in 0..arguments.rounds {
            starts
                .iter_mut()
                .try_for_each(|starts| starts.measure(&workload, &arguments.starlift))?;
        }
        Ok(Self { workload, starts })
    }

    /// Returns the median of the seconds until ready.
    fn ready(&self, name: &str) -> anyhow::Result<f64> {
        let found = self.starts.iter().find(|starts| starts.row.name == name);
        Ok(found.with_context(|| format!("no row {name}"))?.ready())
    }

    fn by_hand(&self) -> anyhow::Result<f64> {
        let [ours, theirs] = BY_HAND.map(|name| self.ready(name));
        Ok(ours?.min(theirs?))
    }

    fn caption(&self) -> anyhow::Result<String> {
        let image = &self.workload.image;
        let bytes = float(layer_bytes(&image.manifest()?)?);
        let seconds = bytes * 8.0 / (float(MEGABITS) * 1e6);
        let name = &image.name;
        Ok(format!(
            "`{name}`, {:.1} MB of layers, at least {seconds:.1} s for any pull",
            bytes / 1e6
        ))
    }

    fn row(&self, starts: &Starts) -> anyhow::Result<Vec<String>> {
        Ok(vec![
            starts.row.name.to_owned(),
            starts.spread(|run| run.ready).show(2),
            format!("{:.2}", starts.ready() / self.ready(PLAIN)?),
            format!("{:.2}", starts.ready() / self.by_hand()?),
            starts.spread(|run| run.pull).show(2),
            starts.spread(|run| float(run.requests)).show(0),
            starts.spread(|run| float(run.bytes) / 1e6).show(2),
        ])
    }

    /// Returns the figures that have a target.
    fn bars(&self) -> anyhow::Result<Vec<String>> {
        let [of_one, of_three] = LEARNED.map(|name| self.ready(name));
        let (of_one, of_three, by_hand) = (of_one?, of_three?, self.by_hand()?);
        let no_profile = self.ready(NO_PROFILE)?;
        let lazy = self.starts.iter().filter(|starts| starts.row.name != PLAIN);
        let figures = [
            of_one / by_hand,
            of_three / by_hand,
            (no_profile - self.ready(STATIC)?) / (no_profile - of_three),
            lazy.map(Starts::ready).fold(0.0, f64::max) / self.ready(PLAIN)?,
        ];
        let shown = figures.map(|figure| format!("{figure:.2}"));
        Ok([self.workload.image.name.clone()]
            .into_iter()
            .chain(shown)
            .collect())
    }

    fn plot(&self) -> Plot {
        let bar = |(group, starts): (usize, &Starts)| {
            let Spread {
                median,
                least,
                most,
            } = starts.spread(|run| run.ready);
            Bar {
                label: starts.row.name.to_owned(),
                value: median,
                least,
                most,
                group,
            }
        };
        Plot::Bars(Bars {
            title: format!(
                "{}: from the pull until ready (whisker: best and worst round)",
                self.workload.image.name
            ),
            unit: "seconds",
            bars: self.starts.iter().enumerate().map(bar).collect(),
            marks: Vec::new(),
        })
    }
}
