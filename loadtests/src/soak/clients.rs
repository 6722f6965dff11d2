//! Well-behaved clients. They pull whole images and ranges, and compare every byte with the
//! expected one.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use parking_lot::Mutex;
use reqwest::header;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::server::MANIFEST_TYPE;
use crate::soak::tally::{Outcome, Tally};
use crate::soak::upstream::{Image, REPOSITORY, Upstream, digest};
use crate::support::image::Random;

/// The time after which a client gives up a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of layers that are kept to compare ranges with.
const KNOWN_BYTES: usize = 256 << 20;
/// Longest requested range.
const LONGEST_RANGE: usize = 256 << 10;

/// State that all clients share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) replicas: Vec<SocketAddr>,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) tally: Arc<Tally>,
    known: Mutex<Known>,
}

/// Completely received and verified layers, by upstream name and digest.
#[derive(Debug, Default)]
struct Known {
    layers: Vec<(&'static str, String, bytes::Bytes)>,
    bytes: usize,
}

/// A completed answer to a request, or the way it failed.
type Answered = Result<(reqwest::StatusCode, header::HeaderMap, bytes::Bytes), Outcome>;

impl Shared {
    pub(crate) fn new(
        replicas: Vec<SocketAddr>,
        upstreams: Vec<Upstream>,
        tally: Arc<Tally>,
    ) -> Arc<Self> {
        Arc::new(Self {
            replicas,
            upstreams,
            tally,
            known: Mutex::default(),
        })
    }

    fn any_replica(&self, random: &mut Random) -> SocketAddr {
        self.replicas[random.index(self.replicas.len())]
    }

    /// Pulls one random image as a container engine does.
    pub(crate) async fn pull(&self, client: &reqwest::Client, random: &mut Random) -> Outcome {
        // Three of four pulls are from the honest registry, the first in the list. A pull from
        // another one can take as long as a client's patience.
        let others = if random.index(4) == 0 {
            self.upstreams.len()
        } else {
            1
        };
        let upstream = &self.upstreams[random.index(others)];
        let image = &upstream.images[random.index(upstream.images.len())];
        let base = format!(
            "http://{}/v2/{}/{REPOSITORY}",
            self.any_replica(random),
            upstream.behaviour.name()
        );
        match self.pull_image(client, &base, upstream, image).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn pull_image(
        &self,
        client: &reqwest::Client,
        base: &str,
        upstream: &Upstream,
        image: &Image,
    ) -> Result<Outcome, Outcome> {
        let (_, headers, body) =
            get(client, &format!("{base}/manifests/{}", image.tag), None).await?;
        let said = headers
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok());
        if said != Some(&digest(&body)) {
            return Err(Outcome::Wrong(format!(
                "manifest of {base}: digest header {said:?} does not match the bytes"
            )));
        }
        let manifest: Value =
            serde_json::from_slice(&body).map_err(|error| Outcome::Wrong(error.to_string()))?;
        let config = manifest["config"]["digest"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.blob(client, base, &config).await?;
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        if layers.len() != image.layers.len() {
            return Err(Outcome::Wrong(format!("{} layers in {base}", layers.len())));
        }
        let mut converted = false;
        for (number, layer) in layers.iter().enumerate() {
            let name = layer["digest"].as_str().unwrap_or_default();
            let bytes = self.blob(client, base, name).await?;
            if name != image.layers[number] {
                converted = true;
                begins_with_the_source(layer, &bytes, &image.diff_ids[number])
                    .map_err(|error| Outcome::Wrong(format!("{base}@{name}: {error:#}")))?;
                self.remember(upstream.behaviour.name(), name, bytes);
            }
        }
        Ok(if converted {
            Outcome::Converted
        } else {
            Outcome::Source
        })
    }

    /// Pulls a whole blob and verifies its digest.
    async fn blob(
        &self,
        client: &reqwest::Client,
        base: &str,
        name: &str,
    ) -> Result<bytes::Bytes, Outcome> {
        let (_, _, body) = get(client, &format!("{base}/blobs/{name}"), None).await?;
        if digest(&body) == name {
            Ok(body)
        } else {
            Err(Outcome::Wrong(format!("{base}@{name}: wrong bytes")))
        }
    }

    fn remember(&self, upstream: &'static str, name: &str, bytes: bytes::Bytes) {
        let mut known = self.known.lock();
        let is_new = known.layers.iter().all(|(_, other, _)| other != name);
        if is_new && known.bytes + bytes.len() <= KNOWN_BYTES {
            known.bytes += bytes.len();
            known.layers.push((upstream, name.to_owned(), bytes));
        }
    }

    /// Requests one to eight ranges of a layer: a converted layer, or one that the honest registry
    /// holds.
    pub(crate) async fn ranges(&self, client: &reqwest::Client, random: &mut Random) -> Outcome {
        let Some((upstream, name, bytes)) = self.any_layer(random) else {
            return Outcome::Source;
        };
        let url = format!(
            "http://{}/v2/{upstream}/{REPOSITORY}/blobs/{name}",
            self.any_replica(random)
        );
        let count = [1, 1, 1, 2, 8][random.index(5)];
        let spans: Vec<(usize, usize)> = (0..count)
            .map(|_| {
                let first = random.index(bytes.len());
                (
                    first,
                    (first + random.index(LONGEST_RANGE)).min(bytes.len() - 1),
                )
            })
            .collect();
        let wanted: Vec<String> = spans
            .iter()
            .map(|(first, last)| format!("{first}-{last}"))
            .collect();
        match get(client, &url, Some(&format!("bytes={}", wanted.join(",")))).await {
            Ok((reqwest::StatusCode::PARTIAL_CONTENT, headers, body)) => {
                match parts(&headers, &body) {
                    Ok(parts)
                        if parts
                            .iter()
                            .all(|(first, part)| bytes[*first..].starts_with(part)) =>
                    {
                        Outcome::Ranges
                    }
                    Ok(_) => Outcome::Wrong(format!("ranges of {url}: wrong bytes")),
                    Err(error) => Outcome::Wrong(format!("ranges of {url}: {error:#}")),
                }
            }
            Ok((_, _, body)) if body == bytes => Outcome::Ranges,
            Ok((status, ..)) => {
                Outcome::Wrong(format!("ranges of {url}: {status} with wrong bytes"))
            }
            Err(outcome) => outcome,
        }
    }

    fn any_layer(&self, random: &mut Random) -> Option<(&'static str, String, bytes::Bytes)> {
        // Half of the requests are for converted layers, half for blobs that only the registry
        // holds.
        let known = self.known.lock();
        if random.index(2) == 0 && !known.layers.is_empty() {
            return Some(known.layers[random.index(known.layers.len())].clone());
        }
        let honest = self.upstreams.first()?;
        let image = &honest.images[random.index(honest.images.len())];
        let name = &image.layers[random.index(image.layers.len())];
        Some((
            honest.behaviour.name(),
            name.clone(),
            honest.blob(name)?.clone(),
        ))
    }
}

/// Creates a client with its own loopback address.
pub(crate) fn client(number: u8) -> anyhow::Result<reqwest::Client> {
    let address = std::net::Ipv4Addr::new(127, 0, 1, number);
    Ok(reqwest::Client::builder()
        .local_address(std::net::IpAddr::from(address))
        .timeout(PATIENCE)
        .build()?)
}

async fn get(client: &reqwest::Client, url: &str, range: Option<&str>) -> Answered {
    let mut request = client.get(url).header(header::ACCEPT, MANIFEST_TYPE);
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    let response = request.send().await.map_err(|_error| Outcome::Broken)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Outcome::Refused(status.as_u16()));
    }
    let headers = response.headers().clone();
    // A body that breaks off is an honest answer to a fault. A completed one must be right.
    let body = response.bytes().await.map_err(|_error| Outcome::Broken)?;
    Ok((status, headers, body))
}

