//! The operation and the upstream that a request below `/v2/` names.
//!
//! Repository names hold slashes, so paths are split from the right. Nothing here looks anything
//! up.

use super::digest::{Digest, ParseDigestError};
use super::hub::{DOCKER_HUB, canonical_host, full_path};
use super::reference::{Reference, Repository};

/// A request: the repository name as the client wrote it, and the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The repository's path, with an upstream as its prefix or without.
    pub name: Repository,
    pub operation: Operation,
}

/// The read operations of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Manifest(Reference),
    Blob(Digest),
    Referrers(Digest),
    Tags,
}

/// The reason why a path is not a route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no such endpoint")]
    Endpoint,
    #[error("the registry is read-only and lists no catalog")]
    Unsupported,
    #[error("the repository name is invalid")]
    Name,
    #[error("the digest is invalid: {0}")]
    Digest(ParseDigestError),
    #[error("the tag is invalid")]
    Tag,
}

impl Route {
    /// Parses the path behind `/v2/`, already percent-decoded.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        if path == "_catalog" || path.ends_with("/blobs/uploads/") {
            return Err(RouteError::Unsupported);
        }
        let (rest, last) = path.rsplit_once('/').ok_or(RouteError::Endpoint)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(RouteError::Endpoint)?;
        if kind == "uploads" && name.ends_with("/blobs") {
            return Err(RouteError::Unsupported);
        }
        let operation = match (kind, last) {
            ("manifests", reference) => Operation::Manifest(parse_reference(reference)?),
            ("blobs", digest) => Operation::Blob(digest.parse().map_err(RouteError::Digest)?),
            ("referrers", digest) => {
                Operation::Referrers(digest.parse().map_err(RouteError::Digest)?)
            }
            ("tags", "list") => Operation::Tags,
            _ => return Err(RouteError::Endpoint),
        };
        let name = name.parse().ok().ok_or(RouteError::Name)?;
        Ok(Self { name, operation })
    }
}

fn parse_reference(text: &str) -> Result<Reference, RouteError> {
    if text.contains(':') {
        text.parse()
            .map(Reference::Digest)
            .map_err(RouteError::Digest)
    } else {
        text.parse().map(Reference::Tag).ok().ok_or(RouteError::Tag)
    }
}

/// The location of a repository: the upstream's name and the repository there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    pub upstream: String,
    pub repository: Repository,
}

impl Location {
    /// Finds the upstream: a path prefix, else `namespace`, else Docker Hub.
    ///
    /// The first of two or more components is a prefix if `is_configured` accepts it or if it holds
    /// a dot, as a host does. containerd's `override_path` sends prefix and namespace together, so
    /// the prefix wins and is not doubled. `None` if the remaining name is not a valid repository.
    pub fn of(
        name: &Repository,
        namespace: Option<&str>,
        is_configured: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let prefix = name
            .as_str()
            .split_once('/')
            .filter(|(first, _)| first.contains('.') || is_configured(first));
        let (upstream, repository) = match (prefix, namespace) {
            (Some((first, rest)), _) => (first, rest),
            (None, Some(namespace)) => (namespace, name.as_str()),
            (None, None) => (DOCKER_HUB, name.as_str()),
        };
        let upstream = canonical_host(upstream);
        Some(Self {
            upstream: upstream.to_owned(),
            repository: full_path(upstream, repository).parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(name: &str, namespace: Option<&str>) -> (String, String) {
        let name: Repository = name.parse().unwrap();
        let location = Location::of(&name, namespace, |name| name == "local").unwrap();
        (location.upstream, location.repository.to_string())
    }

    #[test]
    fn paths_are_split_from_the_right() {
        let digest = Digest::sha256_of(b"x");
        let route = Route::parse(&format!("a/manifests/b/blobs/{digest}")).unwrap();
        assert_eq!(route.name.as_str(), "a/manifests/b");
        assert_eq!(route.operation, Operation::Blob(digest.clone()));
        assert_eq!(
            Route::parse("a/tags/list").unwrap().operation,
            Operation::Tags
        );
        let by_digest = Route::parse(&format!("a/manifests/{digest}")).unwrap();
        assert_eq!(
            by_digest.operation,
            Operation::Manifest(Reference::Digest(digest))
        );
    }

    #[test]
    fn an_invalid_path_is_refused_with_its_reason() {
        let cases = [
            ("_catalog", RouteError::Unsupported),
            ("a/blobs/uploads/", RouteError::Unsupported),
            ("a/blobs/uploads/5", RouteError::Unsupported),
            ("", RouteError::Endpoint),
            ("a", RouteError::Endpoint),
            ("tags/list", RouteError::Endpoint),
            ("a/tags/other", RouteError::Endpoint),
            ("A/tags/list", RouteError::Name),
            ("a/../b/tags/list", RouteError::Name),
            ("/tags/list", RouteError::Name),
            ("a/manifests/.hidden", RouteError::Tag),
            (
                "a/manifests/sha256:12",
                RouteError::Digest(ParseDigestError::Hex(64)),
            ),
            ("a/blobs/latest", RouteError::Digest(ParseDigestError::Form)),
            (
                "a/referrers/md5:00",
                RouteError::Digest(ParseDigestError::Algorithm),
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(Route::parse(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn the_upstream_is_found_in_every_form() {
        let cases = [
            ("nginx", None, "docker.io", "library/nginx"),
            ("a/b", None, "docker.io", "a/b"),
            ("docker.io/nginx", None, "docker.io", "library/nginx"),
            (
                "index.docker.io/library/nginx",
                None,
                "docker.io",
                "library/nginx",
            ),
            ("ghcr.io/a/b", None, "ghcr.io", "a/b"),
            ("local/a", None, "local", "a"),
            ("local", None, "docker.io", "library/local"),
            ("a.b", None, "docker.io", "library/a.b"),
            (
                "library/nginx",
                Some("docker.io"),
                "docker.io",
                "library/nginx",
            ),
            (
                "nginx",
                Some("registry-1.docker.io"),
                "docker.io",
                "library/nginx",
            ),
            ("app", Some("127.0.0.1:5000"), "127.0.0.1:5000", "app"),
            (
                "docker.io/library/nginx",
                Some("docker.io"),
                "docker.io",
                "library/nginx",
            ),
            ("ghcr.io/a/b", Some("quay.io"), "ghcr.io", "a/b"),
            ("local/a", Some("127.0.0.1:5000"), "local", "a"),
        ];
        for (name, namespace, upstream, repository) in cases {
            assert_eq!(
                locate(name, namespace),
                (upstream.to_owned(), repository.to_owned()),
                "{name} with {namespace:?}"
            );
        }
    }
}
