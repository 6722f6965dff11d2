//! Replicas over one bucket behind one address, pulled from by many clients, and a model of many
//! nodes that is fitted to some of these runs and checked against the others.
//!
//! The replicas, the clients and the bucket share the machine. So costs are measured (processor
//! time of the replicas, requests to the bucket), and not how much faster more replicas are.

mod clients;
mod fleet;
mod measured;
mod model;
mod nodes;
mod runs;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::figures::{Spread, float};
use crate::plot::{Bar, Bars, Curve, Lines, Plot};
use crate::report::Report;
use crate::scale::fleet::Bucket;
use crate::scale::measured::{Measured, Ranges, Run};
use crate::scale::model::{Checked, Costs};
use crate::scale::nodes::{Assumptions, Needs, Way};
use crate::soak::upstream::{Behaviour, Upstream};

/// The numbers of nodes in the report.
const NODES: [u32; 2] = [1_000, 10_000];
/// The shares of the image in the plot, in percent.
const SHARES: [u32; 8] = [1, 2, 5, 10, 20, 30, 40, 50];

/// Returns one phase of a run.
type PhaseOf = fn(&Run) -> &measured::Phase;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    only: Option<Only>,
    #[command(flatten)]
    runs: RunArguments,
}

#[derive(Debug, clap::Subcommand)]
enum Only {
    /// Computes the model from figures that were kept, with other assumptions
    Model {
        /// `scale.json` of an earlier report
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Changes an assumption: KEY=VALUE
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// The executable
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Numbers of replicas; the first is 1, to which the costs are fitted
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    replicas: Vec<usize>,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "8,32,64")]
    clients: Vec<usize>,
    /// Images that each client pulls
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// Approximate most bytes of a layer's tar
    #[arg(long, default_value_t = 16 << 20)]
    layer: usize,
    /// Share of each layer that a pull reads
    #[arg(long, default_value_t = 0.1)]
    share: f64,
    /// Seconds of each load of ranges
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Changes an assumption of the model: KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    if let Some(Only::Model { from, set }) = &arguments.only {
        let kept = fs::read_to_string(from).context(from.display().to_string())?;
        let kept: serde_json::Value = serde_json::from_str(&kept)?;
        let measured: Measured = serde_json::from_value(kept["measured"].clone())?;
        let mut report = Report::begin("scale-model", "Many nodes start one image at once")?;
        report.note(format!("figures of {}", measured.of));
        model(&mut report, &measured, set)?;
        return Ok(report);
    }
    let arguments = &arguments.runs;
    ensure!(
        arguments.replicas.first() == Some(&1),
        "the first number of replicas is not 1"
    );
    ensure!(arguments.images > 0, "no images");
    ensure!(
        arguments.clients.iter().all(|clients| *clients > 0),
        "no clients"
    );
    // An error means that an earlier client installed it already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(scale(arguments))
}

async fn scale(arguments: &RunArguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("scale", "Replicas behind one address, and many nodes")?;
    let place = tempfile::tempdir()?;
    let all = arguments.images + runs::NOTICED;
    let upstream = Upstream::start(Behaviour::Honest, all, arguments.layer).await?;
    let cold = &upstream.images[..arguments.images];
    let layers: BTreeSet<&String> = cold.iter().flat_map(|image| &image.layers).collect();
    let sizes = layers.iter().filter_map(|layer| upstream.blob(layer));
    let source_bytes = sizes.map(|bytes| float(bytes.len() as u64)).sum();
    let mut measured = Measured {
        of: report.first_note().to_owned(),
        images: float(cold.len() as u64),
        layers: float(layers.len() as u64),
        source_bytes,
        share: arguments.share,
        runs: Vec::new(),
        noticed: Vec::new(),
    };
    let bucket = Bucket::start().await;
    let load = runs::Load {
        executable: &arguments.starlift,
        upstream: &upstream,
        bucket: &bucket,
        place: place.path(),
        images: arguments.images,
        share: arguments.share,
        seconds: arguments.seconds,
    };
    for replicas in &arguments.replicas {
        for clients in &arguments.clients {
            let run = load.run(*replicas, *clients).await?;
            if (run.conversions - measured.layers).abs() > 0.5 {
                report.fail(format!(
                    "{replicas} replicas, {clients} clients: {} conversions of {} layers",
                    run.conversions, measured.layers
                ));
            }
            measured.runs.push(run);
        }
        if *replicas > 1 {
            measured
                .noticed
                .push((*replicas, load.notice(*replicas).await?));
        }
    }
    describe(&mut report, &measured, arguments);
    model(&mut report, &measured, &arguments.set)?;
    Ok(report)
}

