//! The runs: some clients pull from some replicas, first cold, then warm, then ranges and whole
//! layers in a closed loop.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;

use crate::scale::clients::{self, Pulled, client, pull, resolve};
use crate::scale::fleet::{Bucket, Fleet, by_replica};
use crate::scale::measured::{Done, Phase, Ranges, Run};
use crate::soak::upstream::{Image, Upstream};
use crate::support::image::Random;

/// Images that show how soon a replica notices another's conversion. They come after the pulled
/// ones.
pub(super) const NOTICED: usize = 6;

/// The state that all runs share.
pub(super) struct Load<'l> {
    pub(super) executable: &'l Path,
    pub(super) upstream: &'l Upstream,
    pub(super) bucket: &'l Bucket,
    pub(super) place: &'l Path,
    pub(super) images: usize,
    pub(super) share: f64,
    pub(super) seconds: u64,
}

/// The kind of requests of a closed loop.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Range(usize),
    Whole,
}

impl Load<'_> {
    fn images(&self) -> &[Image] {
        &self.upstream.images[..self.images]
    }

    async fn fleet(&self, name: &str, replicas: usize) -> anyhow::Result<Fleet<'_>> {
        let of = (name, replicas);
        Fleet::start(self.executable, of, self.upstream, self.bucket, self.place).await
    }

    pub(super) async fn run(&self, replicas: usize, clients: usize) -> anyhow::Result<Run> {
        let name = format!("run-{replicas}-{clients}");
        let fleet = self.fleet(&name, replicas).await?;
        let cold = self.pulls(&fleet, clients).await?;
        let conversions = fleet
            .counted("starlift_layers_total{outcome=\"converted\"}")
            .await?;
        let shares = by_replica(&fleet).await?;
        ensure!(
            shares.values().all(|count| *count > 0.0),
            "a replica got no request: {shares:?}"
        );
        let warm = self.pulls(&fleet, clients).await?;
        Ok(Run {
            replicas,
            clients,
            cold,
            warm,
            conversions,
            small: self
                .closed_loop(&fleet, clients, Kind::Range(Ranges::SMALL))
                .await?,
            large: self
                .closed_loop(&fleet, clients, Kind::Range(Ranges::LARGE))
                .await?,
            whole: self.closed_loop(&fleet, clients, Kind::Whole).await?,
        })
    }

    /// Every client pulls every image, each beginning with another one.
    async fn pulls(&self, fleet: &Fleet<'_>, clients: usize) -> anyhow::Result<Phase> {
        let one = |number: usize| async move {
            let client = client()?;
            let mut done = Done::default();
            let images = self.images();
            for step in 0..images.len() {
                let image = &images[(number + step) % images.len()];
                done += pull(&client, fleet.address, image, self.share).await?;
            }
            anyhow::Ok(done)
        };
        let all = async { try_join_all((0..clients).map(one)).await };
        let (done, used) = fleet.cost(all).await?;
        Ok(Phase {
            done: sum(done),
            used,
        })
    }

    async fn closed_loop(
        &self,
        fleet: &Fleet<'_>,
        clients: usize,
        kind: Kind,
    ) -> anyhow::Result<Phase> {
        let mut pulled = Vec::new();
        let (first, mut unused) = (client()?, Done::default());
        for image in self.images() {
            pulled.push(resolve(&first, fleet.address, image, &mut unused).await?);
        }
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let one = |number: usize| {
            let pulled = &pulled;
            async move { ask_until(until, pulled, number, kind).await }
        };
        let all = async { try_join_all((0..clients).map(one)).await };
        let (done, used) = fleet.cost(all).await?;
        Ok(Phase {
            done: sum(done),
            used,
        })
    }

    /// Asks all replicas for a new image at once. Returns for each image the seconds from the first
    /// answer to the last.
    pub(super) async fn notice(&self, replicas: usize) -> anyhow::Result<Vec<f64>> {
        let fleet = self.fleet(&format!("notice-{replicas}"), replicas).await?;
        let client = client()?;
        let mut late = Vec::new();
        for image in &self.upstream.images[self.images..] {
            let answers = fleet.replicas.iter().map(|replica| {
                let client = &client;
                async move { answered(client, replica.address, image).await }
            });
            let times = try_join_all(answers).await?;
            let first = times.iter().copied().fold(f64::INFINITY, f64::min);
            let last = times.iter().copied().fold(0.0, f64::max);
            late.push(last - first);
        }
        Ok(late)
    }
}

/// Returns the seconds until the replica has answered with the converted image.
async fn answered(
    client: &reqwest::Client,
    address: SocketAddr,
    image: &Image,
) -> anyhow::Result<f64> {
    let begun = Instant::now();
    clients::resolve(client, address, image, &mut Done::default()).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn ask_until(
    until: Instant,
    pulled: &[Pulled],
    number: usize,
    kind: Kind,
) -> anyhow::Result<Done> {
    let (client, mut random) = (client()?, Random::new(seed(number)));
    let mut done = Done::default();
    while Instant::now() < until {
        let image = &pulled[random.index(pulled.len())];
        match kind {
            Kind::Range(length) => {
                image
                    .any_range(&client, length, &mut random, &mut done)
                    .await?;
            }
            Kind::Whole => image.any_layer(&client, &mut random, &mut done).await?,
        }
    }
    Ok(done)
}

fn seed(number: usize) -> u64 {
    1 + number as u64
}

fn sum(all: Vec<Done>) -> Done {
    let mut sum = Done::default();
    all.into_iter().for_each(|done| sum += done);
    sum
}
