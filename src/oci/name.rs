//! The name of an image in a registry, as people write it.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::hub::{DOCKER_HUB, canonical_host, full_path};
use super::reference::{Reference, Repository, Tag};

/// The tag of a name that has neither tag nor digest.
pub(crate) const DEFAULT_TAG: &str = "latest";

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
    let (name, digest) = split_digest(text);
    let digest = digest.map(str::parse).transpose().map_err(describe)?;
    let (name, tag) = split_tag(name);
    let tag = tag.map(str::parse::<Tag>).transpose().map_err(describe)?;
    let (host, path) = split_host(name);
    let host = host.map_or(DOCKER_HUB, canonical_host);
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.parse().map_err(describe)?),
        (tag, _) => tag,
    };
    Ok(ImageName {
        host: host.to_owned(),
        repository: full_path(host, path).parse().map_err(describe)?,
        tag,
        digest,
    })
}

/// A name and the digest behind it.
pub(crate) fn split_digest(text: &str) -> (&str, Option<&str>) {
    text.split_once('@')
        .map_or((text, None), |(name, digest)| (name, Some(digest)))
}

/// A name and the tag behind it: a colon in front of a slash is a port's.
pub(crate) fn split_tag(name: &str) -> (&str, Option<&str>) {
    name.rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .map_or((name, None), |(name, tag)| (name, Some(tag)))
}

/// The host in front of a name and the path behind it: a host holds a dot or a colon or is
/// `localhost`.
pub(crate) fn split_host(name: &str) -> (Option<&str>, &str) {
    name.split_once('/')
        .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
        .map_or((None, name), |(host, path)| (Some(host), path))
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