fn describe(report: &mut Report, measured: &Measured, arguments: &RunArguments) {
    report.note(format!(
        "{} images of {} different layers, {:.0} MB; each client pulls each image by ranges: the end of each layer and \
         {:.0} % of it; nginx hands the requests to the replicas in turn; S3, upstream and clients are one other process \
         on the same machine",
        measured.images,
        measured.layers,
        measured.source_bytes / 1e6,
        measured.share * 100.0
    ));
    report.note(format!(
        "the load of ranges lasts {} s; processor time and requests include what the replicas do afterwards until they \
         are idle: checks of layers whose ranges were read, predictions",
        arguments.seconds
    ));
    report.table(
        "Cold: no image is converted",
        &[
            "replicas",
            "clients",
            "pulls",
            "source first",
            "conversions",
            "wall s",
            "CPU s",
            "bucket reads",
            "bucket writes",
            "requests to the bucket/pull",
            "MB/pull",
        ],
        measured.runs.iter().map(cold_row).collect(),
    );
    let phases: [(&str, PhaseOf); 4] = [
        ("pulls", |run| &run.warm),
        ("ranges of 32 KiB", |run| &run.small),
        ("ranges of 512 KiB", |run| &run.large),
        ("whole layers", |run| &run.whole),
    ];
    let mut rows = Vec::new();
    for run in &measured.runs {
        for (name, phase) in phases {
            rows.push(warm_row(run, name, phase(run)));
        }
    }
    report.table(
        "Warm: everything is converted",
        &[
            "replicas",
            "clients",
            "of",
            "count",
            "a second",
            "CPU ms each",
            "bucket reads each",
        ],
        rows,
    );
    let noticed = measured.noticed.iter().map(|(replicas, seconds)| {
        let spread = Spread::of(seconds.iter().copied());
        vec![replicas.to_string(), spread.show(2)]
    });
    report.table(
        "From the first replica's answer with a new converted image to the last one's, all asked at once",
        &["replicas", "s, median (least–most)"],
        noticed.collect(),
    );
}

fn cold_row(run: &Run) -> Vec<String> {
    let (done, used) = (&run.cold.done, &run.cold.used);
    vec![
        run.replicas.to_string(),
        run.clients.to_string(),
        format!("{:.0}", done.pulls),
        format!("{:.0}", done.source_first),
        format!("{:.0}", run.conversions),
        format!("{:.1}", used.wall),
        format!("{:.2}", used.cpu),
        format!("{:.0}", used.reads),
        format!("{:.0}", used.writes),
        format!("{:.1}", (used.reads + used.writes) / done.pulls),
        format!("{:.2}", done.bytes / done.pulls / 1e6),
    ]
}

fn warm_row(run: &Run, name: &str, phase: &measured::Phase) -> Vec<String> {
    let (done, used) = (&phase.done, &phase.used);
    let count = match name {
        "pulls" => done.pulls,
        "whole layers" => done.wholes,
        _ => done.ranges,
    };
    vec![
        run.replicas.to_string(),
        run.clients.to_string(),
        name.to_owned(),
        format!("{count:.0}"),
        format!("{:.0}", count / used.wall),
        format!("{:.3}", used.cpu / count * 1e3),
        format!("{:.2}", used.reads / count),
    ]
}

