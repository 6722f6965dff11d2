//! The registries from which the soak pulls: an honest one, and several faulty ones.
//!
//! All hold the same kind of random images. The registry's behaviour decides for each request how
//! the answer is spoiled. Manifests are always right, so that a server gets as far as the blobs.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::server::MANIFEST_TYPE;
use crate::support::image::Random;

/// The one repository of each registry.
pub(crate) const REPOSITORY: &str = "app";
/// The number of bytes that a trickling registry sends at a time, and the pause between.
const TRICKLE: (usize, Duration) = (16, Duration::from_secs(1));
/// The pause before each answer of a slow registry.
const SLOW: Duration = Duration::from_secs(2);
/// A cut answer ends after the first 1/`CUT` of its body.
const CUT: usize = 2;

/// A registry's behaviour when it sends blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Honest,
    /// Sends a few bytes a second, without end.
    Trickles,
    /// Sends bytes of the right length that do not match the digest.
    Lies,
    /// Breaks the connection in the middle of each body.
    Cuts,
    /// Never sends headers.
    Silent,
}

impl Behaviour {
    pub(crate) const ALL: [Self; 5] = [
        Self::Honest,
        Self::Trickles,
        Self::Lies,
        Self::Cuts,
        Self::Silent,
    ];

    /// Returns the name of the upstream with this behaviour.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Trickles => "trickles",
            Self::Lies => "lies",
            Self::Cuts => "cuts",
            Self::Silent => "silent",
        }
    }
}

/// A source image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) tag: String,
    /// SHA-256 of each layer's tar, bottom first, in hex.
    pub(crate) diff_ids: Vec<String>,
    /// The digests of the source layers.
    pub(crate) layers: Vec<String>,
    /// SHA-256 of each file's content as a container sees it, in hex, by its path.
    pub(crate) files: BTreeMap<String, String>,
}

/// A generated layer.
#[derive(Debug, Clone)]
struct Layer {
    bytes: Bytes,
    /// SHA-256 of the tar, in hex.
    diff_id: String,
    files: BTreeMap<String, String>,
}

/// How a registry that is honest otherwise answers for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// Every answer is 503.
    Away,
    /// Every answer comes after a pause.
    Slow,
}

#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) behaviour: Behaviour,
    pub(crate) address: SocketAddr,
    pub(crate) images: Vec<Image>,
    contents: Arc<Contents>,
}

#[derive(Debug)]
struct Contents {
    behaviour: Behaviour,
    trouble: Mutex<Trouble>,
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, Bytes>,
}

impl Upstream {
    /// Starts a registry with `count` random images of up to `largest` bytes a layer. Some share
    /// their lowest layer.
    pub(crate) async fn start(
        behaviour: Behaviour,
        count: usize,
        largest: usize,
    ) -> anyhow::Result<Self> {
        let mut random = Random::new(behaviour as u64 + 1);
        let mut contents = Contents {
            behaviour,
            trouble: Mutex::default(),
            blobs: HashMap::new(),
            manifests: HashMap::new(),
        };
        let base = layer(&mut random, largest)?;
        let mut images = Vec::new();
        for number in 0..count {
            let top = layer(&mut random, largest)?;
            let layers = if number % 2 == 0 {
                vec![base.clone(), top]
            } else {
                vec![top]
            };
            images.push(contents.add(number, &layers));
        }
        let contents = Arc::new(contents);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&contents));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            behaviour,
            address,
            images,
            contents,
        })
    }

    /// Changes how the registry answers from now on.
    pub(crate) fn trouble(&self, trouble: Trouble) {
        *self.contents.trouble.lock() = trouble;
    }

    /// Returns the right bytes of a blob.
    pub(crate) fn blob(&self, digest: &str) -> Option<&Bytes> {
        self.contents.blobs.get(digest)
    }
}

impl Contents {
    /// Stores an image of these layers, bottom first.
    fn add(&mut self, number: usize, layers: &[Layer]) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(|id| format!("sha256:{id}")).collect::<Vec<_>>()},
            "number": number,
        });
        let config = Bytes::from(config.to_string());
        let describe = |media_type: &str, bytes: &Bytes| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| describe("application/vnd.oci.image.layer.v1.tar+gzip", &layer.bytes)).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        for bytes in layers.iter().map(|layer| &layer.bytes).chain([&config]) {
            self.blobs.insert(digest(bytes), bytes.clone());
        }
        let tag = format!("v{number}");
        self.manifests.insert(digest(&manifest), manifest.clone());
        self.manifests.insert(tag.clone(), manifest);
        Image {
            tag,
            diff_ids,
            layers: layers.iter().map(|layer| digest(&layer.bytes)).collect(),
            files: layers
                .iter()
                .flat_map(|layer| layer.files.clone())
                .collect(),
        }
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Returns a random layer, compressed with gzip.
fn layer(random: &mut Random, largest: usize) -> anyhow::Result<Layer> {
    let mut files = BTreeMap::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut left = largest / 8 + random.index(largest);
    let mut number = 0;
    while left > 0 {
        let size = random.index((largest / 4).max(2)).min(left).max(1);
        let mut content = random.bytes(size);
        // Half of the content compresses well.
        content[size / 2..].fill(b'x');
        let mut entry = tar::Header::new_gnu();
        entry.set_size(size as u64);
        entry.set_mode(0o644);
        entry.set_cksum();
        let path = format!("usr/share/{number}");
        tar.append_data(&mut entry, &path, content.as_slice())?;
        files.insert(path, hex::encode(Sha256::digest(&content)));
        left -= size;
        number += 1;
    }
    let tar = tar.into_inner()?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::new(4));
    gzip.write_all(&tar)?;
    Ok(Layer {
        bytes: gzip.finish()?.into(),
        diff_id: hex::encode(Sha256::digest(&tar)),
        files,
    })
}

