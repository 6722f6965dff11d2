//! Pulls an image with many layers lazily, beside the reference snapshotter, at once and with a long
//! round trip to the registry.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Arguments, EROFS, LAZY, REFERENCE};
use crate::figures::{Spread, float};
use crate::images::Image;
use crate::node::{Node, Snapshotter};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::support::link::Link;

const CONTESTANTS: [&str; 3] = [LAZY, EROFS, REFERENCE];
const LAYERS: usize = 32;
/// The round trips to the registry. The link carries more than the machine can send.
const ROUND_TRIPS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
const MEGABITS: u64 = 100_000;

/// One contestant over one link.
#[derive(Debug)]
struct Pulls {
    round_trip: Duration,
    contestant: &'static str,
    seconds: Vec<f64>,
    requests: Vec<f64>,
}

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let (image, place) = (Image::of_layers(LAYERS)?, tempfile::tempdir()?);
    let upstream = format!("layers=oci:{}", image.dir.display());
    let server = Server::start(&arguments.starlift, place.path(), &[upstream])?;
    server::converted(&format!(
        "http://{}/v2/layers/image/manifests/1",
        server.address
    ))?;
    report.note(format!(
        "pull: {LAYERS} layers; containerd, snapshotter and link new for each; the agent as it comes, the reference \
         without prefetch and background fetch"
    ));
    let over = |round_trip| {
        CONTESTANTS.map(|contestant| Pulls {
            round_trip,
            contestant,
            seconds: Vec::new(),
            requests: Vec::new(),
        })
    };
    let mut pulls: Vec<Pulls> = ROUND_TRIPS.into_iter().flat_map(over).collect();
    for _ in 0..arguments.rounds {
        for pulls in &mut pulls {
            pulls.once(arguments, &server)?;
        }
    }
    let rows = pulls.iter().map(|own| own.row(own.reference(&pulls)));
    report.table(
        "Lazy pull of 32 layers",
        &["round trip", "", "s", "× reference (≤ 1.0)", "requests"],
        rows.collect(),
    );
    report.plot(Plot::Bars(Bars {
        title: format!("Lazy pull of {LAYERS} layers (whisker: best and worst round)"),
        unit: "seconds",
        bars: pulls.iter().map(Pulls::bar).collect(),
        marks: Vec::new(),
    }));
    Ok(())
}

impl Pulls {
    fn once(&mut self, arguments: &Arguments, server: &Server) -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let place = place.path();
        let starlift = |driver| {
            let settings = [("DRIVER", driver)];
            Snapshotter::starlift(self.contestant, &arguments.starlift, place, &settings)
        };
        let snapshotter = match self.contestant {
            LAZY => starlift("fuse"),
            EROFS => starlift("erofs"),
            _ => Snapshotter::reference(REFERENCE, place),
        };
        let node = Node::start(place, vec![snapshotter?])?;
        let link = self.link(server.address);
        let address = link.as_ref().map_or(server.address, |link| link.address);
        let asked = server.requests()?;
        let begun = Instant::now();
        node.pull(&format!("{address}/layers/image:1"), self.contestant)?;
        self.seconds.push(begun.elapsed().as_secs_f64());
        self.requests.push(float(server.requests()? - asked));
        Ok(())
    }

    fn link(&self, server: SocketAddr) -> Option<Link> {
        let is_far = !self.round_trip.is_zero();
        is_far.then(|| Link::start(server, MEGABITS, self.round_trip))
    }

    fn spread(&self) -> Spread {
        Spread::of(self.seconds.iter().copied())
    }

    /// Returns the median of the reference over the same link.
    fn reference(&self, all: &[Self]) -> f64 {
        let is_reference =
            |other: &&Self| other.contestant == REFERENCE && other.round_trip == self.round_trip;
        all.iter()
            .find(is_reference)
            .map_or(f64::NAN, |reference| reference.spread().median)
    }

    fn row(&self, reference: f64) -> Vec<String> {
        vec![
            format!("{} ms", self.round_trip.as_millis()),
            self.contestant.to_owned(),
            self.spread().show(2),
            format!("{:.2}", self.spread().median / reference),
            Spread::of(self.requests.iter().copied()).show(0),
        ]
    }

    fn bar(&self) -> Bar {
        let Spread {
            median,
            least,
            most,
        } = self.spread();
        let group = CONTESTANTS
            .iter()
            .position(|name| *name == self.contestant)
            .unwrap_or_default();
        Bar {
            label: format!("{}, {} ms", self.contestant, self.round_trip.as_millis()),
            value: median,
            least,
            most,
            group,
        }
    }
}
