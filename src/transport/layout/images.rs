//! The images in a set of files: their names, and their objects by digest.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::files::{Extent, Files};
use crate::oci::annotations::{CONTAINERD_NAME, REF_NAME};
use crate::oci::document::{self, DocumentError};
use crate::oci::manifest::{Index, MAX_MANIFEST_BYTES};
use crate::oci::name::split_digest;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::registry::Error;
use crate::transport::entries::TOC_SUFFIX;

/// Images with their names.
#[derive(Debug)]
pub(super) struct Images {
    files: Files,
    entries: Vec<Entry>,
    /// Objects that are not below `blobs/`.
    held: HashMap<Digest, Extent>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) names: Vec<Name>,
    pub(super) descriptor: Descriptor,
}

/// A tag, with the repository if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    repository: Option<String>,
    tag: String,
}

impl Name {
    /// Parses `TAG` or `[HOST/]REPOSITORY:TAG`; `None` for any other text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (without_digest, _) = split_digest(text);
        let (repository, tag) = match without_digest.rsplit_once(':') {
            Some((repository, tag)) => (Some(repository.to_owned()), tag),
            None => (None, without_digest),
        };
        tag.parse::<crate::oci::Tag>().ok().map(|tag| Self {
            repository,
            tag: tag.as_str().to_owned(),
        })
    }

    /// Whether two names may mean one image: `app:1` is `docker.io/library/app:1`.
    fn is_like(&self, other: &Self) -> bool {
        let ends_with = |long: &str, short: &str| {
            long.strip_suffix(short)
                .is_some_and(|parents| parents.is_empty() || parents.ends_with('/'))
        };
        let is_like = |mine: &str, theirs: &str| ends_with(mine, theirs) || ends_with(theirs, mine);
        let repositories = self.repository.as_deref().zip(other.repository.as_deref());
        self.tag == other.tag && repositories.is_none_or(|(mine, theirs)| is_like(mine, theirs))
    }

    /// Whether the name may be in `repository`. A name without a repository may be in any.
    fn is_in(&self, repository: &Repository) -> bool {
        self.repository.as_deref().is_none_or(|mine| {
            let host_and_parents = mine.strip_suffix(repository.as_str());
            host_and_parents.is_some_and(|parents| parents.is_empty() || parents.ends_with('/'))
        })
    }
}

impl Entry {
    /// Whether this belongs to another image: an artifact, or the TOCs of its layers.
    fn is_beside(&self) -> bool {
        self.descriptor.rest.contains_key("artifactType")
            || self.names.iter().any(|name| name.tag.ends_with(TOC_SUFFIX))
    }
}

impl Images {
    pub(super) fn new(files: Files) -> Self {
        Self {
            files,
            entries: Vec::new(),
            held: HashMap::new(),
        }
    }

    pub(super) fn listed(files: Files, index: Index) -> Self {
        let mut images = Self::new(files);
        for descriptor in index.manifests {
            let annotation = |key| {
                descriptor
                    .annotations
                    .get(key)
                    .and_then(|value| value.as_str())
            };
            // The name with the repository comes first, because the bare tag would match every
            // repository.
            let name = [CONTAINERD_NAME, REF_NAME]
                .into_iter()
                .filter_map(annotation)
                .find_map(Name::parse);
            images.add(Entry {
                names: name.into_iter().collect(),
                descriptor,
            });
        }
        images
    }

    /// Whether an image is listed under one of `names` (any image if there are none), and its
    /// document exists.
    pub(super) fn holds(&self, names: &[Name]) -> bool {
        let is_named = |entry: &Entry| {
            names.is_empty()
                || entry
                    .names
                    .iter()
                    .any(|own| names.iter().any(|n| n.is_like(own)))
        };
        self.entries
            .iter()
            .any(|entry| is_named(entry) && self.document(&entry.descriptor.digest).is_ok())
    }

    pub(super) fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(super) fn hold(&mut self, digest: Digest, extent: Extent) {
        self.held.insert(digest, extent);
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn open(&self, digest: &Digest) -> Result<Extent, Error> {
        if let Some(extent) = self.held.get(digest) {
            return Ok(extent.clone());
        }
        self.files.open(&format!(
            "blobs/{}/{}",
            digest.algorithm().name(),
            digest.hex()
        ))
    }

    pub(super) fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        match reference {
            Reference::Tag(tag) => {
                let found = self.find(repository, tag.as_str()).ok_or(Error::NotFound)?;
                self.document(&found.digest)
            }
            Reference::Digest(digest) => self.document(digest),
        }
    }

    /// Returns the manifest or index with this digest. Any other object counts as not found.
    fn document(&self, digest: &Digest) -> Result<Manifest, Error> {
        let bytes = self.open(digest)?.read(MAX_MANIFEST_BYTES)?;
        match document::read(None, Some(digest.clone()), bytes) {
            Err(DocumentError::NoManifest(_)) => Err(Error::NotFound),
            read => Ok(read?),
        }
    }

