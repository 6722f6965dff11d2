//! The line of one decision. Its form is documented in docs/OPERATIONS.md.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<String>,
    /// The tag, or the digest in place of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    /// The digest of the manifest or blob in the answer, or else of the one in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
}

/// A decision about a request.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) request: &'a str,
    pub(crate) address: Option<IpAddr>,
    /// Without secrets.
    pub(crate) identity: &'a str,
    pub(crate) kind: &'static str,
    pub(crate) action: &'static str,
    pub(crate) method: &'a str,
    pub(crate) image: &'a Image,
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
    #[serde(flatten)]
    image: &'a Image,
    decision: Decision,
    by: &'a str,
    status: u16,
    bytes: u64,
}

/// The parts of a decision that make it the same as another one.
type Repeated<'a> = (
    Option<IpAddr>,
    &'a str,
    &'a str,
    Option<(&'a str, &'a str, &'a Image)>,
);

impl Entry<'_> {
    /// The parts that count, if a repetition of the decision is left out; `None` if each has a line.
    pub(super) fn repeated(&self) -> Option<Repeated<'_>> {
        let what = (self.action, self.method, self.image);
        let is_overload = OVERLOAD.iter().any(|reason| self.by.starts_with(reason));
        match self.decision {
            Decision::Refused if is_overload => Some((self.address, self.identity, self.by, None)),
            _ if ALWAYS.contains(&self.action) => None,
            _ => Some((self.address, self.identity, self.by, Some(what))),
        }
    }

    pub(super) fn line(&self) -> Vec<u8> {
        let identity = match self.identity.char_indices().nth(MAX_NAME) {
            Some((end, _)) => &self.identity[..end],
            None => self.identity,
        };
        let line = Line {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request: self.request,
            address: self.address,
            identity,
            kind: self.kind,
            action: self.action,
            method: self.method,
            image: self.image,
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

    fn entry<'a>(action: &'static str, by: &'a str, image: &'a Image) -> Entry<'a> {
        Entry {
            request: "id",
            address: "10.0.0.1".parse().ok(),
            identity: "user:a\"\n",
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
        let image = Image {
            repository: Some("a/b".to_owned()),
            ..Image::default()
        };
        let long = "ü".repeat(1000);
        let mut entry = entry("pull-blob", "rule", &image);
        let text = String::from_utf8(entry.line()).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["identity"], "user:a\"\n");
        assert_eq!(value["decision"], "refused");
        assert_eq!(value.get("digest"), None);
        entry.identity = &long;
        let value: Value = serde_json::from_slice(&entry.line()).unwrap();
        assert_eq!(
            value["identity"].as_str().unwrap().chars().count(),
            MAX_NAME
        );
    }

    #[test]
    fn manifests_always_have_a_line_and_overload_one_whatever_was_asked_for() {
        let (one, other) = (
            Image::default(),
            Image {
                digest: Some("x".to_owned()),
                ..Image::default()
            },
        );
        assert_eq!(entry("pull-manifest", "rule", &one).repeated(), None);
        let busy = |action, image| entry(action, "budget-address-requests", image);
        assert_eq!(
            busy("pull-manifest", &one).repeated(),
            busy("pull-blob", &other).repeated()
        );
        let blob = |image| entry("pull-blob", "rule", image);
        assert_ne!(blob(&one).repeated(), blob(&other).repeated());
        assert_eq!(blob(&one).repeated(), blob(&one.clone()).repeated());
    }
}
