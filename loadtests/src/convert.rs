//! Compares the conversion of a complete image from layout to layout with the reference's.
//!
//! The reference converts inside a containerd that this scenario starts, into its content store.
//! Starlift converts from one OCI layout into a new one. Both read the same compressed layers, and
//! both write all output to the same disk.

use std::fs;
use std::path::{Path, PathBuf};

use crate::containerd::Containerd;
use crate::figures::{Spread, float};
use crate::harness::{Cost, measure, run};
use crate::images::{Image, layer_bytes};
use crate::invariants::{SameBytes, is_converted};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;

/// Each setting's required multiple of the reference's speed, and its size limit (DESIGN.md,
/// section 8).
const BARS: [(&str, f64, f64); 2] = [("default", 8.0, 1.0), ("fast", 20.0, 1.11)];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The names of the images, as the tests' `make-image` knows them.
    #[arg(default_values = ["rootfs", "python"])]
    images: Vec<String>,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Rounds. Every contestant runs once in each round.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// One way to convert: its name in the table and the cost of its runs.
#[derive(Debug)]
struct Contestant {
    name: &'static str,
    costs: Vec<Cost>,
    bytes: u64,
}

impl Contestant {
    fn spread(&self, figure: fn(&Cost) -> f64) -> Spread {
        Spread::of(self.costs.iter().map(figure))
    }
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin(
        "convert",
        "Conversion, whole, against `ctr-remote image convert --estargz --oci`",
    )?;
    report.note(format!(
        "{} rounds, alternating contestants; medians (least–most)",
        arguments.rounds
    ));
    report.note("× is the reference's median over the contestant's; size is the layers' bytes over the reference's");
    report.note(
        "the reference's time includes the containerd it converts in; memory is that of ctr-remote or starlift only",
    );
    let mut bars = Vec::new();
    for (group, name) in arguments.images.iter().enumerate() {
        let image = Image::get(name)?;
        let place = tempfile::tempdir()?;
        let contestants = contest(arguments, &image, place.path())?;
        let Some((reference, ours)) = contestants.split_first() else {
            continue;
        };
        report.table(
            format!(
                "Image `{name}`, {:.1} MB of gzip layers",
                float(layer_bytes(&image.manifest()?)?) / 1e6
            ),
            &[
                "",
                "wall s",
                "CPU s",
                "peak MiB",
                "layers MB",
                "wall ×",
                "CPU ×",
                "size",
            ],
            contestants
                .iter()
                .map(|contestant| row(contestant, reference))
                .collect(),
        );
        bars.extend(
            ours.iter()
                .map(|contestant| bar(contestant, reference, name, group)),
        );
    }
    report.plot(Plot::Bars(Bars {
        title: "Times the reference's speed (wall; whisker: fastest and slowest round)".to_owned(),
        unit: "times",
        bars,
        marks: BARS
            .map(|(name, times, size)| (times, format!("bar of {name}, size ≤ {size:.2}")))
            .into(),
    }));
    Ok(report)
}

fn contest(arguments: &Arguments, image: &Image, place: &Path) -> anyhow::Result<[Contestant; 3]> {
    let containerd = Containerd::start(place)?;
    let imported = containerd.import(image, place)?;
    let mut contestants = ["reference", "default", "fast"].map(|name| Contestant {
        name,
        costs: Vec::new(),
        bytes: 0,
    });
    let mut same = SameBytes::default();
    for round in 0..arguments.rounds {
        for contestant in &mut contestants {
            // The next run must not pay for the last one's unwritten pages.
            run("sync")?;
            if contestant.name == "reference" {
                by_reference(&containerd, &imported, contestant)?;
            } else {
                let layout = Image {
                    name: contestant.name.to_owned(),
                    dir: place.join(contestant.name),
                };
                let flag = if contestant.name == "fast" {
                    " --fast"
                } else {
                    ""
                };
                let starlift = arguments.starlift.display();
                contestant.costs.push(measure(&format!(
                    "{starlift} convert{flag} {} {}",
                    image.oci(),
                    layout.oci()
                ))?);
                let manifest = layout.manifest()?;
                contestant.bytes = layer_bytes(&manifest)?;
                same.note(contestant.name, &manifest.to_string())?;
                if round == 0 {
                    is_converted(&arguments.starlift, &layout.dir, image)?;
                }
                fs::remove_dir_all(layout.dir)?;
            }
        }
    }
    Ok(contestants)
}

fn by_reference(
    containerd: &Containerd,
    image: &str,
    contestant: &mut Contestant,
) -> anyhow::Result<()> {
    let before = containerd.daemon.cpu()?;
    let mut cost = measure(&format!(
        "ctr-remote -a {} images convert --estargz --oci {image} made:1",
        containerd.socket
    ))?;
    cost.cpu += containerd.daemon.cpu()? - before;
    contestant.costs.push(cost);
    contestant.bytes = containerd.layer_bytes("made:1")?;
    // Otherwise the next round finds its blobs already converted.
    containerd.ctr("images rm --sync made:1").map(drop)
}

fn row(contestant: &Contestant, reference: &Contestant) -> Vec<String> {
    let times = |figure| reference.spread(figure).median / contestant.spread(figure).median;
    vec![
        contestant.name.to_owned(),
        contestant.spread(|cost| cost.wall).show(2),
        contestant.spread(|cost| cost.cpu).show(2),
        format!("{:.0}", contestant.spread(|cost| cost.memory).most),
        format!("{:.2}", float(contestant.bytes) / 1e6),
        format!("{:.1}", times(|cost| cost.wall)),
        format!("{:.1}", times(|cost| cost.cpu)),
        format!("{:.3}", float(contestant.bytes) / float(reference.bytes)),
    ]
}

fn bar(contestant: &Contestant, reference: &Contestant, image: &str, group: usize) -> Bar {
    let (theirs, ours) = (
        reference.spread(|cost| cost.wall),
        contestant.spread(|cost| cost.wall),
    );
    let size = float(contestant.bytes) / float(reference.bytes);
    Bar {
        label: format!("{image}, {}, size {size:.3}", contestant.name),
        value: theirs.median / ours.median,
        least: theirs.median / ours.most,
        most: theirs.median / ours.least,
        group,
    }
}
