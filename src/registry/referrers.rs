//! Referrers, listed by the API, else by the tag schema. Of each document only the list is parsed,
//! one descriptor at a time.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use super::answer::{Answer, Reading};
use super::endpoint::{Endpoint, Read};
use super::error::{Error, excerpt};
use super::headers::next_link;
use super::manifest::manifest;
use crate::aside::aside;
use crate::budget::Weight;
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Reference, Repository, media_type, stream, weight};

/// The most pages of one list. Referrers come in pages of about a hundred.
const MAX_PAGES: usize = 20;
/// The bytes of all pages of one list: the limit of one page, and as much again for fields beside
/// the descriptors.
const MAX_BYTES: u64 = 2 * MAX_MANIFEST_BYTES;
/// The most descriptors of one list, far more than any image has. The rest is left out.
const MAX_DESCRIPTORS: usize = 2000;
/// A descriptor with many annotations has one or two KiB. A longer one than this is left out.
const MAX_DESCRIPTOR_BYTES: usize = 64 << 10;
/// The memory of one list: the most descriptors, with some annotations each. Descriptors beyond it
/// are left out.
pub(super) const MAX_WEIGHT: u64 = 4 << 20;

/// The referrers of a digest. They count against a budget until they are dropped.
#[derive(Debug, Default)]
pub struct Referrers {
    found: Vec<Descriptor>,
    bytes: u64,
    /// Whether some that were too many or too large are left out.
    is_cut: bool,
    _weight: Option<Weight>,
}

impl Referrers {
    /// Returns the bytes of memory that they take, which are no fewer than those of their text.
    pub fn weight(&self) -> u64 {
        self.bytes
    }

    /// Whether some that were too many or too large are left out.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }
}

impl Deref for Referrers {
    type Target = Vec<Descriptor>;

    fn deref(&self) -> &Vec<Descriptor> {
        &self.found
    }
}

impl DerefMut for Referrers {
    fn deref_mut(&mut self) -> &mut Vec<Descriptor> {
        &mut self.found
    }
}

impl From<Vec<Descriptor>> for Referrers {
    fn from(found: Vec<Descriptor>) -> Self {
        let bytes = found.iter().map(text_bytes).sum();
        Self {
            found,
            bytes,
            ..Self::default()
        }
    }
}

/// A list that grows page by page.
#[derive(Default)]
struct List {
    found: Referrers,
    /// The bytes of its pages.
    bytes: u64,
}

pub(super) async fn referrers(
    endpoint: &Endpoint,
    repository: &Repository,
    digest: &Digest,
) -> Result<Referrers, Error> {
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
        list.add(answer, endpoint.reading()).await?;
        let Some(next) = next.filter(|_| list.has_room()) else {
            break;
        };
        answer = endpoint.follow(&read, &next).await?;
    }
    Ok(list.found)
}

impl List {
    async fn add(&mut self, answer: Answer, reading: &Reading) -> Result<(), Error> {
        let document = answer.document(MAX_MANIFEST_BYTES).await?;
        self.add_page(document.bytes.clone(), reading).await
    }

    async fn add_page(&mut self, page: Bytes, reading: &Reading) -> Result<(), Error> {
        self.bytes += page.len() as u64;
        let room = Room {
            descriptors: MAX_DESCRIPTORS.saturating_sub(self.found.len()),
            weight: MAX_WEIGHT.saturating_sub(self.found.bytes),
        };
        let (parsed, is_cut) = aside(page.len(), move || children(&page, room)).await?;
        self.found.is_cut |= is_cut;
        if parsed.is_empty() {
            return Ok(());
        }
        let weight = parsed.iter().map(|(_, weight)| weight).sum();
        self.found.bytes += weight;
        let taken = reading.list(weight).await?;
        let found = parsed.into_iter().map(|(descriptor, _)| descriptor);
        self.found.extend(found);
        match &mut self.found._weight {
            Some(weight) => weight.add(taken),
            none => *none = Some(taken),
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        let Referrers { found, bytes, .. } = &self.found;
        self.bytes < MAX_BYTES && found.len() < MAX_DESCRIPTORS && *bytes < MAX_WEIGHT
    }
}

/// Lists referrers by the tag schema (distribution-spec, "Referrers Tag Schema").
pub(super) async fn tagged_referrers(
    endpoint: &Endpoint,
    repository: &Repository,
    digest: &Digest,
) -> Result<Referrers, Error> {
    let mut list = List::default();
    match manifest(endpoint, repository, &referrers_tag(digest)?).await {
        Ok(index) => list.add_page(index.bytes, endpoint.reading()).await?,
        Err(Error::NotFound) => {}
        Err(error) => return Err(error),
    }
    Ok(list.found)
}

/// Returns the tag of the referrers list of `digest`, for registries without the API.
pub(super) fn referrers_tag(digest: &Digest) -> Result<Reference, Error> {
    let hex = digest.hex().get(..64).unwrap_or(digest.hex());
    let tag = format!("{}-{hex}", digest.algorithm().name());
    tag.parse()
        .map(Reference::Tag)
        .map_err(|_error| Error::Malformed(format!("{tag} is not a tag")))
}

/// Returns the length of a descriptor's text.
fn text_bytes(descriptor: &Descriptor) -> u64 {
    serde_json::to_vec(descriptor).map_or(0, |text| text.len() as u64)
}

/// What a list may still hold.
#[derive(Clone, Copy)]
struct Room {
    descriptors: usize,
    weight: u64,
}

/// Returns the descriptors of an index for which there is room, each with the memory that it takes,
/// and whether there was no room for others. Invalid descriptors are left out.
fn children(bytes: &[u8], mut room: Room) -> Result<(Vec<(Descriptor, u64)>, bool), Error> {
    let (mut found, mut is_cut) = (Vec::new(), false);
    let take = |text: &str| {
        let Some(weight) = room.weight_of(text) else {
            is_cut = true;
            return;
        };
        if let Ok(descriptor) = serde_json::from_str(text) {
            room.descriptors -= 1;
            room.weight -= weight;
            found.push((descriptor, weight));
        }
    };
    stream::for_each(bytes, "manifests", take)
        .map_err(|error| Error::Malformed(excerpt(&error.to_string())))?;
    Ok((found, is_cut))
}

impl Room {
    /// Returns the memory that a descriptor takes, or `None` if there is no room for it.
    fn weight_of(&self, text: &str) -> Option<u64> {
        if self.descriptors == 0 || text.len() > MAX_DESCRIPTOR_BYTES {
            return None;
        }
        let weight = weight::tree(text.as_bytes()).unwrap_or_default();
        (weight <= self.weight).then_some(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(descriptors: usize) -> Room {
        let weight = MAX_WEIGHT;
        Room {
            descriptors,
            weight,
        }
    }

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
        let counted = |list: &str, room| {
            let (found, is_cut) = children(list.as_bytes(), room).unwrap();
            (found.len(), is_cut)
        };
        assert_eq!(counted(&list, room(10)), (2, true));
        assert_eq!(counted(&list, room(1)), (1, true));
        let light = Room {
            weight: weight::tree(good.as_bytes()).unwrap(),
            ..room(10)
        };
        assert_eq!(counted(&list, light), (1, true));
        assert_eq!(counted(&list.replace(&large, "7"), room(10)), (2, false));
        for empty in ["{}", r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert_eq!(counted(empty, room(10)), (0, false), "{empty}");
        }
        for text in ["", "<html>", r#"{"manifests":7}"#] {
            assert!(
                matches!(
                    children(text.as_bytes(), room(10)),
                    Err(Error::Malformed(_))
                ),
                "{text}"
            );
        }
    }
}
