//! Opens a layer in a registry: fetches its TOC in one or two requests and verifies it.
//!
//! ```text
//! labels: digest, TOC digest ─ none? ─▶ TOC digest from the manifest
//! GET the blob's last bytes ▶ footer ▶ TOC within? ─ no ─▶ GET the rest of it ▶ inflate ▶ verify
//! ```
//! The bytes are fetched without the digest. Nothing is read from them before it is known.

use std::collections::HashMap;

use estargz::Toc;
use estargz::toc::Limits;

use super::toc_memory::{SectionWeight, TocMemory};
use crate::agent::layer::fetch::Blob;
use crate::agent::layer::spec::LayerSpec;
use crate::aside::aside;
use crate::budget::Full;
use crate::layers::open::{OpenError, Opening};
pub(crate) use crate::layers::open::{Tail, TocDigest};
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, TOC_DIGEST, ZSTD_CHECKSUM};
use crate::oci::{Descriptor, Digest, ImageName, Manifest, Reference, stream};
use crate::registry::{self, Peer};
use crate::transport::{Source, Upstreams};

/// Bytes of a blob's end in the first request: the TOC of some ten thousand files, or the whole of
/// a small layer.
const TAIL: u64 = 512 << 10;
/// The annotations with the TOC digest of a zstd:chunked layer (containers/storage, pkg/chunked).
/// The older name comes second.
const ZSTD_CHECKSUMS: [&str; 2] = [ZSTD_CHECKSUM, OLDER_ZSTD_CHECKSUM];

/// A layer that can be read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub fetched: FetchedTail,
    pub toc: Toc,
    pub toc_digest: TocDigest,
}

