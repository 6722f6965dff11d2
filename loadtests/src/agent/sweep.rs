//! Pulls an image and reads a share of its files, lazily and after a plain pull; and pulls it until
//! all of it is on the node.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Arguments, EROFS, LAZY};
use crate::figures::{Spread, float};
use crate::harness::run;
use crate::images::{Image, layer_bytes};
use crate::node::{Node, Snapshotter, UNPACKED};
use crate::plot::{Curve, Lines, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::support::eventually::within;
use crate::support::link::Link;

const CONTESTANTS: [&str; 3] = [UNPACKED, LAZY, EROFS];
/// Percent of the files that a run reads.
const SHARES: [u32; 5] = [5, 25, 50, 75, 100];
/// The link of the second sweep; the first is over loopback.
const MEGABITS: u64 = 100;
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// The limit for an image to be complete, and the pause between two looks.
const LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);

/// The runs of one contestant that read the same share over the same link.
#[derive(Debug)]
struct Runs {
    is_far: bool,
    share: u32,
    contestant: &'static str,
    seconds: Vec<f64>,
    /// The output: the number of bytes that were read.
    output: Option<String>,
}

/// An image in a registry.
struct Registry<'a> {
    arguments: &'a Arguments,
    server: Server,
    /// The source image, which is unpacked. The lazy contestants get the converted one.
    source: String,
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
        "sweep: `python`, {:.1} MB of layers; from the beginning of the pull until the container has read its share of \
         the files; the plain pull is of the source image; containerd, agent and link new for each",
        float(layer_bytes(&manifest)?) / 1e6
    ));
    let source = format!("python/image@{}", image.digest()?);
    let registry = Registry {
        arguments,
        server,
        source,
    };
    registry.measure_complete(report)?;
    for is_far in [false, true] {
        registry.measure_shares(report, is_far)?;
    }
    Ok(())
}

