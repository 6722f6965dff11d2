//! Measures how much memory a layer of very many files takes, and how long its mount takes.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Arguments, EROFS, LAZY, REFERENCE};
use crate::figures::{Spread, float};
use crate::images::Image;
use crate::node::{Node, Snapshotter};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};

/// The time in which a snapshotter may return memory that it no longer needs.
const WHILE: Duration = Duration::from_secs(60);
/// The number of files to which the figures are scaled.
const PER: f64 = 100_000.0;

/// One snapshotter's figures without and with the layer.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Seconds of the complete `rpull`.
    seconds: f64,
    /// Resident memory, MiB, a while after the start.
    idle: f64,
    /// The part of it that is not in files.
    idle_anonymous: f64,
    mounted: f64,
    walked: f64,
    /// A while after the walk.
    quiet: f64,
    /// When every file had been read.
    read: f64,
    /// A while after that.
    read_quiet: f64,
    /// The part of it that is not in files.
    read_anonymous: f64,
    peak: f64,
}

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    report.note(
        "memory: resident, of a snapshotter that holds nothing else; files of 200 bytes, 100 to a directory; mounted \
         with `ctr-remote images rpull` from a server on the same machine",
    );
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for &count in &arguments.files {
        let (image, place) = (Image::of_many(count)?, tempfile::tempdir()?);
        let upstream = format!("{}=oci:{}", image.name, image.dir.display());
        let server = Server::start(&arguments.starlift, place.path(), &[upstream])?;
        let address = server.address;
        server::converted(&format!(
            "http://{address}/v2/{}/image/manifests/1",
            image.name
        ))?;
        let reference = format!("{address}/{}/image:1", image.name);
        let mut runs = [LAZY, EROFS, REFERENCE].map(|contestant| (contestant, Vec::new()));
        for _ in 0..arguments.rounds {
            for (contestant, runs) in &mut runs {
                runs.push(once(arguments, contestant, &reference, count)?);
            }
        }
        for (group, (contestant, runs)) in runs.iter().enumerate() {
            let spread = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure));
            let hundred_thousands = float(count as u64) / PER;
            let per = Spread::of(
                runs.iter()
                    .map(|run| (run.quiet - run.idle) / hundred_thousands),
            );
            rows.push(vec![
                count.to_string(),
                (*contestant).to_owned(),
                spread(|run| run.seconds).show(2),
                spread(|run| run.idle).show(1),
                spread(|run| run.idle_anonymous).show(1),
                spread(|run| run.mounted).show(0),
                spread(|run| run.walked).show(0),
                spread(|run| run.quiet).show(1),
                per.show(1),
                spread(|run| run.read).show(0),
                spread(|run| run.read_quiet).show(1),
                spread(|run| run.read_anonymous).show(1),
                spread(|run| run.peak).show(0),
            ]);
            let (value, least, most) = (per.median, per.least, per.most);
            bars.push(Bar {
                label: format!("{}k files, {contestant}", count / 1000),
                value,
                least,
                most,
                group,
            });
        }
    }
    let head = [
        "files",
        "",
        "mount s",
        "MiB idle",
        "anonymous",
        "MiB mounted",
        "MiB walked",
        "a minute later",
        "more than idle, per 100k files",
        "MiB when all was read",
        "a minute later",
        "anonymous",
        "peak MiB",
    ];
    report.table("A layer of many files", &head, rows);
    report.plot(Plot::Bars(Bars {
        title: "Resident memory per 100k files, a minute after a walk (whisker: least and most)"
            .to_owned(),
        unit: "MiB",
        bars,
        marks: Vec::new(),
    }));
    Ok(())
}

fn once(
    arguments: &Arguments,
    contestant: &'static str,
    image: &str,
    count: usize,
) -> anyhow::Result<Run> {
    let place = tempfile::tempdir()?;
    let agent = |driver| {
        let settings = [("BACKGROUND", "off"), ("DRIVER", driver)];
        Snapshotter::starlift(contestant, &arguments.starlift, place.path(), &settings)
    };
    let snapshotter = match contestant {
        LAZY => agent("fuse")?,
        EROFS => agent("erofs")?,
        _ => Snapshotter::reference(contestant, place.path())?,
    };
    let node = Node::start(place.path(), vec![snapshotter])?;
    let daemon = node.daemon(contestant)?;
    sleep(WHILE);
    let (idle, idle_anonymous) = (daemon.memory()?, daemon.anonymous_memory()?);
    let begun = Instant::now();
    let tree = node.pull_and_mount(image, contestant, "many")?;
    let seconds = begun.elapsed().as_secs_f64();
    let mounted = daemon.memory()?;
    let files = super::reads::files(&tree.target)?;
    anyhow::ensure!(files.len() == count, "{} files of {count}", files.len());
    let walked = daemon.memory()?;
    sleep(WHILE);
    let quiet = daemon.memory()?;
    for file in &files {
        fs::read(file)?;
    }
    let read = daemon.memory()?;
    sleep(WHILE);
    Ok(Run {
        seconds,
        idle,
        idle_anonymous,
        mounted,
        walked,
        quiet,
        read,
        read_quiet: daemon.memory()?,
        read_anonymous: daemon.anonymous_memory()?,
        peak: daemon.peak_memory()?,
    })
}
