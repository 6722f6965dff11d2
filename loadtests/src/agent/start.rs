//! Starts a container from an image that is not on the node, over a link with a long round trip to
//! the registry.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;

use super::{Arguments, EROFS, LAZY, REFERENCE};
use crate::figures::{Spread, float};
use crate::harness::run;
use crate::images::{Image, layer_bytes};
use crate::node::{Node, Snapshotter, UNPACKED};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::support::link::Link;

const MEGABITS: u64 = 100;
const ROUND_TRIP: Duration = Duration::from_millis(20);
const CONTESTANTS: [&str; 4] = [UNPACKED, LAZY, EROFS, REFERENCE];
/// The container's commands; each prints [`OUTPUT`].
const WORKLOADS: [(&str, &str); 2] = [
    ("shell", "echo x\n"),
    (
        "flask",
        "python3 -c 'import flask, sqlalchemy; print(flask.Flask(\"x\").name)'\n",
    ),
];
const OUTPUT: &str = "x\n";

/// One contestant with one workload.
#[derive(Debug)]
struct Starts {
    workload: &'static str,
    script: &'static str,
    contestant: &'static str,
    runs: Vec<Run>,
}

/// The figures of one start.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Seconds of the pull.
    pull: f64,
    /// Seconds from the start of the pull to the first output.
    output: f64,
    requests: u64,
    /// Bytes that the registry sent, including headers.
    bytes: u64,
}

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let (image, place) = (Image::get("python")?, tempfile::tempdir()?);
    let upstream = format!("python=oci:{}", image.dir.display());
    let server = Server::start(&arguments.starlift, place.path(), &[upstream])?;
    let (_, manifest) = server::converted(&format!(
        "http://{}/v2/python/image/manifests/1",
        server.address
    ))?;
    report.note(format!(
        "start: `python`, {:.1} MB of layers; {MEGABITS} Mbit/s, {} ms round trip; containerd, snapshotter and \
         link new for each; the agent as it comes, the reference without prefetch and background fetch",
        float(layer_bytes(&manifest)?) / 1e6,
        ROUND_TRIP.as_millis()
    ));
    report.note(format!(
        "start: curl alone takes {:.1} s for the layers over this link",
        download(&server, &manifest)?
    ));
    let of_workload = |(workload, script)| {
        CONTESTANTS.map(|contestant| Starts {
            workload,
            script,
            contestant,
            runs: Vec::new(),
        })
    };
    let mut starts: Vec<Starts> = WORKLOADS.into_iter().flat_map(of_workload).collect();
    for _ in 0..arguments.rounds {
        for Starts {
            script,
            contestant,
            runs,
            ..
        } in &mut starts
        {
            runs.push(once(arguments, &server, contestant, script)?);
        }
    }
    report.table(
        "Container start",
        &[
            "workload",
            "",
            "pull s",
            "run s",
            "first output s",
            "requests",
            "MB",
        ],
        starts.iter().map(Starts::row).collect(),
    );
    let plot = |title: &str, unit, figure: fn(&Run) -> f64| {
        let bars = starts.iter().map(|starts| starts.bar(figure)).collect();
        Plot::Bars(Bars {
            title: title.to_owned(),
            unit,
            bars,
            marks: Vec::new(),
        })
    };
    report.plot(plot(
        "From the pull to the first output (whisker: best and worst round)",
        "seconds",
        |run| run.output,
    ));
    report.plot(plot("Requests until the first output", "requests", |run| {
        float(run.requests)
    }));
    Ok(())
}

impl Starts {
    fn spread(&self, figure: fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.workload.to_owned(),
            self.contestant.to_owned(),
            self.spread(|run| run.pull).show(2),
            self.spread(|run| run.output - run.pull).show(2),
            self.spread(|run| run.output).show(2),
            self.spread(|run| float(run.requests)).show(0),
            self.spread(|run| float(run.bytes) / 1e6).show(2),
        ]
    }

    fn bar(&self, figure: fn(&Run) -> f64) -> Bar {
        let Spread {
            median,
            least,
            most,
        } = self.spread(figure);
        let group = CONTESTANTS
            .iter()
            .position(|name| *name == self.contestant)
            .unwrap_or_default();
        Bar {
            label: format!("{}, {}", self.workload, self.contestant),
            value: median,
            least,
            most,
            group,
        }
    }
}

/// Returns the seconds that downloading all layers takes over the link, which no pull can beat.
fn download(server: &Server, manifest: &Value) -> anyhow::Result<f64> {
    let link = Link::start(server.address, MEGABITS, ROUND_TRIP);
    let digests = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|layer| layer["digest"].as_str());
    let begun = Instant::now();
    for digest in digests {
        run(&format!(
            "curl -sf -o /dev/null http://{}/v2/python/image/blobs/{digest}",
            link.address
        ))?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn once(
    arguments: &Arguments,
    server: &Server,
    contestant: &'static str,
    script: &str,
) -> anyhow::Result<Run> {
    let place = tempfile::tempdir()?;
    let place = place.path();
    let agent = |driver| {
        Snapshotter::starlift(
            contestant,
            &arguments.starlift,
            place,
            &[("DRIVER", driver)],
        )
    };
    let snapshotters = match contestant {
        LAZY => vec![agent("fuse")?],
        EROFS => vec![agent("erofs")?],
        REFERENCE => vec![Snapshotter::reference(REFERENCE, place)?],
        _ => Vec::new(),
    };
    let node = Node::start(place, snapshotters)?;
    let link = Link::start(server.address, MEGABITS, ROUND_TRIP);
    let image = format!("{}/python/image:1", link.address);
    let asked = server.requests()?;
    let begun = Instant::now();
    node.pull(&image, contestant)?;
    let pull = begun.elapsed().as_secs_f64();
    let output = node.run(&image, contestant, script)?;
    let run = Run {
        pull,
        output: (output.first - begun).as_secs_f64(),
        requests: server.requests()? - asked,
        bytes: link.carried(),
    };
    ensure!(output.text == OUTPUT, "{contestant} said {:?}", output.text);
    Ok(run)
}
