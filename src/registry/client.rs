//! A registry with its mirrors: manifests, tags, referrers.
//!
//! Mirrors are asked in order, each once; if one fails for any reason, the next is asked. Then
//! follows the registry itself, which is retried if that may help. Mirrors that failed recently
//! come last.

use reqwest::header::CONTENT_LENGTH;

use super::answer::Answer;
use super::auth::ClientLogin;
use super::endpoint::{Capabilities, Endpoint, Read};
use super::error::Error;
use super::manifest::{manifest, manifest_headers, promised_digest};
use super::referrers::{Referrers, referrers};
use super::retry::Retry;
use super::tags::{Tags, tags};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository, media_type};

/// The capabilities that a host needs to serve an object by its digest.
pub(super) const PULL: Capabilities = Capabilities {
    pull: true,
    resolve: false,
};
/// The capabilities that a host needs to resolve a tag.
const RESOLVE: Capabilities = Capabilities {
    pull: false,
    resolve: true,
};

/// A registry and its mirrors.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(super) mirrors: Vec<Endpoint>,
    pub(super) own: Endpoint,
    pub(super) retry: Retry,
}

impl Registry {
    pub(super) fn new(mirrors: Vec<Endpoint>, own: Endpoint, retry: Retry) -> Self {
        Self {
            mirrors,
            own,
            retry,
        }
    }

    /// Returns the registry without its mirrors, asked with the credentials of a client.
    pub(crate) fn for_client(&self, login: &ClientLogin) -> Self {
        let own = self.own.for_client(login);
        Self::new(Vec::new(), own, self.retry)
    }

    /// Returns an endpoint by its number: the mirrors in their order, then the registry itself.
    pub(super) fn endpoint(&self, number: usize) -> &Endpoint {
        self.mirrors.get(number).unwrap_or(&self.own)
    }

    /// Calls `attempt` with each endpoint that has the `wanted` capabilities, and its number, until
    /// one succeeds. The order is: the mirrors, the registry itself, then the mirrors that failed
    /// recently. A mirror that is bad for `digest` is left out.
    pub(super) async fn try_each<'a, T, F>(
        &'a self,
        wanted: Capabilities,
        digest: Option<&Digest>,
        attempt: impl Fn(usize, &'a Endpoint) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + 'a,
    {
        let health = self.own.http().health();
        let able = self.mirrors.iter().enumerate().filter(|(_, mirror)| {
            mirror.can(wanted) && !digest.is_some_and(|digest| health.is_bad(mirror.key(), digest))
        });
        let (last, first): (Vec<_>, Vec<_>) =
            able.partition(|(_, mirror)| health.is_last(mirror.key()));
        let mut failure = None;
        for (number, mirror) in first {
            match attempt(number, mirror).await {
                Ok(value) => return Ok(value),
                Err(error) => failure = Some(passed_over(mirror, error)),
            }
        }
        if self.own.can(wanted) {
            match self
                .retry
                .run(|| attempt(self.mirrors.len(), &self.own))
                .await
            {
                Ok(value) => return Ok(value),
                Err(error) => failure = Some(error),
            }
        }
        for (number, mirror) in last {
            match attempt(number, mirror).await {
                Ok(value) => return Ok(value),
                Err(error) => failure = failure.or(Some(passed_over(mirror, error))),
            }
        }
        Err(failure.unwrap_or_else(|| {
            Error::Unavailable("no host of the registry may be asked".to_owned())
        }))
    }

    pub(crate) async fn resolve(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Descriptor, Error> {
        self.try_each(needed(reference), digest_of(reference), |_, endpoint| {
            resolve(endpoint, repository, reference)
        })
        .await
    }

    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        self.try_each(needed(reference), digest_of(reference), |_, endpoint| {
            manifest(endpoint, repository, reference)
        })
        .await
    }

    pub(crate) async fn tags(
        &self,
        repository: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<Tags, Error> {
        self.try_each(RESOLVE, None, |_, endpoint| {
            tags(endpoint, repository, n, last)
        })
        .await
    }

    pub(crate) async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Referrers, Error> {
        self.try_each(PULL, Some(digest), |_, endpoint| {
            referrers(endpoint, repository, digest)
        })
        .await
    }
}

fn passed_over(mirror: &Endpoint, error: Error) -> Error {
    tracing::debug!(host = mirror.host(), %error, "mirror skipped");
    if let Error::WrongDigest { expected } = &error {
        mirror.http().health().report_bad(mirror.key(), expected);
    }
    error
}

fn digest_of(reference: &Reference) -> Option<&Digest> {
    match reference {
        Reference::Tag(_) => None,
        Reference::Digest(digest) => Some(digest),
    }
}

fn needed(reference: &Reference) -> Capabilities {
    match reference {
        Reference::Tag(_) => RESOLVE,
        Reference::Digest(_) => PULL,
    }
}

async fn resolve(
    endpoint: &Endpoint,
    repository: &Repository,
    reference: &Reference,
) -> Result<Descriptor, Error> {
    let head = Read::head(repository, format!("manifests/{reference}"));
    let head = Read {
        headers: manifest_headers(),
        ..head
    };
    let answered = match endpoint.read(&head).await {
        Ok(answer) => described(&answer, reference)?,
        // Some registries do not support HEAD, or hold only objects that were fetched from them
        // before. GET decides.
        Err(Error::Malformed(_) | Error::NotFound | Error::Denied) => None,
        Err(error) => return Err(error),
    };
    match answered {
        Some(descriptor) => Ok(descriptor),
        None => Ok(manifest(endpoint, repository, reference)
            .await?
            .descriptor()),
    }
}

/// Returns the descriptor in the headers of an answer; `None` if it is incomplete.
fn described(answer: &Answer, reference: &Reference) -> Result<Option<Descriptor>, Error> {
    let digest = promised_digest(answer, reference)?;
    let size = answer
        .header(CONTENT_LENGTH)
        .and_then(|length| length.parse::<u64>().ok());
    let media_type = answer
        .media_type()
        .filter(|media_type| media_type::manifest_kind(media_type).is_some());
    let (Some(digest), Some(size), Some(media_type)) = (digest, size, media_type) else {
        return Ok(None);
    };
    if size > MAX_MANIFEST_BYTES {
        return Err(Error::TooLarge {
            limit: MAX_MANIFEST_BYTES,
        });
    }
    Ok(Some(Descriptor::plain(media_type, digest, size)))
}
