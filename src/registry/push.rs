//! Writing to a registry: blobs in one streamed piece, manifests.

use bytes::Bytes;
use futures::stream::BoxStream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Body, Method};
use url::Url;

use super::answer::Answer;
use super::client::Registry;
use super::endpoint::Read;
use super::error::Error;
use super::http::refuse_downgrade;
use super::referrers::{MAX_WEIGHT, referrers_tag, tagged_referrers};
use crate::oci::manifest::Index;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository, media_type};

/// A header in the answer of a registry that lists referrers (distribution-spec, "Pushing Manifests
/// with Subject").
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

impl Registry {
    /// Sends a blob unless the registry has it. POST, PATCH, PUT, as Docker does, because every
    /// registry accepts this.
    pub(crate) async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        stream: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), Error> {
        match self
            .own
            .read(&Read::head(repository, format!("blobs/{digest}")))
            .await
        {
            Ok(_) => return Ok(()),
            Err(Error::NotFound | Error::Malformed(_)) => {}
            Err(error) => return Err(error),
        }
        let empty = || HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(0))]);
        let nothing = || Some(Body::from(Bytes::new()));
        let begun = self
            .own
            .write(
                Method::POST,
                repository,
                None,
                "blobs/uploads/",
                empty(),
                nothing,
            )
            .await?;
        let mut headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(size))]);
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(media_type::OCTET_STREAM),
        );
        let mut stream = Some(stream);
        let body = || stream.take().map(Body::wrap_stream);
        let sent = self
            .own
            .write(
                Method::PATCH,
                repository,
                Some(location(&begun)?),
                "",
                headers,
                body,
            )
            .await?;
        let mut end = location(&sent)?;
        end.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        self.own
            .write(Method::PUT, repository, Some(end), "", empty(), nothing)
            .await?;
        Ok(())
    }

    pub(crate) async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        self.put_manifest(repository, reference, manifest)
            .await
            .map(drop)
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<Answer, Error> {
        let media_type = HeaderValue::from_str(&manifest.media_type);
        let media_type = media_type.map_err(|error| Error::Malformed(error.to_string()))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        let body = || Some(Body::from(manifest.bytes.clone()));
        self.own
            .write(
                Method::PUT,
                repository,
                None,
                &format!("manifests/{reference}"),
                headers,
                body,
            )
            .await
    }

    /// Puts a manifest that refers to `subject`, by its digest. If the registry does not list
    /// referrers itself, `listed` is added to the list under the referrers tag (distribution-spec,
    /// "Pushing Manifests with Subject"). If two clients do so at once, one of the two entries may
    /// be lost.
    pub(crate) async fn push_referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        manifest: &Manifest,
        listed: &Descriptor,
    ) -> Result<(), Error> {
        let by_digest = Reference::Digest(manifest.digest.clone());
        let answer = self.put_manifest(repository, &by_digest, manifest).await?;
        if answer.header(OCI_SUBJECT).is_some() {
            return Ok(());
        }
        let mut list = tagged_referrers(&self.own, repository, subject).await?;
        if list.is_cut() {
            let limit = MAX_WEIGHT;
            return Err(Error::TooLarge { limit });
        }
        list.retain(|referrer| referrer.digest != listed.digest);
        list.push(listed.clone());
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: std::mem::take(&mut *list).into(),
            rest: serde_json::Map::new(),
        };
        let bytes =
            serde_json::to_vec(&index).map_err(|error| Error::Malformed(error.to_string()))?;
        let index = Manifest::new(media_type::OCI_INDEX.to_owned(), bytes.into());
        self.put_manifest(repository, &referrers_tag(subject)?, &index)
            .await?;
        Ok(())
    }
}

/// Returns the URL at which an upload continues.
fn location(answer: &Answer) -> Result<Url, Error> {
    let target = answer
        .header(LOCATION)
        .and_then(|location| answer.url.join(location).ok());
    let target =
        target.ok_or_else(|| Error::Malformed("upload without a valid location".to_owned()))?;
    refuse_downgrade(&answer.url, &target)?;
    Ok(target)
}
