//! Clients that pull as lazy nodes do: the manifest, the configuration, the end of each layer, and
//! some ranges of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::header;
use serde_json::Value;

use crate::figures::float;
use crate::scale::measured::Done;
use crate::server::MANIFEST_TYPE;
use crate::soak::upstream::{Image, REPOSITORY, digest};
use crate::support::image::Random;

/// The end of a layer, which has its footer and the TOC of these images.
const TAIL: usize = 64 << 10;
/// The length of a range that a lazy pull reads.
pub(super) const PULL_RANGE: usize = 128 << 10;
/// The time after which a client gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(500);

/// A converted image as its manifest describes it.
#[derive(Debug, Clone)]
pub(super) struct Pulled {
    /// The URL of the image's blobs.
    blobs: String,
    config: String,
    /// Digest and length of each layer.
    pub(super) layers: Vec<(String, usize)>,
}

pub(super) fn client() -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().timeout(PATIENCE).build()?)
}

/// Returns the image once it is answered converted, and counts what that took.
pub(super) async fn resolve(
    client: &reqwest::Client,
    address: SocketAddr,
    image: &Image,
    done: &mut Done,
) -> anyhow::Result<Pulled> {
    let base = format!("http://{address}/v2/honest/{REPOSITORY}");
    let url = format!("{base}/manifests/{}", image.tag);
    let begun = Instant::now();
    let mut is_first = true;
    loop {
        let request = client.get(&url).header(header::ACCEPT, MANIFEST_TYPE);
        let answer = request.send().await?.error_for_status()?;
        let is_source = answer.headers().contains_key(header::WARNING);
        let body = answer.bytes().await?;
        done.bytes += float(body.len() as u64);
        if !is_source {
            return Pulled::read(&base, &body);
        }
        done.source_first += f64::from(u8::from(is_first));
        is_first = false;
        ensure!(begun.elapsed() < PATIENCE, "{url} is not converted");
        tokio::time::sleep(RETRY).await;
    }
}

impl Pulled {
    fn read(base: &str, manifest: &[u8]) -> anyhow::Result<Self> {
        let manifest: Value = serde_json::from_slice(manifest)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let layer = |layer: &Value| {
            let digest = layer["digest"].as_str()?.to_owned();
            Some((digest, usize::try_from(layer["size"].as_u64()?).ok()?))
        };
        Ok(Self {
            blobs: format!("{base}/blobs"),
            config: manifest["config"]["digest"]
                .as_str()
                .context("no configuration")?
                .to_owned(),
            layers: layers.iter().filter_map(layer).collect(),
        })
    }

    /// Reads this part of a layer.
    pub(super) async fn range(
        &self,
        client: &reqwest::Client,
        layer: &str,
        (first, length): (usize, usize),
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let range = format!("bytes={first}-{}", first + length - 1);
        let request = client.get(format!("{}/{layer}", self.blobs));
        let answer = request.header(header::RANGE, range).send().await?;
        ensure!(
            answer.status() == reqwest::StatusCode::PARTIAL_CONTENT,
            "{layer}: {}",
            answer.status()
        );
        let body = answer.bytes().await?;
        ensure!(body.len() == length, "{layer}: {} bytes", body.len());
        done.ranges += 1.0;
        done.bytes += float(length as u64);
        Ok(())
    }

    /// Reads a random layer whole.
    pub(super) async fn any_layer(
        &self,
        client: &reqwest::Client,
        random: &mut Random,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let (layer, size) = &self.layers[random.index(self.layers.len())];
        let answer = client.get(format!("{}/{layer}", self.blobs)).send().await?;
        let body = answer.error_for_status()?.bytes().await?;
        ensure!(body.len() == *size, "{layer}: {} bytes", body.len());
        done.wholes += 1.0;
        done.whole_bytes += float(body.len() as u64);
        Ok(())
    }

    /// Reads a range of a random layer.
    pub(super) async fn any_range(
        &self,
        client: &reqwest::Client,
        length: usize,
        random: &mut Random,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let (layer, size) = &self.layers[random.index(self.layers.len())];
        let length = length.min(*size);
        let first = random.index(size - length + 1);
        self.range(client, layer, (first, length), done).await
    }
}

/// Pulls one image and reads `share` of each of its layers.
pub(super) async fn pull(
    client: &reqwest::Client,
    address: SocketAddr,
    image: &Image,
    share: f64,
) -> anyhow::Result<Done> {
    let mut done = Done {
        pulls: 1.0,
        ..Done::default()
    };
    let pulled = resolve(client, address, image, &mut done).await?;
    let config = client.get(format!("{}/{}", pulled.blobs, pulled.config));
    let config_bytes = config.send().await?.error_for_status()?.bytes().await?;
    ensure!(
        digest(&config_bytes) == pulled.config,
        "wrong configuration"
    );
    done.bytes += float(config_bytes.len() as u64);
    for (layer, size) in &pulled.layers {
        let tail = TAIL.min(*size);
        pulled
            .range(client, layer, (size - tail, tail), &mut done)
            .await?;
        for first in starts(*size, share) {
            let length = PULL_RANGE.min(size - first);
            pulled
                .range(client, layer, (first, length), &mut done)
                .await?;
        }
    }
    Ok(done)
}

/// Returns the starts of ranges that are spread over a layer and are about `share` of it.
fn starts(size: usize, share: f64) -> impl Iterator<Item = usize> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let count = (float((size / PULL_RANGE) as u64) * share).ceil().max(1.0) as usize;
    let step = (size / count).max(1);
    (0..count).map(move |number| number * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_a_pull_are_a_share_of_the_layer() {
        let size = 100 * PULL_RANGE;
        let starts: Vec<_> = starts(size, 0.1).collect();
        assert_eq!(starts.len(), 10);
        assert!(starts.iter().all(|start| start + PULL_RANGE <= size));
        assert_eq!(super::starts(10, 0.1).collect::<Vec<_>>(), [0]);
    }
}