async fn answer(State(contents): State<Arc<Contents>>, request: Request) -> Response<Body> {
    let trouble = *contents.trouble.lock();
    match trouble {
        Trouble::None => {}
        Trouble::Away => return plain(StatusCode::SERVICE_UNAVAILABLE),
        Trouble::Slow => tokio::time::sleep(SLOW).await,
    }
    let path = request.uri().path().to_owned();
    let Some((kind, reference)) = path
        .strip_prefix(&format!("/v2/{REPOSITORY}/"))
        .and_then(|rest| rest.split_once('/'))
    else {
        return plain(if path == "/v2/" {
            StatusCode::OK
        } else {
            StatusCode::NOT_FOUND
        });
    };
    let (documents, media_type) = match kind {
        "manifests" => (&contents.manifests, MANIFEST_TYPE),
        "blobs" => (&contents.blobs, "application/octet-stream"),
        _ => return plain(StatusCode::NOT_FOUND),
    };
    let Some(bytes) = documents.get(reference).cloned() else {
        return plain(StatusCode::NOT_FOUND);
    };
    let behaviour = if kind == "blobs" {
        contents.behaviour
    } else {
        Behaviour::Honest
    };
    let described = Response::builder()
        .header(header::CONTENT_TYPE, media_type)
        .header("docker-content-digest", digest(&bytes))
        .header(header::ACCEPT_RANGES, "bytes");
    let (status, slice, content_range) = ranged(request.headers(), &bytes);
    let mut response = described
        .status(status)
        .header(header::CONTENT_LENGTH, slice.len());
    if let Some(content_range) = content_range {
        response = response.header(header::CONTENT_RANGE, content_range);
    }
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        spoiled(slice, behaviour).await
    };
    response
        .body(body)
        .unwrap_or_else(|_invalid| plain(StatusCode::INTERNAL_SERVER_ERROR))
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Returns the range for a header of the form `a-b`, `a-` or `-n`; the whole blob otherwise.
fn ranged(headers: &HeaderMap, bytes: &Bytes) -> (StatusCode, Bytes, Option<String>) {
    let total = bytes.len();
    let wanted = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let span = wanted
        .and_then(|text| text.strip_prefix("bytes=")?.split_once('-'))
        .and_then(|(first, last)| {
            let (first, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) => (first, last.saturating_add(1).min(total)),
                (Ok(first), Err(_)) => (first, total),
                (Err(_), Ok(length)) => (total.saturating_sub(length), total),
                (Err(_), Err(_)) => return None,
            };
            (first < end).then_some((first, end))
        });
    match span {
        Some((first, end)) => {
            let content_range = format!("bytes {first}-{}/{total}", end - 1);
            (
                StatusCode::PARTIAL_CONTENT,
                bytes.slice(first..end),
                Some(content_range),
            )
        }
        None => (StatusCode::OK, bytes.clone(), None),
    }
}

async fn spoiled(bytes: Bytes, behaviour: Behaviour) -> Body {
    match behaviour {
        Behaviour::Honest => Body::from(bytes),
        Behaviour::Lies => {
            let mut other = bytes.to_vec();
            if let Some(middle) = other.get_mut(bytes.len() / 2) {
                *middle ^= 1;
            }
            Body::from(other)
        }
        Behaviour::Cuts => {
            let head = bytes.slice(..bytes.len() / CUT);
            let broken = futures::stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut on purpose"))
            });
            Body::from_stream(futures::stream::once(async { Ok(head) }).chain(broken))
        }
        Behaviour::Trickles => {
            let (step, pause) = TRICKLE;
            Body::from_stream(futures::stream::unfold(bytes, move |mut left| async move {
                if left.is_empty() {
                    return None;
                }
                tokio::time::sleep(pause).await;
                let piece = left.split_to(step.min(left.len()));
                Some((Ok::<_, std::io::Error>(piece), left))
            }))
        }
        Behaviour::Silent => std::future::pending().await,
    }
}
