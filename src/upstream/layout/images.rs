//! The images among some files: what they are called, and their objects by digest.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use super::docker;
use super::files::{Extent, Files};
use crate::oci::manifest::{Index, MAX_MANIFEST_BYTES};
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository, media_type};
use crate::upstream::error::Error;
use crate::upstream::registry::{descriptor_of, own_media_type};

/// The tag, or a whole reference (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole reference, by containerd and newer Docker engines.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

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

/// A tag, with the repository where that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    repository: Option<String>,
    tag: String,
}

impl Name {
    /// `TAG` or `[HOST/]REPOSITORY:TAG`; `None` for what is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let without_digest = text.split('@').next().unwrap_or(text);
        let (repository, tag) = match without_digest.rsplit_once(':') {
            Some((repository, tag)) => (Some(repository.to_owned()), tag),
            None => (None, without_digest),
        };
        tag.parse::<crate::oci::Tag>().ok().map(|tag| Self { repository, tag: tag.as_str().to_owned() })
    }

    /// Whether this names something in `repository`, as far as is told.
    fn is_in(&self, repository: &Repository) -> bool {
        self.repository.as_deref().is_none_or(|mine| {
            let host_and_parents = mine.strip_suffix(repository.as_str());
            host_and_parents.is_some_and(|parents| parents.is_empty() || parents.ends_with('/'))
        })
    }
}

impl Images {
    pub(super) fn new(files: Files) -> Self {
        Self { files, entries: Vec::new(), held: HashMap::new() }
    }

    /// Reads `index.json`, or the older `manifest.json` where there is none.
    pub(super) fn load(files: Files) -> Result<Self, Error> {
        let index = match files.open("index.json") {
            Ok(index) => index.read(MAX_MANIFEST_BYTES)?,
            Err(Error::NotFound) => return docker::load(files),
            Err(error) => return Err(error),
        };
        let index: Index = serde_json::from_slice(&index).map_err(|error| Error::Malformed(error.to_string()))?;
        let mut images = Self::new(files);
        for descriptor in index.manifests {
            let annotation = |key| descriptor.annotations.get(key).and_then(|value| value.as_str());
            let names = [annotation(CONTAINERD_NAME), annotation(REF_NAME)].into_iter().flatten();
            let names = names.filter_map(Name::parse).collect();
            images.add(Entry { names, descriptor });
        }
        Ok(images)
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
        self.files.open(&format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()))
    }

    pub(super) fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest, Error> {
        let (digest, named_type) = match reference {
            Reference::Tag(tag) => {
                let found = self.find(repository, tag.as_str()).ok_or(Error::NotFound)?;
                (&found.digest, Some(found.media_type.clone()))
            }
            Reference::Digest(digest) => {
                let found = self.entries.iter().find(|entry| entry.descriptor.digest == *digest);
                (digest, found.map(|entry| entry.descriptor.media_type.clone()))
            }
        };
        let bytes = self.open(digest)?.read(MAX_MANIFEST_BYTES)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(Error::WrongDigest { expected: digest.clone() });
        }
        let named_type = named_type.filter(|named| media_type::manifest_kind(named).is_some());
        // A blob that is no manifest is not found as one.
        let media_type = named_type.or_else(|| own_media_type(&bytes)).ok_or(Error::NotFound)?;
        Ok(Manifest { media_type, digest: digest.clone(), bytes })
    }

    /// The image under a tag: in the repository if one is there, else anywhere if it is but one. An only image is
    /// `latest` whatever it is called: who names a file and no tag means what is in it.
    fn find(&self, repository: &Repository, tag: &str) -> Option<&Descriptor> {
        let tagged = |entry: &&Entry| entry.names.iter().any(|name| name.tag == tag);
        let placed = |entry: &&Entry| entry.names.iter().any(|name| name.tag == tag && name.is_in(repository));
        if let Some(entry) = self.entries.iter().find(placed) {
            return Some(&entry.descriptor);
        }
        let mut anywhere = self.entries.iter().filter(tagged);
        match (anywhere.next(), anywhere.next(), self.entries.as_slice()) {
            (Some(only), None, _) => Some(&only.descriptor),
            (None, None, [only]) if tag == "latest" => Some(&only.descriptor),
            _ => None,
        }
    }

    /// Tags in lexical order: the repository's, or all where none is its.
    pub(super) fn tags(&self, repository: &Repository) -> Vec<String> {
        let names = || self.entries.iter().flat_map(|entry| &entry.names);
        let mut tags: BTreeSet<&str> =
            names().filter(|name| name.is_in(repository)).map(|name| name.tag.as_str()).collect();
        if tags.is_empty() {
            tags = names().map(|name| name.tag.as_str()).collect();
        }
        tags.into_iter().map(str::to_owned).collect()
    }

    /// The entries whose `subject` is `digest`.
    pub(super) fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        #[derive(Deserialize)]
        struct Referring {
            subject: Option<Descriptor>,
            #[serde(rename = "artifactType")]
            artifact_type: Option<String>,
            #[serde(default)]
            annotations: serde_json::Map<String, serde_json::Value>,
        }
        let mut found = Vec::new();
        for entry in &self.entries {
            let bytes = self.open(&entry.descriptor.digest)?.read(MAX_MANIFEST_BYTES)?;
            let Ok(referring) = serde_json::from_slice::<Referring>(&bytes) else { continue };
            if referring.subject.is_none_or(|subject| subject.digest != *digest) {
                continue;
            }
            let manifest = Manifest {
                media_type: entry.descriptor.media_type.clone(),
                digest: entry.descriptor.digest.clone(),
                bytes,
            };
            let mut descriptor = descriptor_of(&manifest);
            descriptor.annotations = referring.annotations;
            let artifact_type = referring.artifact_type.map(|kind| ("artifactType".to_owned(), kind.into()));
            descriptor.rest.extend(artifact_type);
            found.push(descriptor);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_two_forms() {
        let name = |repository: Option<&str>, tag: &str| Name {
            repository: repository.map(str::to_owned),
            tag: tag.to_owned(),
        };
        assert_eq!(Name::parse("1.2"), Some(name(None, "1.2")));
        assert_eq!(Name::parse("localhost:5000/a/b:1"), Some(name(Some("localhost:5000/a/b"), "1")));
        assert_eq!(Name::parse("../../x"), None);
        assert_eq!(Name::parse("docker.io/library/x"), None);
        let app: Repository = "library/app".parse().unwrap();
        assert!(Name::parse("docker.io/library/app:1").unwrap().is_in(&app));
        assert!(!Name::parse("docker.io/my-library/app:1").unwrap().is_in(&"library/ap".parse().unwrap()));
        assert!(!Name::parse("other:1").unwrap().is_in(&app));
    }
}
