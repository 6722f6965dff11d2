//! The line of one decision. Its form is documented in docs/OPERATIONS.md.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;

use crate::oci::route::Location;
use crate::oci::{Digest, Reference};
use crate::serve::access::Identity;

/// The longest name of an identity in a line. Names of users come from clients.
const MAX_NAME: usize = 256;
/// Actions of which every request has a line. The others have one a minute: a lazy client sends
/// thousands of ranges for each container, and agents and scrapers come all the time.
const ALWAYS: [&str; 2] = ["pull-manifest", "warm"];
/// Reasons of refusals of which each client has one line a minute, whatever it asked for: they are
/// given while there is too much to do.
const OVERLOAD: [&str; 2] = ["busy", "budget-"];

/// Whether a request was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Decision {
    Allowed,
    Refused,
}

/// The image that a request was about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Image<'a> {
    pub(crate) location: Option<&'a Location>,
    pub(crate) reference: Option<&'a Reference>,
    /// The digest in the request.
    pub(crate) digest: Option<&'a Digest>,
    /// The digest in the answer, which counts more.
    pub(crate) answered: Option<&'a str>,
}

/// A decision about a request. Nothing is written as text before it is known that there will be a
/// line.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) request: &'a str,
    pub(crate) address: Option<IpAddr>,
    /// `None` if nobody has judged it.
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) kind: &'static str,
    pub(crate) action: &'static str,
    pub(crate) method: &'a str,
    pub(crate) image: Image<'a>,
    pub(crate) decision: Decision,
    /// The reason of the decision.
    pub(crate) by: &'a str,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
}

/// The line, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    identity: &'a str,
    kind: &'a str,
    action: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    /// The tag, or the digest in place of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    decision: Decision,
    by: &'a str,
    status: u16,
    bytes: u64,
}

/// The parts of a decision that make it the same as another one.
type Repeated<'a> = (
    Option<IpAddr>,
    (&'a str, Option<&'a str>),
    &'a str,
    Option<(&'a str, &'a str, Image<'a>)>,
);

impl Entry<'_> {
    /// The parts that count, if a repetition of the decision is left out; `None` if each has a line.
    pub(super) fn repeated(&self) -> Option<Repeated<'_>> {
        let identity = (self.kind, self.identity.and_then(Identity::user));
        let object = (self.action, self.method, self.image);
        let is_overload = OVERLOAD.iter().any(|reason| self.by.starts_with(reason));
        match self.decision {
            Decision::Refused if is_overload => Some((self.address, identity, self.by, None)),
            _ if ALWAYS.contains(&self.action) => None,
            _ => Some((self.address, identity, self.by, Some(object))),
        }
    }

    pub(super) fn line(&self) -> Vec<u8> {
        let identity = self.identity.map(ToString::to_string);
        let identity = identity.as_deref().unwrap_or(self.kind);
        let identity = match identity.char_indices().nth(MAX_NAME) {
            Some((end, _)) => &identity[..end],
            None => identity,
        };
        let Image {
            location,
            reference,
            digest,
            answered,
        } = self.image;
        let in_request = match reference {
            Some(Reference::Digest(digest)) => Some(digest),
            Some(Reference::Tag(_)) | None => digest,
        };
        let line = Line {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request: self.request,
            address: self.address,
            identity,
            kind: self.kind,
            action: self.action,
            method: self.method,
            upstream: location.map(|location| location.upstream.as_str()),
            repository: location.map(|location| location.repository.as_str()),
            reference: reference.map(ToString::to_string),
            digest: answered
                .map(str::to_owned)
                .or_else(|| in_request.map(ToString::to_string)),
            decision: self.decision,
            by: self.by,
            status: self.status,
            bytes: self.bytes,
        };
        // Texts, numbers and an address: writing them cannot fail.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn entry<'a>(
        action: &'static str,
        by: &'a str,
        identity: &'a Identity,
        image: Image<'a>,
    ) -> Entry<'a> {
        Entry {
            request: "id",
            address: "10.0.0.1".parse().ok(),
            identity: Some(identity),
            kind: "user",
            action,
            method: "GET",
            image,
            decision: Decision::Refused,
            by,
            status: 403,
            bytes: 7,
        }
    }

    #[test]
    fn a_line_is_one_line_of_json_and_names_are_cut() {
        let location = Location {
            upstream: "a.example".to_owned(),
            repository: "a/b".parse().unwrap(),
        };
        let image = Image {
            location: Some(&location),
            ..Image::default()
        };
        let (odd, long) = (
            Identity::User("a\"\n".to_owned()),
            Identity::User("ü".repeat(1000)),
        );
        let text = entry("pull-blob", "rule", &odd, image).line();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["identity"], "user:a\"\n");
        assert_eq!(value["decision"], "refused");
        assert_eq!(value["repository"], "a/b");
        assert_eq!(value.get("digest"), None);
        let text = entry("pull-blob", "rule", &long, image).line();
        let value: Value = serde_json::from_slice(&text).unwrap();
        let name = value["identity"].as_str().unwrap();
        assert_eq!(name.chars().count(), MAX_NAME);
    }

    #[test]
    fn manifests_always_have_a_line_and_overload_one_whatever_was_asked_for() {
        let digest = Digest::sha256_of(b"x");
        let other = Image {
            digest: Some(&digest),
            ..Image::default()
        };
        let (one, user) = (Image::default(), Identity::User("a".to_owned()));
        assert_eq!(entry("pull-manifest", "rule", &user, one).repeated(), None);
        let busy = "budget-address-requests";
        assert_eq!(
            entry("pull-manifest", busy, &user, one).repeated(),
            entry("pull-blob", busy, &user, other).repeated()
        );
        let blob = |user, image| entry("pull-blob", "rule", user, image);
        assert_ne!(blob(&user, one).repeated(), blob(&user, other).repeated());
        assert_eq!(blob(&user, one).repeated(), blob(&user, one).repeated());
        let second = Identity::User("b".to_owned());
        assert_ne!(blob(&user, one).repeated(), blob(&second, one).repeated());
    }
}
