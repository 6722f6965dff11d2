//! One upstream that can be read from: a registry, an OCI layout, a docker archive.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;

use super::layout::Layout;
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::registry::{Body, Error, Hosted, Peer, Purpose, Registry, Tags};

/// The longest document of an artifact, which is held in memory: as long as a manifest.
const MAX_DOCUMENT: u64 = MAX_MANIFEST_BYTES;

/// One upstream that can be read from.
#[derive(Debug, Clone)]
pub struct Source {
    name: Arc<str>,
    kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Registry(Arc<Registry>),
    /// One that is not configured.
    Hosted(Arc<Hosted>),
    Layout(Arc<Layout>),
}

/// What is asked in the end.
enum Reader {
    Registry(Arc<Registry>),
    Layout(Arc<Layout>),
}

impl Source {
    pub(super) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
        }
    }

    /// The name in front of repositories: `docker.io`, `local`.
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn reader(&self) -> Result<Reader, Error> {
        match &self.kind {
            Kind::Registry(registry) => Ok(Reader::Registry(Arc::clone(registry))),
            Kind::Hosted(hosted) => hosted.registry().await.map(Reader::Registry),
            Kind::Layout(layout) => Ok(Reader::Layout(Arc::clone(layout))),
        }
    }

    /// Asks what `reference` names without counting as a pull where pulls are metered.
    pub async fn resolve(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Descriptor, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.resolve(repository, reference).await,
            Reader::Layout(layout) => layout
                .manifest(repository, reference)
                .await
                .map(|found| found.descriptor()),
        }
    }

    /// The manifest, its digest checked, at most `MAX_MANIFEST_BYTES` long.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.manifest(repository, reference).await,
            Reader::Layout(layout) => layout.manifest(repository, reference).await,
        }
    }

    /// The size of a blob.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.blob_size(repository, digest).await,
            Reader::Layout(layout) => layout.blob_size(digest).await,
        }
    }

    /// The size of a blob, and the Starlift server that has it, if it is one.
    pub async fn locate(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(u64, Option<Peer>), Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.locate(repository, digest).await,
            Reader::Layout(layout) => Ok((layout.blob_size(digest).await?, None)),
        }
    }

    /// A blob, whole or in part. A broken connection is taken up again where it broke; whole blobs are verified.
    ///
    /// A range is cut at the blob's end; one that starts behind it is [`Error::RangeNotSatisfiable`].
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Body, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.blob(repository, digest, range, None).await,
            Reader::Layout(layout) => layout.blob(digest, range).await,
        }
    }

    /// A part of a blob; a Starlift server is told what for.
    pub async fn blob_for(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
        purpose: Purpose,
    ) -> Result<Body, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => {
                registry
                    .blob(repository, digest, Some(range), Some(purpose))
                    .await
            }
            Reader::Layout(layout) => layout.blob(digest, Some(range)).await,
        }
    }

    /// The last `len` bytes of a blob, all of it where it is shorter, and its size: one request wherever suffix ranges
    /// are understood, which nearly all registries and stores do.
    pub async fn blob_tail(
        &self,
        repository: &Repository,
        digest: &Digest,
        len: u64,
    ) -> Result<Body, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.blob_tail(repository, digest, len).await,
            Reader::Layout(layout) => layout.blob_tail(digest, len).await,
        }
    }

    /// Tags in lexical order, at most `n` of them (the upstream may give fewer), behind `last`.
    pub async fn tags(
        &self,
        repository: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<Tags, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.tags(repository, n, last).await,
            Reader::Layout(layout) => layout.tags(repository, n, last).await,
        }
    }

    /// The upstream's referrers of `digest`, by API or by tag schema; empty where it has none.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.referrers(repository, digest).await,
            Reader::Layout(layout) => layout.referrers(digest).await,
        }
    }

    /// The blob that `choose` picks from an artifact's manifest, whole, at most `MAX_DOCUMENT` bytes; `None` where it
    /// picks none.
    pub async fn document(
        &self,
        repository: &Repository,
        artifact: &Digest,
        choose: impl FnOnce(&Manifest) -> Option<Descriptor>,
    ) -> Result<Option<Bytes>, Error> {
        let manifest = self
            .manifest(repository, &Reference::Digest(artifact.clone()))
            .await?;
        let Some(chosen) = choose(&manifest) else {
            return Ok(None);
        };
        if chosen.size > MAX_DOCUMENT {
            return Err(Error::TooLarge {
                limit: MAX_DOCUMENT,
            });
        }
        let body = self.blob(repository, &chosen.digest, None).await?;
        if body.blob_size != chosen.size {
            return Err(Error::Malformed(format!(
                "{} has another size than its manifest says",
                chosen.digest
            )));
        }
        let pieces: Vec<Bytes> = body.stream.try_collect().await?;
        Ok(Some(pieces.concat().into()))
    }

    /// Sends a blob of `size` bytes unless the registry has it already. The stream is read once: no retries.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        stream: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), Error> {
        match self.reader().await? {
            Reader::Registry(registry) => {
                registry.push_blob(repository, digest, size, stream).await
            }
            Reader::Layout(_) => Err(Error::ReadOnly(self.name.to_string())),
        }
    }

    /// Puts a manifest under a tag or its digest; all that it names must be there.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        match self.reader().await? {
            Reader::Registry(registry) => {
                registry
                    .push_manifest(repository, reference, manifest)
                    .await
            }
            Reader::Layout(_) => Err(Error::ReadOnly(self.name.to_string())),
        }
    }

    /// Puts a manifest that refers to `subject`, and lists it among the referrers. What it names must be there.
    pub async fn push_referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        manifest: &Manifest,
        listed: &Descriptor,
    ) -> Result<(), Error> {
        match self.reader().await? {
            Reader::Registry(registry) => {
                registry
                    .push_referrer(repository, subject, manifest, listed)
                    .await
            }
            Reader::Layout(_) => Err(Error::ReadOnly(self.name.to_string())),
        }
    }
}