    /// Returns the image under a tag: in the repository if there is one, else anywhere if there is
    /// exactly one. A sole image is also `latest`, whatever its name, because naming a file without
    /// a tag means its content.
    fn find(&self, repository: &Repository, tag: &str) -> Option<&Descriptor> {
        let tagged = |entry: &&Entry| entry.names.iter().any(|name| name.tag == tag);
        let placed = |entry: &&Entry| {
            entry
                .names
                .iter()
                .any(|name| name.tag == tag && name.is_in(repository))
        };
        if let Some(entry) = self.entries.iter().find(placed) {
            return Some(&entry.descriptor);
        }
        let mut anywhere = self.entries.iter().filter(tagged);
        let images: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| !entry.is_beside())
            .collect();
        match (anywhere.next(), anywhere.next(), images.as_slice()) {
            (Some(only), None, _) => Some(&only.descriptor),
            (None, None, [only]) if tag == "latest" => Some(&only.descriptor),
            _ => None,
        }
    }

    /// Returns tags in lexical order: the repository's, or all if it has none.
    pub(super) fn tags(&self, repository: &Repository) -> Vec<String> {
        let names = || self.entries.iter().flat_map(|entry| &entry.names);
        let mut tags: BTreeSet<&str> = names()
            .filter(|name| name.is_in(repository))
            .map(|name| name.tag.as_str())
            .collect();
        if tags.is_empty() {
            tags = names().map(|name| name.tag.as_str()).collect();
        }
        tags.into_iter().map(str::to_owned).collect()
    }

    /// Returns the entries whose `subject` is `digest`, described as the referrers API does
    /// (distribution-spec).
    pub(super) fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        #[derive(Deserialize)]
        struct Referring {
            subject: Option<Descriptor>,
            #[serde(rename = "artifactType")]
            artifact_type: Option<String>,
            config: Option<Descriptor>,
            annotations: Option<Map<String, Value>>,
        }
        let mut found = Vec::new();
        for entry in &self.entries {
            let manifest = match self.document(&entry.descriptor.digest) {
                Ok(manifest) => manifest,
                // A partial copy lists manifests that it does not hold.
                Err(Error::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let Ok(referring) = serde_json::from_slice::<Referring>(&manifest.bytes) else {
                continue;
            };
            if referring
                .subject
                .is_none_or(|subject| subject.digest != *digest)
            {
                continue;
            }
            let mut descriptor = manifest.descriptor();
            descriptor.annotations = referring.annotations.unwrap_or_default();
            let kind = referring
                .artifact_type
                .or(referring.config.map(|config| config.media_type));
            descriptor
                .rest
                .extend(kind.map(|kind| ("artifactType".to_owned(), kind.into())));
            found.push(descriptor);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type;
    use crate::transport::layout::open;

    #[test]
    fn names_come_in_two_forms() {
        let name = |repository: Option<&str>, tag: &str| Name {
            repository: repository.map(str::to_owned),
            tag: tag.to_owned(),
        };
        assert_eq!(Name::parse("1.2"), Some(name(None, "1.2")));
        assert_eq!(
            Name::parse("localhost:5000/a/b:1"),
            Some(name(Some("localhost:5000/a/b"), "1"))
        );
        assert_eq!(Name::parse("../../x"), None);
        assert_eq!(Name::parse("docker.io/library/x"), None);
        let app: Repository = "library/app".parse().unwrap();
        assert!(Name::parse("docker.io/library/app:1").unwrap().is_in(&app));
        assert!(
            !Name::parse("docker.io/my-library/app:1")
                .unwrap()
                .is_in(&"library/ap".parse().unwrap())
        );
        assert!(!Name::parse("other:1").unwrap().is_in(&app));
    }

    #[test]
    fn a_short_name_matches_longer_ones() {
        let is_like = |a: &str, b: &str| Name::parse(a).unwrap().is_like(&Name::parse(b).unwrap());
        assert!(
            is_like("app:1", "docker.io/library/app:1")
                && is_like("docker.io/library/app:1", "app:1")
        );
        assert!(is_like("1", "app:1"));
        assert!(!is_like("app:1", "docker.io/library/my-app:1") && !is_like("app:1", "app:2"));
    }

    #[test]
    fn two_repositories_may_share_a_tag() {
        let directory = tempfile::tempdir().unwrap();
        let entry = |name: &str| {
            let digest = Digest::sha256_of(name.as_bytes());
            let annotations =
                serde_json::json!({CONTAINERD_NAME: format!("docker.io/{name}:1"), REF_NAME: "1"});
            serde_json::json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1,
                "annotations": annotations})
        };
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry("team/a"), entry("team/b")]});
        std::fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
        let images = open::directory(Files::directory(directory.path()).unwrap()).unwrap();
        let find = |repository: &str| {
            images
                .find(&repository.parse().unwrap(), "1")
                .map(|found| found.digest.clone())
        };
        assert_eq!(find("team/b"), Some(Digest::sha256_of(b"team/b")));
        assert_eq!(find("team/a"), Some(Digest::sha256_of(b"team/a")));
        assert_eq!(find("team/c"), None, "the tag alone is ambiguous");
    }
}
