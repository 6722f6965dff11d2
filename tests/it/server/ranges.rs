//! Profiles that are inferred from the range requests of lazy clients.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use starlift::oci::Digest;
use starlift::store::Store;
use starlift::tocs::Tocs;

use super::Stage;
use super::profiles::{path_of, stack_of};
use crate::support::eventually::eventually_async;
use crate::support::image::{ImageBuilder, Random};
use crate::support::s3::S3;

/// The block size of stargz-snapshotter.
const BLOCK: u64 = 50_000;

/// A lazy client with its own address.
struct Client {
    http: reqwest::Client,
    server: String,
}

impl Client {
    fn new(stage: &Stage, number: u8) -> Self {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, number));
        let http = reqwest::Client::builder().local_address(address);
        let http = http
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            http,
            server: format!("http://{}/v2/local/app", stage.server.address),
        }
    }

    async fn manifest(&self) -> Value {
        self.http
            .get(format!("{}/manifests/v1", self.server))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    async fn blob(&self, digest: &Digest, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = self.http.get(format!("{}/blobs/{digest}", self.server));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        response.bytes().await.unwrap();
        status
    }

    async fn range(
        &self,
        digest: &Digest,
        range: &Range<u64>,
        headers: &[(&str, &str)],
    ) -> StatusCode {
        let text = format!("bytes={}-{}", range.start, range.end - 1);
        self.blob(digest, &[&[("range", text.as_str())], headers].concat())
            .await
    }
}

/// A layer of the converted image, with the positions of its files.
struct Layer {
    digest: Digest,
    size: u64,
    /// Files that have several blocks of their own, in the order of their bytes.
    large: Vec<(String, Range<u64>)>,
}

impl Layer {
    /// Returns the range that stargz-snapshotter requests to read a file.
    fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        range.start / BLOCK * BLOCK..(range.end.div_ceil(BLOCK) * BLOCK).min(self.size)
    }

    /// Returns the end of the blob, which a mount reads first.
    fn tail(&self) -> Range<u64> {
        (self.size - 1) / BLOCK * BLOCK..self.size
    }
}

impl Stage {
    async fn push_large(&self) {
        let image = ImageBuilder::new(11)
            .layers(2)
            .files(12)
            .max_file(900_000)
            .build();
        self.registry.push("app", "v1", &image);
    }

    async fn layer(&self, manifest: &Value, number: usize) -> Layer {
        let descriptor = &manifest["layers"][number];
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        let tocs = Tocs::new(self.store.clone());
        let toc = tocs
            .toc(&tocs.layer(&digest).await.unwrap().unwrap())
            .await
            .unwrap();
        let mut large = Vec::new();
        for entry in toc.entries() {
            let chunks: Vec<_> = entry.node.chunks().collect();
            if let (Some(first), Some(last)) = (chunks.first(), chunks.last()) {
                let range = first.range.start..last.range.end;
                if range.end - range.start > 3 * BLOCK {
                    large.push((String::from_utf8(entry.path).unwrap(), range));
                }
            }
        }
        assert!(large.len() >= 3, "{large:?}");
        large.sort_by_key(|(_, range)| range.start);
        Layer {
            digest,
            size: descriptor["size"].as_u64().unwrap(),
            large,
        }
    }
}

