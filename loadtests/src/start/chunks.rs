//! The chunk size: the same images converted with several sizes, started on empty nodes.

use std::path::PathBuf;

use anyhow::Context as _;

use super::made::Workload;
use super::rows::CHUNK_ROWS;
use super::starts::{MEGABITS, ROUND_TRIP, Starts};
use crate::figures::float;
use crate::images::layer_bytes;
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The names of the images, as `src/start/make-image` knows them.
    #[arg(default_values = ["nginx", "python", "node", "jvm", "postgres"])]
    images: Vec<String>,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Rounds. Every row has one start with each size in each round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The chunk sizes. The first is the one that the others are compared to.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "4MiB,1MiB,512KiB,256KiB,128KiB"
    )]
    sizes: Vec<String>,
}

/// An image in one chunk size.
struct Cut<'a> {
    size: &'a str,
    rows: Vec<Starts>,
    toc_bytes: u64,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("chunks", "Starts with several chunk sizes, over a link")?;
    report.note(format!(
        "{} rounds, alternating sizes; medians (least–most); {MEGABITS} Mbit/s, {} ms round trip",
        arguments.rounds,
        ROUND_TRIP.as_millis()
    ));
    report.note(
        "rows, the node's state and \"ready\" as in `start`; processor time until ready: of the server, and of the \
         snapshotter's process; the reference without prefetch and background fetch",
    );
    for name in &arguments.images {
        image(arguments, name, &mut report)?;
    }
    Ok(report)
}

fn image(arguments: &Arguments, name: &str, report: &mut Report) -> anyhow::Result<()> {
    let (workload, place) = (Workload::get(name)?, tempfile::tempdir()?);
    let begin = |size| {
        let row = |row| {
            Starts::begin(
                row,
                &workload,
                &arguments.starlift,
                place.path(),
                Some(size),
            )
        };
        let rows: Vec<Starts> = CHUNK_ROWS.iter().map(row).collect::<anyhow::Result<_>>()?;
        let toc_bytes = rows
            .first()
            .context("no row")?
            .toc_bytes(&arguments.starlift)?;
        Ok(Cut {
            size,
            rows,
            toc_bytes,
        })
    };
    let sizes = arguments.sizes.iter().map(String::as_str);
    let mut cuts: Vec<Cut<'_>> = sizes.map(begin).collect::<anyhow::Result<_>>()?;
    for _ in 0..arguments.rounds {
        for row in 0..CHUNK_ROWS.len() {
            for cut in &mut cuts {
                cut.rows[row].measure(&workload, &arguments.starlift)?;
            }
        }
    }
    let first = cuts.first().context("no chunk size")?;
    report.table(
        format!("`{name}`: the converted layers"),
        &[
            "chunk size",
            "layers MB",
            "× first",
            "TOCs as JSON, kB",
            "× first",
            "conversion, processor s",
        ],
        cuts.iter()
            .map(|cut| cut.layers(first))
            .collect::<anyhow::Result<_>>()?,
    );
    for (number, row) in CHUNK_ROWS.iter().enumerate() {
        report.table(
            format!("`{name}`: {}", row.name),
            &[
                "chunk size",
                "ready s",
                "× first",
                "requests",
                "MB",
                "server, processor s",
                "node, processor s",
            ],
            cuts.iter().map(|cut| cut.starts(number, first)).collect(),
        );
    }
    report.plot(plot(name, &cuts));
    Ok(())
}

impl Cut<'_> {
    fn layers(&self, first: &Self) -> anyhow::Result<Vec<String>> {
        let starts = self.rows.first().context("no row")?;
        let bytes = float(layer_bytes(&starts.manifest)?);
        let first_bytes = float(layer_bytes(&first.rows[0].manifest)?);
        let (tocs, first_tocs) = (float(self.toc_bytes), float(first.toc_bytes));
        Ok(vec![
            self.size.to_owned(),
            format!("{:.2}", bytes / 1e6),
            format!("{:.4}", bytes / first_bytes),
            format!("{:.0}", tocs / 1e3),
            format!("{:.3}", tocs / first_tocs),
            format!("{:.2}", starts.conversion_cpu),
        ])
    }

    fn starts(&self, row: usize, first: &Self) -> Vec<String> {
        let starts = &self.rows[row];
        vec![
            self.size.to_owned(),
            starts.spread(|run| run.ready).show(2),
            format!("{:.2}", starts.ready() / first.rows[row].ready()),
            starts.spread(|run| float(run.requests)).show(0),
            starts.spread(|run| float(run.bytes) / 1e6).show(2),
            starts.spread(|run| run.server_cpu).show(2),
            starts.spread(|run| run.node_cpu).show(2),
        ]
    }
}

fn plot(name: &str, cuts: &[Cut<'_>]) -> Plot {
    let bars = CHUNK_ROWS.iter().enumerate().flat_map(|(group, row)| {
        cuts.iter().map(move |cut| {
            let ready = cut.rows[group].spread(|run| run.ready);
            Bar {
                label: format!("{}, {}", row.name, cut.size),
                value: ready.median,
                least: ready.least,
                most: ready.most,
                group,
            }
        })
    });
    Plot::Bars(Bars {
        title: format!("{name}: from the pull until ready (whisker: best and worst round)"),
        unit: "seconds",
        bars: bars.collect(),
        marks: Vec::new(),
    })
}
