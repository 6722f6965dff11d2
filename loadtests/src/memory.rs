//! Converts one very large layer with `starlift convert` and measures its peak memory.

use std::fs;
use std::path::PathBuf;

use crate::figures::{Spread, float};
use crate::harness::measure;
use crate::images::{Image, layer_bytes};
use crate::invariants::is_converted;
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;

/// The limit for peak resident memory, MiB.
const MOST: f64 = 256.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image whose files the layer repeats: a name that the tests' `make-image` knows.
    #[arg(long, default_value = "rootfs")]
    model: String,
    /// The least size of the layer's tar, MiB.
    #[arg(long, default_value_t = 4096)]
    mebibytes: u64,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("memory", "A very large layer through `starlift convert`")?;
    let image = Image::large(&Image::get(&arguments.model)?, arguments.mebibytes << 20)?;
    let tar: u64 = image
        .layers()?
        .iter()
        .map(|path| inflated_size(path))
        .sum::<anyhow::Result<u64>>()?;
    report.note(format!(
        "one layer: {:.2} GiB of tar, {:.1} MB as gzip; {} rounds; the bar is {MOST:.0} MiB",
        float(tar) / 1073741824.0,
        float(layer_bytes(&image.manifest()?)?) / 1e6,
        arguments.rounds
    ));
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for (group, setting) in ["default", "fast"].into_iter().enumerate() {
        let place = tempfile::tempdir()?;
        let flag = if setting == "fast" { " --fast" } else { "" };
        let mut costs = Vec::new();
        for round in 0..arguments.rounds {
            let out = place.path().join("out");
            let starlift = arguments.starlift.display();
            costs.push(measure(&format!(
                "{starlift} convert{flag} {} oci:{}:1",
                image.oci(),
                out.display()
            ))?);
            if round == 0 {
                is_converted(&arguments.starlift, &out, &image)?;
            }
            fs::remove_dir_all(out)?;
        }
        let wall = Spread::of(costs.iter().map(|cost| cost.wall));
        let memory = Spread::of(costs.iter().map(|cost| cost.memory));
        rows.push(vec![
            setting.to_owned(),
            wall.show(1),
            Spread::of(costs.iter().map(|cost| cost.cpu)).show(1),
            format!("{:.0}", float(tar) / 1e6 / wall.median),
            memory.show(0),
        ]);
        let (value, least, most) = (memory.median, memory.least, memory.most);
        bars.push(Bar {
            label: setting.to_owned(),
            value,
            least,
            most,
            group,
        });
    }
    report.table(
        "Whole program",
        &["", "wall s", "CPU s", "MB of tar a second", "peak MiB"],
        rows,
    );
    report.plot(Plot::Bars(Bars {
        title: format!(
            "Peak memory for one layer of {:.2} GiB",
            float(tar) / 1073741824.0
        ),
        unit: "MiB",
        bars,
        marks: vec![(MOST, "bar".to_owned())],
    }));
    Ok(report)
}

fn inflated_size(path: &std::path::Path) -> anyhow::Result<u64> {
    let mut decoder = flate2::read::GzDecoder::new(std::io::BufReader::new(fs::File::open(path)?));
    Ok(std::io::copy(&mut decoder, &mut std::io::sink())?)
}
