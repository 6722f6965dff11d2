//! Writing to a registry: blobs in one streamed piece, manifests.

use bytes::Bytes;
use futures::stream::BoxStream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method};
use url::Url;

use super::answer::Answer;
use super::endpoint::Read;
use super::error::Error;
use super::http::refuse_downgrade;
use super::registry::Registry;
use crate::oci::{Digest, Manifest, Reference, Repository, media_type};

impl Registry {
    /// Sends a blob unless the registry has it. POST, PATCH, PUT, as Docker does: every registry takes this.
    pub(super) async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        stream: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), Error> {
        match self.own.read(&Read::head(repository, format!("blobs/{digest}"))).await {
            Ok(_) => return Ok(()),
            Err(Error::NotFound | Error::Malformed(_)) => {}
            Err(error) => return Err(error),
        }
        let empty = || HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(0))]);
        let nothing = || Some(Body::from(Bytes::new()));
        let begun = self.own.write(Method::POST, repository, None, "blobs/uploads/", empty(), nothing).await?;
        let mut headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(size))]);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCTET_STREAM));
        let mut stream = Some(stream);
        let body = || stream.take().map(Body::wrap_stream);
        let sent = self.own.write(Method::PATCH, repository, Some(location(&begun)?), "", headers, body).await?;
        let mut end = location(&sent)?;
        end.query_pairs_mut().append_pair("digest", &digest.to_string());
        self.own.write(Method::PUT, repository, Some(end), "", empty(), nothing).await?;
        Ok(())
    }

    pub(super) async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        let media_type = HeaderValue::from_str(&manifest.media_type);
        let media_type = media_type.map_err(|error| Error::Malformed(error.to_string()))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        let body = || Some(Body::from(manifest.bytes.clone()));
        self.own.write(Method::PUT, repository, None, &format!("manifests/{reference}"), headers, body).await?;
        Ok(())
    }
}

/// Where an upload goes on.
fn location(answer: &Answer) -> Result<Url, Error> {
    let target = answer.header(LOCATION).and_then(|location| answer.url.join(location).ok());
    let target = target.ok_or_else(|| Error::Malformed("an upload without a place to go on".to_owned()))?;
    refuse_downgrade(&answer.url, &target)?;
    Ok(target)
}