/// The reason why a layer is not mounted lazily. Its snapshot is then unpacked the ordinary way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLazy {
    #[error("excluded by a rule of the configuration")]
    Excluded,
    #[error("no TOC digest in labels or manifest")]
    NoTocDigest,
    #[error("layer not in the manifest of {0}")]
    NotInManifest(String),
    #[error("{0:?} is not an image reference: {1}")]
    Reference(String, String),
    #[error("registry")]
    Upstream(#[from] registry::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Tree(#[from] crate::agent::layer::tree::TreeError),
    #[error("no room in a data file")]
    TooLarge(#[from] crate::agent::layer::data::TooLarge),
    #[error("no answer from {0} a moment ago")]
    Unreachable(String),
    #[error("no memory for the TOC")]
    Memory(#[from] Full),
    #[error("opening took longer than {}", humantime::format_duration(*.0))]
    Slow(std::time::Duration),
    #[error("lazy mounts are off: {0}")]
    Off(String),
    #[error("{0}")]
    Internal(String),
}

/// The end of a blob with all of its TOC, as a registry sent it.
#[derive(Debug)]
pub(crate) struct FetchedTail {
    pub blob: Blob,
    pub tail: Tail,
    /// The Starlift server that served it, or `None` if another registry did.
    pub peer: Option<Peer>,
    /// Requests that were sent for it.
    pub requests: u64,
    /// The memory that is reserved for `tail`.
    _weight: SectionWeight,
}

/// The TOC digests that a manifest declares, by layer. A layer that is not lazy has none.
pub(crate) type TocDigests = HashMap<Digest, Option<TocDigest>>;

/// Fetches the end of a layer's blob.
///
/// # Errors
/// If it cannot be fetched or has no footer.
pub(crate) async fn fetch(
    upstreams: &Upstreams,
    reference: &str,
    digest: &Digest,
    memory: &TocMemory,
) -> Result<FetchedTail, NotLazy> {
    let (name, source) = find(upstreams, reference)?;
    let (tail, weight, peer, requests) = tail(&source, &name, digest, memory).await?;
    let blob = Blob {
        source,
        repository: name.repository,
        digest: digest.clone(),
        size: tail.blob_size,
    };
    Ok(FetchedTail {
        blob,
        tail,
        peer,
        requests,
        _weight: weight,
    })
}

impl FetchedTail {
    /// Reads the TOC.
    ///
    /// # Errors
    /// If it is damaged or has another digest.
    pub(crate) async fn verified(
        self,
        toc_digest: TocDigest,
        memory: &TocMemory,
    ) -> Result<Opened, NotLazy> {
        let opening = Opening::new(&self.tail, Limits::default())?;
        let section = opening.section_in(&self.tail)?;
        let parsing = memory.parsing(opening.json_bytes(&section)?).await?;
        let expected = toc_digest.clone();
        // The reserved memory goes along, because the work does not end when its caller is
        // cancelled.
        let read = move || (opening.verified(&section, &expected), parsing).0;
        let toc = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| NotLazy::Internal(error.to_string()))??;
        Ok(Opened {
            fetched: self,
            toc,
            toc_digest,
        })
    }
}

/// Returns the name of an image and the registry that has it.
pub(crate) fn find(upstreams: &Upstreams, reference: &str) -> Result<(ImageName, Source), NotLazy> {
    let bad = |error: crate::oci::name::ParseImageNameError| {
        NotLazy::Reference(reference.to_owned(), error.reason)
    };
    let name: ImageName = reference.parse().map_err(bad)?;
    let source = upstreams.get(&name.host)?;
    Ok((name, source))
}

/// Returns the TOC in the end of a blob. Blocking: a large TOC takes a second.
pub(crate) fn read(tail: &Tail, toc_digest: &TocDigest) -> Result<Toc, NotLazy> {
    let opening = Opening::new(tail, Limits::default())?;
    let section = opening.section_in(tail)?;
    Ok(opening.verified(&section, toc_digest)?)
}

/// Returns the TOC digests of all layers of the image, from its manifest.
///
/// # Errors
/// If the manifest cannot be fetched, or the labels do not say which manifest it is.
pub(crate) async fn toc_digests(
    upstreams: &Upstreams,
    spec: &LayerSpec,
) -> Result<TocDigests, NotLazy> {
    let (name, source) = find(upstreams, &spec.reference)?;
    let by_digest = spec.manifest_digest.clone().map(Reference::Digest);
    let Some(reference) = by_digest.or_else(|| name.reference()) else {
        return Err(NotLazy::NoTocDigest);
    };
    let manifest = source.manifest(&name.repository, &reference).await?;
    let found = aside(manifest.bytes.len(), move || layers(&manifest)).await;
    // An index has no layers. The client would have named the manifest that it chose from it.
    found.map_err(|_no_manifest| NotLazy::NoTocDigest)
}

/// Returns the TOC digest that the manifest declares for the layer.
///
/// # Errors
/// If the manifest does not have the layer, or no TOC digest for it.
pub(crate) fn declared(digests: &TocDigests, spec: &LayerSpec) -> Result<TocDigest, NotLazy> {
    let layer = digests.get(&spec.digest);
    let layer = layer.ok_or_else(|| NotLazy::NotInManifest(spec.reference.clone()))?;
    layer.clone().ok_or(NotLazy::NoTocDigest)
}

fn layers(manifest: &Manifest) -> Result<TocDigests, serde_json::Error> {
    let mut found = TocDigests::new();
    stream::for_each_descriptor(&manifest.bytes, "layers", |layer| {
        let toc_digest = toc_digest(&layer);
        found.entry(layer.digest).or_insert(toc_digest);
    })?;
    Ok(found)
}

fn toc_digest(layer: &Descriptor) -> Option<TocDigest> {
    let digest = |key: &str| layer.annotations.get(key)?.as_str()?.parse::<Digest>().ok();
    let section = || ZSTD_CHECKSUMS.iter().find_map(|key| digest(key));
    digest(TOC_DIGEST)
        .map(TocDigest::Json)
        .or_else(|| section().map(TocDigest::Section))
}

/// Returns the end of a blob with all of its TOC, the memory reserved for it, the Starlift server
/// that served it, and the number of requests.
async fn tail(
    source: &Source,
    name: &ImageName,
    digest: &Digest,
    memory: &TocMemory,
) -> Result<(Tail, SectionWeight, Option<Peer>, u64), NotLazy> {
    let mut weight = memory.section(TAIL).await?;
    let body = source.blob_tail(&name.repository, digest, TAIL).await?;
    let (blob_size, start, peer) = (body.blob_size, body.range.start, body.peer.clone());
    let tail = Tail {
        blob_size,
        start,
        bytes: body.read(TAIL).await?,
    };
    let (_, toc) = Opening::new(&tail, Limits::default())?.section((), None)?;
    if toc.start >= start {
        weight.shrink_to(tail.bytes.len() as u64);
        return Ok((tail, weight, peer, 1));
    }
    // Released first: no caller waits for more memory while it holds some.
    drop(weight);
    let weight = memory.section(blob_size - toc.start).await?;
    let body = source
        .blob(&name.repository, digest, Some(toc.start..start))
        .await?;
    let front = body.read(start - toc.start).await?;
    let tail = Tail {
        blob_size,
        start: toc.start,
        bytes: [front, tail.bytes].concat().into(),
    };
    Ok((tail, weight, peer, 2))
}
