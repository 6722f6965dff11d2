//! Repository names, tags and the references that name a manifest
//! (OCI distribution-spec, "Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::Digest;

/// The longest repository name. Host and name together stay below 255 characters in every registry.
const MAX_REPOSITORY_LEN: usize = 255;
/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
const MAX_TAG_LEN: usize = 128;

/// A valid repository name, without a host: `library/nginx`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

/// A valid tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

/// A tag or a digest that names a manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// The reason why a text is not a repository name, tag or reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    #[error(
        "{0:?} is not a repository name: lower-case letters, digits, single separators, at most 255 characters"
    )]
    Repository(String),
    #[error("{0:?} is not a tag: letters, digits, '_', '.', '-', at most 128 characters")]
    Tag(String),
    #[error("{0:?} does not hold a valid digest: {1}")]
    Digest(String, super::digest::ParseDigestError),
}

impl Repository {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= MAX_REPOSITORY_LEN && text.split('/').all(is_path_component) {
            Ok(Self(text.into()))
        } else {
            Err(ParseReferenceError::Repository(text.to_owned()))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges_fit =
        bytes.first().is_some_and(is_alphanumeric) && bytes.last().is_some_and(is_alphanumeric);
    edges_fit
        && bytes.split(is_alphanumeric).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
        })
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = text.len() <= MAX_TAG_LEN
            && text.bytes().next().is_some_and(is_word)
            && text
                .bytes()
                .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(ParseReferenceError::Tag(text.to_owned()))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    /// A text with a colon is a digest, any other a tag: no tag can hold a colon.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            text.parse()
                .map(Self::Digest)
                .map_err(|error| ParseReferenceError::Digest(text.to_owned(), error))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for name in [
            "nginx",
            "library/nginx",
            "a.b/c_d/e__f/g--h",
            "docker.io/library/nginx",
        ] {
            assert!(name.parse::<Repository>().is_ok(), "{name}");
        }
        for name in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "-a", "a:5000/b", "..", "a/../b",
        ] {
            assert!(name.parse::<Repository>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        assert!(matches!("1.21.1".parse(), Ok(Reference::Tag(_))));
        let digest = Digest::sha256_of(b"x").to_string();
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        for text in ["", ".a", "a/b", "sha256:00", "a:b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