impl Registry<'_> {
    /// Compares a pull and unpack with a pull and a burst of the whole image.
    fn measure_complete(&self, report: &mut Report) -> anyhow::Result<()> {
        let mut seconds = CONTESTANTS.map(|_| Vec::new());
        for _ in 0..self.arguments.rounds {
            for (contestant, seconds) in CONTESTANTS.into_iter().zip(&mut seconds) {
                seconds.push(self.complete(contestant)?);
            }
        }
        let spreads = seconds.map(Spread::of);
        let unpacked = spreads[0].median;
        let row = |(contestant, spread): (&str, &Spread)| {
            let ratio = format!("{:.2}", spread.median / unpacked);
            vec![contestant.to_owned(), spread.show(2), ratio]
        };
        report.table(
            "The whole image on the node, loopback, `background = \"burst\"`",
            &["", "s", "× pull and unpack (≤ 0.4)"],
            CONTESTANTS.into_iter().zip(&spreads).map(row).collect(),
        );
        Ok(())
    }

    fn complete(&self, contestant: &'static str) -> anyhow::Result<f64> {
        let place = tempfile::tempdir()?;
        let node = self.node(contestant, place.path(), &[("BACKGROUND", "burst")])?;
        let begun = Instant::now();
        node.pull(&self.image(self.server.address, contestant), contestant)?;
        if contestant != UNPACKED {
            let socket = place.path().join(contestant).join("api.sock");
            let look = || {
                is_complete(&socket)
                    .map(|is_so| is_so.then_some(()))
                    .transpose()
            };
            within(LIMIT, POLL, look).context("image not complete after the limit")??;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn measure_shares(&self, report: &mut Report, is_far: bool) -> anyhow::Result<()> {
        let of_share = |share| {
            CONTESTANTS.map(|contestant| Runs {
                is_far,
                share,
                contestant,
                seconds: Vec::new(),
                output: None,
            })
        };
        let mut all: Vec<Runs> = SHARES.into_iter().flat_map(of_share).collect();
        for _ in 0..self.arguments.rounds {
            for runs in &mut all {
                self.run(runs).with_context(|| format!("{runs:?}"))?;
            }
        }
        let link = if is_far {
            format!(
                "{MEGABITS} Mbit/s, {} ms round trip",
                ROUND_TRIP.as_millis()
            )
        } else {
            "loopback".to_owned()
        };
        report.table(
            format!("Pull and read a share of the files, {link}"),
            &["% read", "plain pull s", "lazy s", "×", "EROFS s", "×"],
            all.chunks(CONTESTANTS.len())
                .map(row)
                .collect::<anyhow::Result<_>>()?,
        );
        let curve = |contestant: &&str| Curve {
            label: (*contestant).to_owned(),
            points: all
                .iter()
                .filter(|runs| runs.contestant == *contestant)
                .map(|runs| (f64::from(runs.share), runs.spread().median))
                .collect(),
        };
        report.plot(Plot::Lines(Lines {
            title: format!("Pull and read a share of the files, {link}"),
            x: "percent of the files",
            y: "seconds",
            curves: CONTESTANTS.iter().map(curve).collect(),
            marks: Vec::new(),
        }));
        Ok(())
    }

    fn run(&self, runs: &mut Runs) -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let node = self.node(runs.contestant, place.path(), &[])?;
        let link = runs
            .is_far
            .then(|| Link::start(self.server.address, MEGABITS, ROUND_TRIP));
        let address = link
            .as_ref()
            .map_or(self.server.address, |link| link.address);
        let image = self.image(address, runs.contestant);
        let begun = Instant::now();
        node.pull(&image, runs.contestant)?;
        let output = node.run(&image, runs.contestant, &script(runs.share))?;
        runs.seconds.push((output.first - begun).as_secs_f64());
        let text = output.text.trim_matches('\0').to_owned();
        let first = runs.output.get_or_insert_with(|| text.clone());
        ensure!(*first == text, "{first:?} and then {text:?}");
        Ok(())
    }

    fn image(&self, address: SocketAddr, contestant: &str) -> String {
        let name = match contestant {
            UNPACKED => &self.source,
            _ => "python/image:1",
        };
        format!("{address}/{name}")
    }

    fn node(
        &self,
        contestant: &'static str,
        place: &Path,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Node> {
        let starlift = |driver| {
            let settings = [settings, &[("DRIVER", driver)]].concat();
            Snapshotter::starlift(contestant, &self.arguments.starlift, place, &settings)
        };
        let snapshotters = match contestant {
            LAZY => vec![starlift("fuse")?],
            EROFS => vec![starlift("erofs")?],
            _ => Vec::new(),
        };
        Node::start(place, snapshotters)
    }
}

impl Runs {
    fn spread(&self) -> Spread {
        Spread::of(self.seconds.iter().copied())
    }
}

/// Returns a script that reads every file whose place in the sorted list falls into the share, and
/// prints the number of bytes.
fn script(share: u32) -> String {
    format!(
        "find / -xdev -type f | LC_ALL=C sort | awk '(NR * 37) % 100 < {share}' | tr '\\n' '\\0' | xargs -0 cat | wc -c\n"
    )
}

/// Returns the row of one share. All contestants must have read the same bytes.
fn row(runs: &[Runs]) -> anyhow::Result<Vec<String>> {
    let [unpacked, lazy, erofs] = runs else {
        anyhow::bail!("{} contestants", runs.len());
    };
    for other in [lazy, erofs] {
        ensure!(other.output == unpacked.output, "{other:?}, {unpacked:?}");
    }
    let times = |other: &Runs| format!("{:.2}", other.spread().median / unpacked.spread().median);
    Ok(vec![
        unpacked.share.to_string(),
        unpacked.spread().show(2),
        lazy.spread().show(2),
        times(lazy),
        erofs.spread().show(2),
        times(erofs),
    ])
}

/// Whether all content of all layers is on the node.
fn is_complete(socket: &Path) -> anyhow::Result<bool> {
    let status = run(&format!(
        "curl -sf --unix-socket {} http://agent/api/v1/status",
        socket.display()
    ))?;
    let status: Value = serde_json::from_str(&status)?;
    let layers = status["layers"].as_array().context("no layers")?;
    let is_held = |layer: &Value| {
        let content = &layer["content"];
        content["bytes"].is_u64() && content["bytes"] == content["held_bytes"]
    };
    Ok(!layers.is_empty() && layers.iter().all(is_held))
}
