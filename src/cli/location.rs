//! Where an image is: `HOST/repo:tag[@digest]`, `oci:DIR[:tag][@digest]`, `docker-archive:FILE[:reference]`, or a file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::oci::{Digest, Reference, Repository, Tag};

pub(super) const DOCKER_HUB: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A place that holds an image or takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    Registry(RegistryImage),
    Layout(LayoutImage),
    Archive(ArchiveImage),
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistryImage {
    /// A host, with a port where it has one, or the name of a configured upstream.
    pub(super) host: String,
    pub(super) repository: Repository,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Option<Digest>,
}

/// An image in a folder laid out as the OCI image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayoutImage {
    pub(super) dir: PathBuf,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Option<Digest>,
}

/// An image in a file as `docker save` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchiveImage {
    pub(super) file: PathBuf,
    /// The name and tag inside: `library/app:1`.
    pub(super) reference: Option<String>,
}

/// The text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no image: {reason} (HOST/repository:tag, oci:DIR[:tag] or docker-archive:FILE[:name:tag])")]
pub(super) struct ParseLocationError {
    text: String,
    reason: String,
}

impl Location {
    /// What names the image's manifest: the digest where one is given, else the tag.
    pub(super) fn reference(&self) -> Option<Reference> {
        let (tag, digest) = match self {
            Self::Registry(image) => (image.tag.clone(), image.digest.clone()),
            Self::Layout(image) => (image.tag.clone(), image.digest.clone()),
            Self::Archive(_) => (None, None),
        };
        digest.map(Reference::Digest).or(tag.map(Reference::Tag))
    }
}

impl FromStr for Location {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| ParseLocationError { text: text.to_owned(), reason };
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(rest).map(Self::Layout).map_err(wrong);
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return archive(rest).map(Self::Archive).map_err(wrong);
        }
        registry(text.strip_prefix("docker://").unwrap_or(text)).map(Self::Registry).map_err(wrong)
    }
}

fn layout(text: &str) -> Result<LayoutImage, String> {
    let (text, digest) = split_digest(text)?;
    let (dir, tag) = match text.rsplit_once(':') {
        // A colon inside of the path is no tag's.
        Some((dir, tag)) if !tag.contains('/') && !Path::new(text).is_dir() => {
            (dir, Some(tag.parse().map_err(describe)?))
        }
        _ => (text, None),
    };
    if dir.is_empty() {
        return Err("the folder is missing".to_owned());
    }
    Ok(LayoutImage { dir: dir.into(), tag, digest })
}

fn archive(text: &str) -> Result<ArchiveImage, String> {
    let (file, reference) = match text.split_once(':') {
        Some((file, reference)) if !Path::new(text).is_file() => (file, Some(reference.to_owned())),
        _ => (text, None),
    };
    if file.is_empty() {
        return Err("the file is missing".to_owned());
    }
    Ok(ArchiveImage { file: file.into(), reference })
}

/// As Docker reads names: the first component is a host if it holds a dot or a colon or is `localhost`.
fn registry(text: &str) -> Result<RegistryImage, String> {
    let (text, digest) = split_digest(text)?;
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse::<Tag>().map_err(describe)?)),
        _ => (text, None),
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (canonical_host(host), path),
        _ => (DOCKER_HUB, name),
    };
    let official = host == DOCKER_HUB && !path.contains('/');
    let path = if official { format!("library/{path}") } else { path.to_owned() };
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.parse().map_err(describe)?),
        (tag, _) => tag,
    };
    Ok(RegistryImage { host: host.to_owned(), repository: path.parse().map_err(describe)?, tag, digest })
}

fn canonical_host(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB } else { host }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.split_once('@') {
        Some((name, digest)) => Ok((name, Some(digest.parse().map_err(describe)?))),
        None => Ok((text, None)),
    }
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

    fn registry_parts(text: &str) -> (String, String, Option<String>) {
        let Location::Registry(image) = parsed(text) else { panic!("{text} is a registry's") };
        (image.host, image.repository.to_string(), image.tag.map(|tag| tag.to_string()))
    }

    #[test]
    fn registry_names_are_read_as_docker_reads_them() {
        for (text, host, repository, tag) in [
            ("nginx", "docker.io", "library/nginx", Some("latest")),
            ("docker.io/nginx:1", "docker.io", "library/nginx", Some("1")),
            ("index.docker.io/a/b", "docker.io", "a/b", Some("latest")),
            ("a/b:c", "docker.io", "a/b", Some("c")),
            ("localhost/x:1", "localhost", "x", Some("1")),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000", "x/y", Some("latest")),
            ("docker://ghcr.io/x/y:z", "ghcr.io", "x/y", Some("z")),
        ] {
            let expected = (host.to_owned(), repository.to_owned(), tag.map(str::to_owned));
            assert_eq!(registry_parts(text), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = Digest::sha256_of(b"x");
        let location = parsed(&format!("ghcr.io/x/y:z@{digest}"));
        assert_eq!(location.reference(), Some(Reference::Digest(digest.clone())));
        let untagged = parsed(&format!("ghcr.io/x/y@{digest}"));
        assert_eq!(untagged.reference(), Some(Reference::Digest(digest)));
    }

    #[test]
    fn layouts_and_archives_have_their_prefixes() {
        let Location::Layout(image) = parsed("oci:/a/b:v1") else { panic!("a layout") };
        assert_eq!((image.dir.to_str(), image.tag.as_ref().map(Tag::as_str)), (Some("/a/b"), Some("v1")));
        let Location::Layout(image) = parsed("oci:dir") else { panic!("a layout") };
        assert_eq!((image.dir.to_str(), image.tag), (Some("dir"), None));
        let Location::Archive(image) = parsed("docker-archive:x.tar:library/app:1") else { panic!("an archive") };
        assert_eq!((image.file.to_str(), image.reference.as_deref()), (Some("x.tar"), Some("library/app:1")));
    }

    #[test]
    fn nonsense_is_told() {
        for text in ["", "oci:", "docker-archive:", "UPPER", "a:b:c", "x@sha256:00", "ghcr.io/"] {
            assert!(text.parse::<Location>().is_err(), "{text:?}");
        }
    }
}
