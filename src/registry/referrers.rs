//! Referrers, listed by the API, else by the tag schema. Of each document only the list is parsed,
//! one descriptor at a time.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::Answer;
use super::endpoint::{Endpoint, Read};
use super::error::{Error, excerpt};
use super::headers::next_link;
use super::manifest::manifest;
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Reference, Repository, media_type};

/// The most pages of one list. Referrers come in pages of about a hundred.
const MAX_PAGES: usize = 20;
/// The bytes of all pages of one list: the limit of one page, and as much again for fields beside
/// the descriptors.
const MAX_BYTES: u64 = 2 * MAX_MANIFEST_BYTES;
/// The most descriptors of one list, far more than any image has. The rest is left out.
const MAX_DESCRIPTORS: usize = 2000;
/// A descriptor with many annotations has one or two KiB. A longer one than this is left out.
const MAX_DESCRIPTOR_BYTES: usize = 64 << 10;

/// The part of an index that is needed. Everything else is skipped unparsed.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow, default)]
    manifests: Option<Vec<&'a RawValue>>,
}

/// A list that grows page by page.
#[derive(Default)]
struct List {
    found: Vec<Descriptor>,
    bytes: u64,
}

pub(super) async fn referrers(
    endpoint: &Endpoint,
    repository: &Repository,
    digest: &Digest,
) -> Result<Vec<Descriptor>, Error> {
    let read = Read::get(repository, format!("referrers/{digest}"));
    let mut answer = match endpoint.read(&read).await {
        Ok(answer) => answer,
        // A registry without the API answers 404, or rejects the request.
        Err(Error::NotFound | Error::Malformed(_)) => {
            return tagged_referrers(endpoint, repository, digest).await;
        }
        Err(error) => return Err(error),
    };
    if answer.media_type().as_deref() != Some(media_type::OCI_INDEX) {
        return tagged_referrers(endpoint, repository, digest).await;
    }
    let mut list = List::default();
    for _ in 0..MAX_PAGES {
        let next = next_link(answer.headers()).and_then(|link| answer.url.join(&link).ok());
        list.add(answer).await?;
        let Some(next) = next.filter(|_| list.has_room()) else {
            break;
        };
        answer = endpoint.follow(&read, &next).await?;
    }
    Ok(list.found)
}

impl List {
    async fn add(&mut self, answer: Answer) -> Result<(), Error> {
        let document = answer.document(MAX_MANIFEST_BYTES).await?;
        self.bytes += document.bytes.len() as u64;
        let room = MAX_DESCRIPTORS.saturating_sub(self.found.len());
        let bytes = document.bytes.clone();
        let parsed = tokio::task::spawn_blocking(move || children(&bytes, room)).await;
        self.found
            .extend(parsed.map_err(|error| Error::Unavailable(error.to_string()))??);
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES && self.found.len() < MAX_DESCRIPTORS
    }
}

/// Lists referrers by the tag schema (distribution-spec, "Referrers Tag Schema").
pub(super) async fn tagged_referrers(
    endpoint: &Endpoint,
    repository: &Repository,
    digest: &Digest,
) -> Result<Vec<Descriptor>, Error> {
    let index = match manifest(endpoint, repository, &referrers_tag(digest)?).await {
        Ok(index) => index.bytes,
        Err(Error::NotFound) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let parsed = tokio::task::spawn_blocking(move || children(&index, MAX_DESCRIPTORS)).await;
    parsed.map_err(|error| Error::Unavailable(error.to_string()))?
}

/// Returns the tag of the referrers list of `digest`, for registries without the API.
pub(super) fn referrers_tag(digest: &Digest) -> Result<Reference, Error> {
    let hex = digest.hex().get(..64).unwrap_or(digest.hex());
    let tag = format!("{}-{hex}", digest.algorithm().name());
    tag.parse()
        .map(Reference::Tag)
        .map_err(|_error| Error::Malformed(format!("{tag} is not a tag")))
}

/// Returns at most `most` descriptors of an index. Invalid descriptors are left out.
fn children(bytes: &[u8], most: usize) -> Result<Vec<Descriptor>, Error> {
    let page: Page<'_> = serde_json::from_slice(bytes)
        .map_err(|error| Error::Malformed(excerpt(&error.to_string())))?;
    let raw = page.manifests.unwrap_or_default();
    let sound = raw
        .iter()
        .filter(|raw| raw.get().len() <= MAX_DESCRIPTOR_BYTES);
    Ok(sound
        .filter_map(|raw| serde_json::from_str(raw.get()).ok())
        .take(most)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_descriptors_are_left_out_and_large_ones_are_not_parsed() {
        let digest = Digest::sha256_of(b"x");
        let good = format!(
            r#"{{"mediaType":"a","digest":"{digest}","size":1,"annotations":{{"k":"v"}}}}"#
        );
        let large = good.replace(
            "\"size\"",
            &format!("\"x\":[{}0],\"size\"", "0,".repeat(MAX_DESCRIPTOR_BYTES)),
        );
        let list =
            format!(r#"{{"x":{{}},"manifests":[{good},null,7,{{"digest":"x"}},{large},{good}]}}"#);
        assert_eq!(children(list.as_bytes(), 10).unwrap().len(), 2);
        assert_eq!(children(list.as_bytes(), 1).unwrap().len(), 1);
        for empty in ["{}", r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert!(
                children(empty.as_bytes(), 10).unwrap().is_empty(),
                "{empty}"
            );
        }
        for text in ["", "<html>", r#"{"manifests":7}"#] {
            assert!(
                matches!(children(text.as_bytes(), 10), Err(Error::Malformed(_))),
                "{text}"
            );
        }
    }
}
