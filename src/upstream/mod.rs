//! Pulls from a source: a registry, an OCI layout, a docker archive. And pushes, for the command line.
//!
//! ```text
//! Source ─ Registry ▶ mirrors, retry ▶ Endpoint ▶ auth ▶ Http (redirects) ▶ dial rules ▶ the network
//!        └ Layout   ▶ a directory or a tar
//! ```

mod address;
mod answer;
mod auth;
mod blob;
mod builder;
mod config;
mod dial;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod health;
mod hosts;
mod http;
mod layout;
mod memory;
mod origin;
mod part;
mod peer;
mod proxy;
mod push;
mod referrers;
mod registry;
mod retry;
mod tags;
mod tls;
mod verify;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use url::Url;

pub use self::auth::{Login, Logins};
use self::builder::Builder;
pub use self::config::{Config, HostPattern, Secret, UpstreamConfig};
pub use self::error::Error;
use self::error::excerpt;
use self::hosts::Hosted;
use self::layout::Layout;
pub use self::origin::Origin;
pub use self::peer::{Peer, Purpose};
pub use self::proxy::ProxyUrl;
use self::registry::{Registry, descriptor_of};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};

/// Docker Hub, by the name that images carry and by the host that serves them.
const HUB: &str = "docker.io";
const HUB_URL: &str = "https://registry-1.docker.io";

/// How many registries that are not configured are remembered; their tokens are in the memory of all.
const MAX_OTHERS: usize = 1024;
/// The longest name of one, with its port: DNS allows 253 bytes.
const MAX_NAME: usize = 300;

/// The longest document of an artifact, which is held in memory: as long as a manifest.
const MAX_DOCUMENT: u64 = MAX_MANIFEST_BYTES;

/// All upstreams; clones share connections, tokens and caches.
#[derive(Debug, Clone)]
pub struct Upstreams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    builder: Arc<Builder>,
    configured: HashMap<String, Source>,
    /// Names of configured upstreams by `host[:port]`: what mirror clients send for them as `ns`.
    by_host: HashMap<String, String>,
    others: Mutex<HashMap<String, Source>>,
}

impl Upstreams {
    /// Reads certificates and opens connection pools; dials nobody.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Self::build(config, None)
    }

    /// The same where `logins` are asked for registries that the configuration has no credentials for, before Docker's
    /// configuration is. They go to the registry itself and to no mirror of it.
    pub fn with_logins(config: &Config, logins: Logins) -> Result<Self, Error> {
        Self::build(config, Some(logins))
    }

    fn build(config: &Config, logins: Option<Logins>) -> Result<Self, Error> {
        let builder = Arc::new(Builder::new(config, logins)?);
        let (mut configured, mut by_host) = (HashMap::new(), HashMap::new());
        for (name, upstream) in &config.upstream {
            let name = canonical(name);
            let kind = builder
                .configured(name, upstream)
                .map_err(|error| in_entry(name, error))?;
            configured.insert(
                name.to_owned(),
                Source {
                    name: name.into(),
                    kind,
                },
            );
            if let Some(host) = bare_host(&upstream.url) {
                by_host.entry(host).or_insert_with(|| name.to_owned());
            }
        }
        Ok(Self(Arc::new(Inner {
            builder,
            configured,
            by_host,
            others: Mutex::default(),
        })))
    }

    /// The upstream served under `name`: a configured name, the host (with or without port) of a configured URL, or
    /// another host that may be dialled.
    pub fn get(&self, name: &str) -> Result<Source, Error> {
        let name = canonical(name);
        let by_host = || {
            self.0
                .by_host
                .get(name)
                .and_then(|name| self.0.configured.get(name))
        };
        if let Some(source) = self.0.configured.get(name).or_else(by_host) {
            return Ok(source.clone());
        }
        let mut others = self.0.others.lock();
        if let Some(source) = others.get(name) {
            return Ok(source.clone());
        }
        if name.len() > MAX_NAME || !self.0.builder.may_dial(name) {
            return Err(Error::UnknownUpstream(excerpt(name)));
        }
        let hosted = Hosted::new(name.to_owned(), Arc::clone(&self.0.builder));
        let source = Source {
            name: name.into(),
            kind: Kind::Hosted(Arc::new(hosted)),
        };
        if others.len() >= MAX_OTHERS {
            others.clear();
        }
        others.insert(name.to_owned(), source.clone());
        Ok(source)
    }

    /// Whether `name` is one the configuration gives.
    pub fn is_configured(&self, name: &str) -> bool {
        self.0.configured.contains_key(canonical(name))
    }
}

fn in_entry(name: &str, error: Error) -> Error {
    match error {
        Error::Configuration(text) => Error::Configuration(format!("{name}: {text}")),
        other => Error::Configuration(format!("{name}: {other}")),
    }
}

/// The one name of an upstream that has several.
fn canonical(name: &str) -> &str {
    match name {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB,
        other => other,
    }
}

fn registry_url(text: &str) -> Result<Url, Error> {
    let unusable = |why: &str| Error::Configuration(format!("{text:?} {why}"));
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| unusable(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable(
            "is neither http:// nor https://, oci:DIR nor docker-archive:FILE",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not repeated: it holds a password.
        return Err(Error::Configuration(
            "credentials do not belong into a URL".to_owned(),
        ));
    }
    Ok(url)
}

/// The `host[:port]` of a registry that serves nothing below a path.
fn bare_host(url: &str) -> Option<String> {
    registry_url(url)
        .ok()
        .filter(|url| url.path() == "/")
        .map(|url| host_of(&url))
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// One upstream that can be read from.
#[derive(Debug, Clone)]
pub struct Source {
    name: Arc<str>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
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

/// A blob's bytes on their way.
pub struct Body {
    /// Length of the whole blob.
    pub blob_size: u64,
    /// What of it the stream holds.
    pub range: Range<u64>,
    /// Ends with [`Error::WrongDigest`] instead of its last bytes when a whole blob is not what was asked for.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
    /// Who gives it, where that is a Starlift server.
    pub peer: Option<Peer>,
    /// The registry host it comes from; none for a layout.
    pub origin: Option<Origin>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("blob_size", &self.blob_size)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// A page of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    pub tags: Vec<String>,
    /// Whether there are more behind the last.
    pub more: bool,
}

impl Source {
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
                .map(|found| descriptor_of(&found)),
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
