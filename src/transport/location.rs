//! The location of an image: `HOST/repo:tag[@digest]`, `oci:DIR[:tag][@digest]`,
//! `docker-archive:FILE[:reference]`, or a file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::oci::name::{self, DEFAULT_TAG, ParseImageNameError, split_host, split_tag};
use crate::oci::{Digest, ImageName, Reference, Repository, Tag};

/// A place that an image is read from or written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Registry(ImageName),
    Layout(LayoutImage),
    Archive(ArchiveImage),
}

/// An image in a folder laid out as the OCI image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayoutImage {
    pub(crate) dir: PathBuf,
    /// The image's name without host and tag, if it is named in full, as skopeo allows.
    pub(crate) repository: Option<Repository>,
    pub(crate) tag: Option<Tag>,
    pub(crate) digest: Option<Digest>,
}

/// An image in a file as `docker save` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchiveImage {
    pub(crate) file: PathBuf,
    /// The name and tag inside: `library/app:1`.
    pub(crate) reference: Option<String>,
}

/// The error of a text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no image: {reason} (HOST/repository:tag, oci:DIR[:tag] or docker-archive:FILE[:name:tag])"
)]
pub(crate) struct ParseLocationError {
    text: String,
    reason: String,
}

impl Location {
    /// Returns the reference of the image's manifest: the digest if there is one, else the tag.
    pub(crate) fn reference(&self) -> Option<Reference> {
        let (tag, digest) = match self {
            Self::Registry(image) => return image.reference(),
            Self::Layout(image) => (image.tag.clone(), image.digest.clone()),
            Self::Archive(image) => (image.tag(), None),
        };
        digest.map(Reference::Digest).or(tag.map(Reference::Tag))
    }

    /// Returns the location of the image with this digest in the same place. An archive has only
    /// one image.
    #[must_use]
    pub(crate) fn at(&self, digest: &Digest) -> Self {
        let mut location = self.clone();
        match &mut location {
            Self::Registry(image) => image.digest = Some(digest.clone()),
            Self::Layout(image) => image.digest = Some(digest.clone()),
            Self::Archive(_) => {}
        }
        location
    }
}

impl ArchiveImage {
    /// Returns the tag at the end of the name inside.
    fn tag(&self) -> Option<Tag> {
        let name = self.reference.as_deref()?;
        let (_, tag) = name.rsplit_once(':').unwrap_or((name, DEFAULT_TAG));
        tag.parse().ok()
    }

    /// Returns the name inside without host and tag, which selects one of several images.
    pub(crate) fn repository(&self) -> Option<Repository> {
        repository_of(self.reference.as_deref()?)
    }
}

/// Returns the path of a name without its host and its tag.
fn repository_of(name: &str) -> Option<Repository> {
    let (name, _) = split_tag(name);
    let (_, path) = split_host(name);
    path.parse().ok()
}

impl FromStr for Location {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| ParseLocationError {
            text: text.to_owned(),
            reason,
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(rest).map(Self::Layout).map_err(wrong);
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return archive(rest).map(Self::Archive).map_err(wrong);
        }
        let name = text.strip_prefix("docker://").unwrap_or(text).parse();
        name.map(Self::Registry)
            .map_err(|error: ParseImageNameError| wrong(error.reason))
    }
}

fn layout(text: &str) -> Result<LayoutImage, String> {
    let (text, digest) = split_digest(text)?;
    // `DIR:HOST/NAME:TAG`, if there is such a folder: a path may hold colons too.
    let full_name = text
        .split_once(':')
        .filter(|(dir, name)| name.contains('/') && Path::new(dir).is_dir());
    if let Some((dir, name)) = full_name.filter(|_| !Path::new(text).is_dir()) {
        let tag = name
            .rsplit_once(':')
            .map_or(DEFAULT_TAG, |(_, tag)| tag)
            .parse()
            .map_err(describe)?;
        return Ok(LayoutImage {
            dir: dir.into(),
            repository: repository_of(name),
            tag: Some(tag),
            digest,
        });
    }
    let (dir, tag) = match text.rsplit_once(':') {
        // A colon inside the path does not begin a tag.
        Some((dir, tag)) if !tag.contains('/') && !Path::new(text).is_dir() => {
            (dir, Some(tag.parse().map_err(describe)?))
        }
        _ => (text, None),
    };
    if dir.is_empty() {
        return Err("the folder is missing".to_owned());
    }
    Ok(LayoutImage {
        dir: dir.into(),
        repository: None,
        tag,
        digest,
    })
}

fn archive(text: &str) -> Result<ArchiveImage, String> {
    let (file, reference) = match text.split_once(':') {
        Some((file, reference)) if !Path::new(text).is_file() => (file, Some(reference.to_owned())),
        _ => (text, None),
    };
    if file.is_empty() {
        return Err("the file is missing".to_owned());
    }
    Ok(ArchiveImage {
        file: file.into(),
        reference,
    })
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    let (name, digest) = name::split_digest(text);
    Ok((name, digest.map(str::parse).transpose().map_err(describe)?))
}

fn describe(error: impl std::error::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Location {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_without_a_prefix_is_in_a_registry() {
        for text in ["docker://ghcr.io/x/y:z", "ghcr.io/x/y:z"] {
            let Location::Registry(image) = parsed(text) else {
                panic!("{text} is in a registry")
            };
            assert_eq!(image.to_string(), "ghcr.io/x/y:z");
        }
    }

    #[test]
    fn layouts_and_archives_have_their_prefixes() {
        let Location::Layout(image) = parsed("oci:/a/b:v1") else {
            panic!("a layout")
        };
        assert_eq!(
            (image.dir.to_str(), image.tag.as_ref().map(Tag::as_str)),
            (Some("/a/b"), Some("v1"))
        );
        let Location::Layout(image) = parsed("oci:dir") else {
            panic!("a layout")
        };
        assert_eq!((image.dir.to_str(), image.tag), (Some("dir"), None));
        let Location::Archive(image) = parsed("docker-archive:x.tar:library/app:1") else {
            panic!("an archive")
        };
        assert_eq!(
            (image.file.to_str(), image.reference.as_deref()),
            (Some("x.tar"), Some("library/app:1"))
        );
    }

    #[test]
    fn an_image_in_a_layout_may_be_named_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let Location::Layout(image) = parsed(&format!("oci:{path}:docker.io/library/app:1")) else {
            panic!("a layout")
        };
        assert_eq!(
            (image.dir.to_str(), image.tag),
            (Some(path), Some("1".parse().unwrap()))
        );
        assert_eq!(image.repository, Some("library/app".parse().unwrap()));
    }

    #[test]
    fn one_of_several_images_in_an_archive_is_named() {
        for (name, repository, tag) in [
            ("app:1", "app", "1"),
            ("localhost:5000/a/b:2", "a/b", "2"),
            ("docker.io/library/app", "library/app", "latest"),
        ] {
            let location = parsed(&format!("docker-archive:x.tar:{name}"));
            let Location::Archive(image) = &location else {
                panic!("an archive")
            };
            assert_eq!(
                image.repository(),
                Some(repository.parse().unwrap()),
                "{name}"
            );
            assert_eq!(location.reference(), Some(tag.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn invalid_locations_are_errors() {
        for text in [
            "",
            "oci:",
            "docker-archive:",
            "UPPER",
            "a:b:c",
            "x@sha256:00",
            "ghcr.io/",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text:?}");
        }
    }
}