/// Fits the model, checks it, and computes what many nodes need.
fn model(report: &mut Report, measured: &Measured, changes: &[String]) -> anyhow::Result<()> {
    let assumptions = Assumptions::with(changes)?;
    let costs = Costs::fitted(measured).context("no run of one replica")?;
    report.table(
        "Model: the fitted costs",
        &["of", "CPU", "bucket reads", "bucket writes"],
        cost_rows(&costs, measured),
    );
    let checked = costs.check(measured);
    report.table(
        "Model: predicted and measured (the runs marked * are those that the costs were fitted to)",
        &[
            "replicas",
            "clients",
            "phase",
            "figure",
            "predicted",
            "measured",
            "error %",
        ],
        checked.iter().map(checked_row).collect(),
    );
    let unseen = || checked.iter().filter(|row| !row.is_fitted);
    for figure in ["CPU s", "bucket reads"] {
        let errors = unseen().filter(|row| row.figure == figure && row.measured > 0.0);
        let errors: Vec<f64> = errors.map(|row| row.error().abs() * 100.0).collect();
        if !errors.is_empty() {
            report.note(format!(
                "model: error of {figure} in the runs that it was not fitted to: {} %",
                Spread::of(errors).show(0)
            ));
        }
    }
    report.note(Assumptions::note());
    report.note(
        "assumed besides: costs grow linearly; an answer by redirect costs what a range costs without its bytes; the \
         processor time of checks (each layer whose ranges were read, once a day at each server, at `store.scrub.rate`) is \
         spread over the day; the bucket keeps up (S3: 5,500 GET a second \
         for each prefix, so spread, or `store.cache`)",
    );
    report.table(
        "Assumptions; `--set KEY=VALUE` changes one",
        &["key", "value", ""],
        assumptions.rows(),
    );
    let (cpu, wall) = assumptions.conversion(&costs);
    report.note(format!(
        "the conversion of the {} GB once: {:.0} s of processor time, {:.0} s on {} processors, {:.4} USD of writes; until \
         then pulls get the source image, so convert ahead (`starlift warm`)",
        assumptions.get("image_gb"),
        cpu,
        wall,
        assumptions.get("convert_cores"),
        assumptions.conversion_usd(&costs)
    ));
    let mut needs = Vec::new();
    for nodes in NODES {
        for way in Way::ALL {
            needs.push((nodes, way, assumptions.needs(&costs, f64::from(nodes), way)));
        }
    }
    report.table(
        "Nodes that start the image at once",
        &[
            "nodes",
            "way",
            "servers by CPU",
            "by network",
            "servers",
            "GB through them",
            "GB from bucket or registry",
            "bucket GETs, million",
            "USD requests",
            "USD bytes",
            "USD servers",
            "USD",
        ],
        needs.iter().map(needs_row).collect(),
    );
    plots(report, &checked, &costs, changes)?;
    let needs = needs
        .iter()
        .map(|(nodes, way, needs)| json!({"nodes": nodes, "way": way.name(), "needs": needs}));
    let kept = json!({
        "measured": measured, "costs": costs, "checked": checked,
        "nodes": needs.collect::<Vec<_>>(),
    });
    report.file("scale.json", serde_json::to_string_pretty(&kept)?);
    Ok(())
}

fn cost_rows(costs: &Costs, measured: &Measured) -> Vec<Vec<String>> {
    let row = |of: &str, cpu: String, reads: f64, writes: f64| {
        vec![
            of.to_owned(),
            cpu,
            format!("{reads:.1}"),
            format!("{writes:.1}"),
        ]
    };
    let per_mb = |seconds: f64| format!("{:.2} ms/MB", seconds * 1e9);
    let milliseconds = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
    vec![
        row(
            "the conversion of a layer",
            per_mb(costs.convert_cpu),
            costs.convert_reads,
            costs.convert_writes,
        ),
        row(
            "a layer at each further replica",
            per_mb(costs.replica_cpu),
            costs.replica_reads,
            costs.replica_writes,
        ),
        row(
            "a pull without its ranges",
            milliseconds(costs.pull_cpu),
            costs.pull_reads,
            costs.pull_writes,
        ),
        row(
            "a range",
            format!(
                "{} and {}",
                milliseconds(costs.range_cpu),
                per_mb(costs.byte_cpu)
            ),
            costs.range_reads,
            0.0,
        ),
        row(
            "a whole layer",
            format!(
                "{} and {}",
                milliseconds(costs.range_cpu),
                per_mb(costs.whole_byte_cpu)
            ),
            costs.whole_reads,
            0.0,
        ),
        vec![
            format!(
                "(mean layer: {:.1} MB)",
                measured.source_bytes / measured.layers / 1e6
            ),
            String::new(),
            String::new(),
            String::new(),
        ],
    ]
}