fn paths(profile: &Value) -> Vec<&str> {
    profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn profiles_are_inferred_from_the_ranges_of_clients_that_report_nothing() {
    let stage =
        Stage::with(|config| config.profiles.merge_interval = Duration::from_millis(10)).await;
    stage.push_large().await;
    let client = Client::new(&stage, 5);
    let manifest = client.manifest().await;
    let layer = stage.layer(&manifest, 1).await;
    assert_eq!(
        client.range(&layer.digest, &(0..2), &[]).await,
        206,
        "a check that the blob exists"
    );
    assert_eq!(client.range(&layer.digest, &layer.tail(), &[]).await, 206);
    let [(first, at_first), .., (second, at_second)] = &layer.large[..] else {
        unreachable!()
    };
    // The later file is read first.
    for range in [at_second, at_first] {
        assert_eq!(
            client.range(&layer.digest, &layer.blocks(range), &[]).await,
            206
        );
    }
    // Agents report their reads themselves, and clients that unpack read whole blobs.
    let (_, ignored) = &layer.large[1];
    for purpose in ["read", "prefetch", "background"] {
        let header = [("starlift-purpose", purpose)];
        assert_eq!(
            client
                .range(&layer.digest, &layer.blocks(ignored), &header)
                .await,
            206
        );
    }
    assert_eq!(client.blob(&layer.digest, &[]).await, 200);
    // The ranges of clients that fetched no manifest are ignored too.
    let other = Client::new(&stage, 6);
    assert_eq!(
        other
            .range(&layer.digest, &layer.blocks(ignored), &[])
            .await,
        206
    );

    let path = path_of(&stack_of(&manifest));
    let profile = stage
        .profile_when(&path, |profile| profile["observers"] != 0)
        .await;
    assert_eq!(
        (paths(&profile), &profile["observers"]),
        (vec![second.as_str(), first], &json!(1))
    );
    assert!(
        profile["files"]
            .as_array()
            .unwrap()
            .iter()
            .all(|file| file["sources"] == json!(["ranges"]))
    );
}

#[tokio::test]
async fn ranges_are_redirected_once_the_image_is_known() {
    let bucket = S3::start().await;
    let stage = Stage::over(
        Store::open(&bucket.config("fleet")).await.unwrap(),
        |config| {
            config.redirect = true;
            config.profiles.merge_interval = Duration::from_millis(10);
            config.profiles.starts_before_redirect = 1;
        },
    )
    .await;
    stage.push_large().await;
    let client = Client::new(&stage, 5);
    let manifest = client.manifest().await;
    let layer = stage.layer(&manifest, 0).await;
    eventually_async("the range is proxied", async || {
        client.range(&layer.digest, &layer.tail(), &[]).await == 206
    })
    .await;
    assert_eq!(
        client.blob(&layer.digest, &[]).await,
        307,
        "whole blobs are redirected at once"
    );
    assert_eq!(
        client
            .range(
                &layer.digest,
                &layer.tail(),
                &[("starlift-purpose", "read")]
            )
            .await,
        307
    );
    assert_eq!(
        client
            .range(&layer.digest, &layer.blocks(&layer.large[0].1), &[])
            .await,
        206
    );
    stage
        .profile_when(&path_of(&stack_of(&manifest)), |profile| {
            profile["observers"] == 1
        })
        .await;
    eventually_async("the range is redirected", async || {
        client.range(&layer.digest, &layer.tail(), &[]).await == 307
    })
    .await;
}

#[tokio::test]
async fn a_rush_of_odd_ranges_does_not_displace_the_ranges_of_other_clients() {
    let stage =
        Stage::with(|config| config.profiles.merge_interval = Duration::from_millis(10)).await;
    stage.push_large().await;
    let honest: Vec<_> = (5..8).map(|number| Client::new(&stage, number)).collect();
    let manifest = honest[0].manifest().await;
    let layer = stage.layer(&manifest, 0).await;
    let mut random = Random::new(3);
    let mut odd = |count: u64| {
        let one = |_| {
            let start = random.below(layer.size * 2);
            format!("{start}-{}", start + random.below(layer.size))
        };
        format!(
            "bytes={}",
            (0..count).map(one).collect::<Vec<_>>().join(",")
        )
    };
    for number in [20, 21] {
        let client = Client::new(&stage, number);
        client.manifest().await;
        for count in [1, 1, 2, 70, 900].repeat(4) {
            let status = client.blob(&layer.digest, &[("range", &odd(count))]).await;
            assert!(matches!(status.as_u16(), 200 | 206 | 416), "{status}");
        }
    }
    for client in &honest {
        client.manifest().await;
        assert_eq!(client.range(&layer.digest, &layer.tail(), &[]).await, 206);
        for (_, range) in &layer.large[..2] {
            assert_eq!(
                client.range(&layer.digest, &layer.blocks(range), &[]).await,
                206
            );
        }
    }
    let is_known = |profile: &Value| {
        let paths = paths(profile);
        layer.large[..2]
            .iter()
            .all(|(path, _)| paths.contains(&path.as_str()))
    };
    stage
        .profile_when(&path_of(&stack_of(&manifest)), is_known)
        .await;
}