/// Checks that the converted layer inflates to a tar that begins with the source's tar.
fn begins_with_the_source(layer: &Value, bytes: &[u8], diff_id: &str) -> anyhow::Result<()> {
    let size = layer["annotations"]["dev.starlift.source.size"]
        .as_str()
        .context("no size of the source tar")?
        .parse::<u64>()?;
    let mut hash = Sha256::new();
    let mut piece = [0; 64 << 10];
    let mut prefix = MultiGzDecoder::new(bytes).take(size);
    loop {
        let read = prefix.read(&mut piece)?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
    }
    anyhow::ensure!(
        hex::encode(hash.finalize()) == diff_id,
        "does not begin with the source's tar"
    );
    Ok(())
}

/// Returns the parts of a 206 answer, each as offset and bytes.
fn parts(
    headers: &header::HeaderMap,
    body: &bytes::Bytes,
) -> anyhow::Result<Vec<(usize, bytes::Bytes)>> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(range) = text(header::CONTENT_RANGE) {
        return Ok(vec![(begin(range)?, body.clone())]);
    }
    let boundary = text(header::CONTENT_TYPE)
        .and_then(|kind| kind.split_once("boundary="))
        .context("no boundary")?
        .1;
    let delimiter = format!("\r\n--{boundary}");
    let mut found = Vec::new();
    let mut at = find(body, delimiter.trim_start().as_bytes(), 0).context("no part")?;
    while let Some(head_end) = find(body, b"\r\n\r\n", at) {
        let head = String::from_utf8_lossy(&body[at..head_end]).to_ascii_lowercase();
        let range = head
            .split_once("content-range:")
            .context("part without a range")?
            .1
            .to_owned();
        let end = find(body, delimiter.as_bytes(), head_end + 4).context("part without an end")?;
        found.push((begin(&range)?, body.slice(head_end + 4..end)));
        at = end + delimiter.len();
    }
    Ok(found)
}

fn begin(content_range: &str) -> anyhow::Result<usize> {
    let (first, _) = content_range
        .trim()
        .trim_start_matches("bytes ")
        .split_once('-')
        .context("no span")?;
    Ok(first.parse()?)
}

fn find(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    let found = haystack
        .get(from..)?
        .windows(needle.len())
        .position(|window| window == needle)?;
    Some(from + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_multipart_answer_are_found() {
        let body = "--X\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--X\r\nContent-Range: bytes 7-8/9\r\n\r\nhi\r\n--X--\r\n";
        let content_type = header::HeaderValue::from_static("multipart/byteranges; boundary=X");
        let headers = [(header::CONTENT_TYPE, content_type)]
            .into_iter()
            .collect::<header::HeaderMap>();
        let found = parts(&headers, &bytes::Bytes::from_static(body.as_bytes())).unwrap();
        assert_eq!(found, [(0, "ab".into()), (7, "hi".into())]);
    }
}
