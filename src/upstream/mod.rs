//! Pulls from a source: a registry, an OCI layout, a docker archive. And pushes, for the command line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};

/// The upstreams' part of the configuration.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Upstreams by the name they are served under, or by their host.
    pub upstream: BTreeMap<String, UpstreamConfig>,
}

/// One upstream.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// `http://…`, `https://…`, `oci:DIR` or `docker-archive:FILE`.
    pub url: String,
}

/// Why an upstream did not give what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no upstream is called {0:?}, and it is not allowed to dial it")]
    UnknownUpstream(String),
    #[error("the upstream does not have it")]
    NotFound,
    #[error("the upstream wants credentials it accepts")]
    Unauthorized,
    #[error("the upstream denies access")]
    Denied,
    #[error("the upstream asks for fewer requests")]
    TooManyRequests { retry_after: Option<Duration> },
    #[error("the upstream does not answer as it should: {0}")]
    Unavailable(String),
    #[error("it is not allowed to dial {0}")]
    Refused(String),
    #[error("the bytes do not have the digest {expected}")]
    WrongDigest { expected: Digest },
    #[error("the answer is over the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the upstream's answer makes no sense: {0}")]
    Malformed(String),
}

/// All upstreams; clones share connections, tokens and caches.
#[derive(Debug, Clone)]
pub struct Upstreams {}

impl Upstreams {
    pub fn new(_config: &Config) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The upstream served under `name`: a configured name, or a host (with or without port) that may be dialled.
    pub fn get(&self, _name: &str) -> Result<Source, Error> {
        unimplemented!()
    }

    /// Whether `name` is one the configuration gives.
    pub fn is_configured(&self, _name: &str) -> bool {
        unimplemented!()
    }
}

/// One upstream that can be read from.
#[derive(Debug, Clone)]
pub struct Source {}

/// A blob's bytes on their way.
pub struct Body {
    /// Length of the whole blob.
    pub blob_size: u64,
    /// What of it the stream holds.
    pub range: Range<u64>,
    /// Ends with [`Error::WrongDigest`] instead of its last bytes when a whole blob is not what was asked for.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("blob_size", &self.blob_size).field("range", &self.range).finish_non_exhaustive()
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
        unimplemented!()
    }

    /// Asks what `reference` names without counting as a pull where pulls are metered.
    pub async fn resolve(&self, _repository: &Repository, _reference: &Reference) -> Result<Descriptor, Error> {
        unimplemented!()
    }

    /// The manifest, its digest checked, at most `MAX_MANIFEST_BYTES` long.
    pub async fn manifest(&self, _repository: &Repository, _reference: &Reference) -> Result<Manifest, Error> {
        unimplemented!()
    }

    /// The size of a blob.
    pub async fn blob_size(&self, _repository: &Repository, _digest: &Digest) -> Result<u64, Error> {
        unimplemented!()
    }

    /// A blob, whole or in part. A broken connection is taken up again where it broke; whole blobs are verified.
    pub async fn blob(
        &self,
        _repository: &Repository,
        _digest: &Digest,
        _range: Option<Range<u64>>,
    ) -> Result<Body, Error> {
        unimplemented!()
    }

    pub async fn tags(&self, _repository: &Repository, _n: Option<usize>, _last: Option<&str>) -> Result<Tags, Error> {
        unimplemented!()
    }

    /// The upstream's referrers of `digest`, by API or by tag schema; empty where it has none.
    pub async fn referrers(&self, _repository: &Repository, _digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        unimplemented!()
    }
}