fn checked_row(row: &Checked) -> Vec<String> {
    let star = if row.is_fitted { " *" } else { "" };
    let decimals = if row.figure == "CPU s" { 2 } else { 0 };
    let error = if row.measured > 0.0 {
        format!("{:+.0}", row.error() * 100.0)
    } else {
        "–".to_owned()
    };
    vec![
        format!("{}{star}", row.replicas),
        row.clients.to_string(),
        row.phase.to_owned(),
        row.figure.to_owned(),
        format!("{:.decimals$}", row.predicted),
        format!("{:.decimals$}", row.measured),
        error,
    ]
}

fn needs_row((nodes, way, needs): &(u32, Way, Needs)) -> Vec<String> {
    vec![
        nodes.to_string(),
        way.name().to_owned(),
        format!("{:.1}", needs.by_cpu),
        format!("{:.1}", needs.by_network),
        format!("{:.0}", needs.servers),
        format!("{:.0}", needs.through_gb),
        format!("{:.0}", needs.from_gb),
        format!("{:.2}", needs.reads / 1e6),
        format!("{:.2}", needs.requests_usd),
        format!("{:.2}", needs.bytes_usd),
        format!("{:.2}", needs.servers_usd),
        format!("{:.2}", needs.usd()),
    ]
}

fn plots(
    report: &mut Report,
    checked: &[Checked],
    costs: &Costs,
    changes: &[String],
) -> anyhow::Result<()> {
    for (figure, unit) in [("CPU s", "seconds"), ("bucket reads", "requests")] {
        let rows = checked
            .iter()
            .filter(|row| row.figure == figure && row.phase == "cold");
        let bars = rows.flat_map(|row| {
            let run = format!("{} replicas, {} clients", row.replicas, row.clients);
            [
                ("measured", row.measured, 0),
                ("predicted", row.predicted, 1),
            ]
            .map(|(name, value, group)| Bar {
                label: format!("{run}, {name}"),
                value,
                least: value,
                most: value,
                group,
            })
        });
        report.plot(Plot::Bars(Bars {
            title: format!("{figure} of cold pulls, measured and predicted"),
            unit,
            bars: bars.collect(),
            marks: Vec::new(),
        }));
    }
    let mut curves = Vec::new();
    for nodes in NODES {
        for (way, name) in [(Way::Lazily, "servers"), (Way::Redirected, "redirect")] {
            let mut points = Vec::new();
            for share in SHARES {
                let share_key = format!("read_share={}", f64::from(share) / 100.0);
                let assumptions = Assumptions::with(&[changes, &[share_key]].concat())?;
                let needs = assumptions.needs(costs, f64::from(nodes), way);
                points.push((f64::from(share), needs.servers));
            }
            curves.push(Curve {
                label: format!("{nodes} {name}"),
                points,
            });
        }
    }
    report.plot(Plot::Lines(Lines {
        title: "Servers for nodes that start one image at once, by the share that they read"
            .to_owned(),
        x: "% of the image",
        y: "servers",
        curves,
        marks: Vec::new(),
    }));
    Ok(())
}

/// The lengths are part of the report's words.
const _: () = assert!(Ranges::SMALL == 32 << 10 && Ranges::LARGE == 512 << 10);
