//! The name of an image in a registry, as people write it.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::reference::{Reference, Repository, Tag};
use super::route::DOCKER_HUB;

/// The tag of a name that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// A host, with its port if it has one, or the name of a configured upstream.
    pub host: String,
    pub repository: Repository,
    /// `None` only if there is a digest.
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

/// The text does not name an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image name: {reason}")]
pub struct ParseImageNameError {
    text: String,
    /// The reason.
    pub reason: String,
}

impl ImageName {
    /// The reference of the image's manifest: the digest if there is one, else the tag.
    pub fn reference(&self) -> Option<Reference> {
        self.digest
            .clone()
            .map(Reference::Digest)
            .or(self.tag.clone().map(Reference::Tag))
    }
}

impl FromStr for ImageName {
    type Err = ParseImageNameError;

    /// Parses as Docker does: the first component is a host if it holds a dot or a colon or is
    /// `localhost`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ParseImageNameError {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<ImageName, String> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(describe)?)),
        None => (text, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => {
            (name, Some(tag.parse::<Tag>().map_err(describe)?))
        }
        _ => (name, None),
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (canonical_host(host), path)
        }
        _ => (DOCKER_HUB, name),
    };
    let is_official = host == DOCKER_HUB && !path.contains('/');
    let path = if is_official {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.parse().map_err(describe)?),
        (tag, _) => tag,
    };
    Ok(ImageName {
        host: host.to_owned(),
        repository: path.parse().map_err(describe)?,
        tag,
        digest,
    })
}

fn canonical_host(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") {
        DOCKER_HUB
    } else {
        host
    }
}

fn describe(error: impl std::error::Error) -> String {
    error.to_string()
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("a/b:c", "docker.io/a/b:c"),
            ("localhost/x:1", "localhost/x:1"),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y:latest"),
        ] {
            assert_eq!(
                text.parse::<ImageName>().unwrap().to_string(),
                full,
                "{text}"
            );
        }
        for text in ["", "A/b", "a:b:c", "a@sha256:00"] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag_and_needs_none() {
        let digest = Digest::sha256_of(b"x");
        let name: ImageName = format!("ghcr.io/x/y:z@{digest}").parse().unwrap();
        assert_eq!(name.reference(), Some(Reference::Digest(digest.clone())));
        let name: ImageName = format!("ghcr.io/x/y@{digest}").parse().unwrap();
        assert_eq!((name.tag, name.digest), (None, Some(digest)));
    }
}
