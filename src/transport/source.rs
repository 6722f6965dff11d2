//! One upstream that can be read from: a registry, an OCI layout, a docker archive.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;

use super::layout::Layout;
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::registry::{
    Body, ClientLogin, Error, Hosted, Peer, Purpose, Reached, Referrers, Registry, Tags,
};
use crate::shares::{Turn, Urgency};

/// The longest document of an artifact, which is held in memory: as long as a manifest.
const MAX_DOCUMENT: u64 = MAX_MANIFEST_BYTES;

/// One upstream that can be read from.
#[derive(Debug, Clone)]
pub struct Source {
    name: Arc<str>,
    kind: Kind,
    requester: Arc<Requester>,
}

/// The one on whose behalf an upstream is asked.
#[derive(Debug, Clone, Default)]
pub struct Requester {
    /// The name under which its work takes turns with that of others. Empty for this program
    /// itself.
    pub name: Arc<str>,
    /// The names under which layers are counted that are stored for it.
    pub accounts: Box<[Box<str>]>,
    /// Whether somebody waits for the work.
    pub urgency: Urgency,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Registry(Arc<Registry>),
    /// A registry that is not configured.
    Hosted(Arc<Hosted>),
    Layout(Arc<Layout>),
}

/// The reader behind a source, with the current hosts.
enum Reader {
    Registry(Arc<Registry>),
    Layout(Arc<Layout>),
}

impl Source {
    pub(super) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            requester: Arc::default(),
        }
    }

    /// Returns the same upstream, asked on behalf of `requester`.
    #[must_use]
    pub fn on_behalf_of(self, requester: Requester) -> Self {
        Self {
            requester: Arc::new(requester),
            ..self
        }
    }

    /// Returns the same upstream, asked for work that nobody waits for yet.
    #[must_use]
    pub(crate) fn ahead(self) -> Self {
        let requester = Requester {
            urgency: Urgency::ahead(),
            ..(*self.requester).clone()
        };
        self.on_behalf_of(requester)
    }

    /// Whether nobody waits for the work yet.
    pub(crate) fn is_ahead(&self) -> bool {
        self.requester.urgency.is_ahead()
    }

    /// Returns the one on whose behalf the upstream is asked.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// Returns the turn in which work for this upstream is done.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            upstream: &self.name,
            requester: &self.requester.name,
            urgency: &self.requester.urgency,
        }
    }

    /// Returns the name in front of repositories: `docker.io`, `local`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the same upstream, asked with the credentials of a client in place of all others.
    /// Tokens are fetched anew.
    ///
    /// # Errors
    /// [`Error::Denied`] for a layout, which cannot judge credentials, or if the registry's hosts
    /// cannot be read.
    pub async fn for_client(&self, login: &ClientLogin) -> Result<Self, Error> {
        let kind = match self.reader().await? {
            Reader::Registry(registry) => Kind::Registry(Arc::new(registry.for_client(login))),
            Reader::Layout(_) => return Err(Error::Denied),
        };
        Ok(Self {
            name: Arc::clone(&self.name),
            kind,
            requester: Arc::clone(&self.requester),
        })
    }

    async fn reader(&self) -> Result<Reader, Error> {
        match &self.kind {
            Kind::Registry(registry) => Ok(Reader::Registry(Arc::clone(registry))),
            Kind::Hosted(hosted) => hosted.registry().await.map(Reader::Registry),
            Kind::Layout(layout) => Ok(Reader::Layout(Arc::clone(layout))),
        }
    }

    /// Asks each host of a registry whether it answers and lets this machine in. A layout has no
    /// hosts.
    pub(crate) async fn reach(&self) -> Result<Vec<(String, Reached)>, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => Ok(registry.reach().await),
            Reader::Layout(_) => Ok(Vec::new()),
        }
    }

    /// Resolves `reference` without a request that counts as a pull, for registries that meter
    /// pulls.
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

    /// Returns the manifest, its digest verified, at most `MAX_MANIFEST_BYTES` long.
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

    /// Returns the size of a blob.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.blob_size(repository, digest).await,
            Reader::Layout(layout) => layout.blob_size(digest).await,
        }
    }

    /// Returns the size of a blob, and the Starlift server that has it, if it is one.
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

    /// Returns a blob, whole or in part. A broken connection is resumed where it broke off. Whole
    /// blobs are verified.
    ///
    /// A range is cut at the blob's end. One that starts at the end or after it is
    /// [`Error::RangeNotSatisfiable`].
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

    /// Returns a part of a blob. A Starlift server also gets the purpose.
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

    /// Returns the last `len` bytes of a blob, or all of it if it is shorter, and its size. This is
    /// one request if suffix ranges are supported, as by nearly all registries and stores.
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

    /// Returns tags in lexical order, at most `n` of them (the upstream may return fewer), after
    /// `last`.
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

    /// Returns the upstream's referrers of `digest`, by API or by tag schema; empty if it has none.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Referrers, Error> {
        match self.reader().await? {
            Reader::Registry(registry) => registry.referrers(repository, digest).await,
            Reader::Layout(layout) => Ok(layout.referrers(digest).await?.into()),
        }
    }

    /// Returns the blob that `choose` picks from an artifact's manifest, whole, at most
    /// `MAX_DOCUMENT` bytes; `None` if it picks none.
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

    /// Sends a blob of `size` bytes unless the registry has it already. The stream is read once: no
    /// retries.
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

    /// Puts a manifest under a tag or its digest. Everything that it names must exist.
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

    /// Puts a manifest that refers to `subject`, and lists it among the referrers. Everything that
    /// it names must exist.
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
