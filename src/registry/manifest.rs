//! Reads a manifest from one endpoint.

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};

use super::answer::Answer;
use super::endpoint::{Endpoint, Read};
use super::error::Error;
use super::headers::content_digest;
use crate::aside::aside;
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Digest, Manifest, Reference, Repository, document};

/// Every supported manifest type. If one is missing, a registry may convert the image into a type
/// that it believes to be supported.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

pub(super) fn manifest_headers() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))])
}

/// Returns the requested digest or, for a tag, the digest that the registry names. It is an error
/// if the registry names another digest than the requested one.
pub(super) fn promised_digest(
    answer: &Answer,
    reference: &Reference,
) -> Result<Option<Digest>, Error> {
    match (reference, content_digest(answer.headers())) {
        (Reference::Tag(_), named) => Ok(named),
        (Reference::Digest(wanted), Some(named))
            if named.algorithm() == wanted.algorithm() && named != *wanted =>
        {
            Err(Error::WrongDigest {
                expected: wanted.clone(),
            })
        }
        (Reference::Digest(wanted), _) => Ok(Some(wanted.clone())),
    }
}

pub(super) async fn manifest(
    endpoint: &Endpoint,
    repository: &Repository,
    reference: &Reference,
) -> Result<Manifest, Error> {
    let get = Read::get(repository, format!("manifests/{reference}"));
    let answer = endpoint
        .read(&Read {
            headers: manifest_headers(),
            ..get
        })
        .await?;
    let promised = promised_digest(&answer, reference)?;
    let named_type = answer.media_type();
    let bytes = answer.limited_body(MAX_MANIFEST_BYTES).await?;
    Ok(aside(bytes.len(), move || {
        document::read(named_type.as_deref(), promised, bytes)
    })
    .await?)
}
