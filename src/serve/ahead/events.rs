//! The notifications of registries, read into the pushes that they announce. Pure.
//!
//! | sender | form |
//! |---|---|
//! | distribution (docker-registry) | an envelope `{"events": […]}` |
//! | Harbor, "Default" | `{"type": "PUSH_ARTIFACT", "event_data": {…}}` |
//! | Harbor, "CloudEvents" | a structured CloudEvent, `harbor.artifact.pushed` |
//! | zot | a binary CloudEvent, `zotregistry.image.updated`; its prefix can be configured |
//! | others | CloudEvents, structured, in a batch or binary, whose type ends in `image.pushed` |
//!
//! Foreign texts are only borrowed from the body, and a list ends at its limit, so the memory is a
//! few times that of the body.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::oci::media_type::manifest_kind;
use crate::oci::{Digest, Repository, Tag};

/// The most events of a notification, and artifacts of an event. docker-registry and zot send one
/// event at a time, Harbor an event for each pushed artifact.
const MAX_EVENTS: usize = 256;

/// The ends of the types of CloudEvents that announce a push: Harbor's, zot's, and everybody's.
const PUSHES: [&str; 3] = ["artifact.pushed", "image.updated", "image.pushed"];

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) repository: Repository,
    pub(super) tag: Option<Tag>,
    /// `None` only if there is a tag.
    pub(super) digest: Option<Digest>,
}

/// The content of a notification.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) pushed: Vec<Pushed>,
    /// Events about something else: pulls, deletions, layers, scans.
    pub(super) others: usize,
    /// Pushes that do not name an image.
    pub(super) malformed: usize,
}

/// The body is not a notification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the body is not JSON, or an event in it has the wrong form")]
    Json,
    #[error("the body is no notification of distribution, Harbor or zot, and no CloudEvent")]
    Form,
}

/// Reads the body of a notification.
pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Announced, Unreadable> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut announced = Announced::default();
    if text("ce-specversion").is_some() {
        let data: &RawValue = parse(body)?;
        announced.cloud_event(text("ce-type").unwrap_or_default(), Some(data));
        return Ok(announced);
    }
    let kind = text(CONTENT_TYPE.as_str()).and_then(|kind| kind.split(';').next());
    if kind.is_some_and(|kind| kind.trim() == "application/cloudevents-batch+json") {
        for event in parse::<Bounded<Body<'_>>>(body)?.0 {
            announced.structured(&event)?;
        }
        return Ok(announced);
    }
    let body: Body<'_> = parse(body)?;
    if let Some(Bounded(events)) = &body.events {
        for event in events {
            announced.of_distribution(event);
        }
    } else if let (Some(kind), Some(data)) = (&body.kind, body.event_data) {
        match &**kind {
            "PUSH_ARTIFACT" => announced.data(data),
            _ => announced.others += 1,
        }
    } else {
        announced.structured(&body)?;
    }
    Ok(announced)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(text).map_err(|_error| Unreadable::Json)
}

/// The fields of every form. Others are skipped.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    events: Option<Bounded<&'a RawValue>>,
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event_data: Option<&'a RawValue>,
    specversion: Option<IgnoredAny>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct DistributionEvent<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    target: DistributionTarget<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DistributionTarget<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    repository: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tag: Option<Cow<'a, str>>,
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
}

/// The data of a push in a CloudEvent, or of one of Harbor.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    /// Harbor's artifacts.
    #[serde(borrow)]
    resources: Option<Bounded<Resource<'a>>>,
    /// An object of Harbor, or the repository's name.
    #[serde(borrow)]
    repository: Option<&'a RawValue>,
    /// zot's name of the repository.
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    /// zot's tag or digest.
    #[serde(borrow)]
    reference: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tag: Option<Cow<'a, str>>,
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
    /// The digest if there is no tag.
    #[serde(borrow)]
    tag: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct HarborRepository<'a> {
    #[serde(borrow)]
    repo_full_name: Cow<'a, str>,
}

impl Announced {
    fn of_distribution(&mut self, event: &RawValue) {
        let Ok(event) = serde_json::from_str::<DistributionEvent<'_>>(event.get()) else {
            self.malformed += 1;
            return;
        };
        let target = event.target;
        // Layers and configurations are announced too.
        let is_manifest = target.media_type.as_deref().is_some_and(is_manifest);
        if event.action != "push" || !is_manifest {
            self.others += 1;
            return;
        }
        self.push(
            target.repository.as_deref(),
            target.tag.as_deref(),
            target.digest.as_deref(),
        );
    }

    fn structured(&mut self, event: &Body<'_>) -> Result<(), Unreadable> {
        let (Some(_), Some(kind)) = (&event.specversion, &event.kind) else {
            return Err(Unreadable::Form);
        };
        self.cloud_event(kind, event.data);
        Ok(())
    }

    fn cloud_event(&mut self, kind: &str, data: Option<&RawValue>) {
        let is_push = PUSHES.iter().any(|end| {
            let start = kind.strip_suffix(end);
            start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
        });
        match data {
            _ if !is_push => self.others += 1,
            Some(data) => self.data(data),
            None => self.malformed += 1,
        }
    }

    fn data(&mut self, data: &RawValue) {
        let Ok(data) = serde_json::from_str::<Data<'_>>(data.get()) else {
            self.malformed += 1;
            return;
        };
        if data
            .media_type
            .as_deref()
            .is_some_and(|kind| !is_manifest(kind))
        {
            self.others += 1;
            return;
        }
        let repository = match data.repository {
            Some(repository) => repository_of(repository.get()),
            None => data.name,
        };
        let repository = repository.as_deref();
        match data.resources {
            Some(Bounded(resources)) => {
                for Resource { tag, digest } in resources {
                    self.push(repository, tag.as_deref(), digest.as_deref());
                }
            }
            None => {
                let tag = data.tag.or(data.reference);
                self.push(repository, tag.as_deref(), data.digest.as_deref());
            }
        }
    }

    /// Notes a push. A digest in place of the tag is none.
    fn push(&mut self, repository: Option<&str>, tag: Option<&str>, digest: Option<&str>) {
        let pushed = pushed(repository, tag, digest);
        match pushed {
            Some(pushed) => self.pushed.push(pushed),
            None => self.malformed += 1,
        }
    }
}

fn is_manifest(media_type: &str) -> bool {
    manifest_kind(media_type).is_some()
}

fn pushed(repository: Option<&str>, tag: Option<&str>, digest: Option<&str>) -> Option<Pushed> {
    let repository = repository?.parse().ok()?;
    let (tag, digest) = match tag.filter(|tag| !tag.is_empty()) {
        Some(text) if text.contains(':') => (None, Some(text)),
        tag => (tag, digest),
    };
    let tag = tag.map(str::parse).transpose().ok()?;
    let digest = digest.map(str::parse).transpose().ok()?;
    (tag.is_some() || digest.is_some()).then_some(Pushed {
        repository,
        tag,
        digest,
    })
}

fn repository_of(json: &str) -> Option<Cow<'_, str>> {
    if let Ok(harbor) = serde_json::from_str::<HarborRepository<'_>>(json) {
        return Some(harbor.repo_full_name);
    }
    serde_json::from_str::<Cow<'_, str>>(json).ok()
}

/// A list that is an error if it has more than [`MAX_EVENTS`] entries.
struct Bounded<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_seq(BoundedVisitor(PhantomData))
            .map(Self)
    }
}

struct BoundedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_EVENTS} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MAX_EVENTS {
                return Err(A::Error::custom("too many entries"));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest() -> String {
        Digest::sha256_of(b"x").to_string()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let lines = lines.iter();
        lines
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn read_json(lines: &[(&'static str, &str)], body: &Value) -> Result<Announced, Unreadable> {
        read(&headers(lines), body.to_string().as_bytes())
    }

    /// The pushes as text.
    fn pushes(announced: &Announced) -> Vec<String> {
        let text = |pushed: &Pushed| {
            let tag = pushed.tag.as_ref().map_or("-", Tag::as_str);
            let digest = pushed
                .digest
                .as_ref()
                .map_or("-".to_owned(), ToString::to_string);
            format!("{} {tag} {digest}", pushed.repository)
        };
        announced.pushed.iter().map(text).collect()
    }

    fn of_distribution(action: &str, media_type: &str, tag: Option<&str>) -> Value {
        json!({
            "id": "1", "timestamp": "2026-11-29T12:00:00Z", "action": action,
            "target": {"mediaType": media_type, "size": 7, "digest": digest(), "length": 7,
                "repository": "team/app", "url": "http://registry/v2/team/app/manifests/x", "tag": tag},
            "request": {"id": "2", "addr": "10.0.0.1:2", "host": "registry", "method": "PUT"},
            "actor": {}, "source": {"addr": "registry:5000", "instanceID": "3"},
        })
    }

    #[test]
    fn distribution_announces_pushes_among_other_events() {
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let body = json!({"events": [
            of_distribution("push", OCI, Some("v1")),
            of_distribution("push", OCI, None),
            of_distribution("push", layer, None),
            of_distribution("pull", OCI, Some("v1")),
            {"action": "delete", "target": {"digest": digest(), "repository": "team/app"}},
            {"action": 7},
        ]});
        let kind = "application/vnd.docker.distribution.events.v1+json";
        let announced = read_json(&[("content-type", kind)], &body).unwrap();
        let digest = digest();
        let expected = [
            format!("team/app v1 {digest}"),
            format!("team/app - {digest}"),
        ];
        assert_eq!(pushes(&announced), expected);
        assert_eq!((announced.others, announced.malformed), (3, 1));
    }

    /// Harbor's fields, as its documentation of webhooks and its source have them.
    fn of_harbor(tag: &str) -> Value {
        json!({
            "resources": [{"digest": digest(), "tag": tag, "resource_url": "harbor.example/team/app:v1"}],
            "repository": {"date_created": 1_700_000_000, "name": "app", "namespace": "team",
                "repo_full_name": "team/app", "repo_type": "private"},
        })
    }

    #[test]
    fn both_formats_of_harbor_are_read() {
        let digest = digest();
        let default = |kind: &str, tag: &str| json!({"type": kind, "occur_at": 1_700_000_000, "operator": "admin", "event_data": of_harbor(tag)});
        let json_kind = [("content-type", "application/json")];
        let announced = read_json(&json_kind, &default("PUSH_ARTIFACT", "v1")).unwrap();
        assert_eq!(pushes(&announced), [format!("team/app v1 {digest}")]);
        let announced = read_json(&json_kind, &default("PUSH_ARTIFACT", &digest)).unwrap();
        assert_eq!(pushes(&announced), [format!("team/app - {digest}")]);
        let announced = read_json(&json_kind, &default("PULL_ARTIFACT", "v1")).unwrap();
        assert_eq!((announced.pushed.len(), announced.others), (0, 1));

        let event = |kind: &str| {
            json!({"specversion": "1.0", "id": "1", "requestid": "2", "source": "/projects/1/webhook/policies/3",
                "type": kind, "datacontenttype": "application/json", "time": "2026-11-29T12:00:00Z",
                "data": of_harbor("v1"), "operator": "admin"})
        };
        let structured = [("content-type", "application/cloudevents+json")];
        let announced = read_json(&structured, &event("harbor.artifact.pushed")).unwrap();
        assert_eq!(pushes(&announced), [format!("team/app v1 {digest}")]);
        let announced = read_json(&structured, &event("harbor.artifact.pulled")).unwrap();
        assert_eq!((announced.pushed.len(), announced.others), (0, 1));
        let batch = [(
            "content-type",
            "application/cloudevents-batch+json; charset=utf-8",
        )];
        let events = json!([
            event("harbor.artifact.pushed"),
            event("harbor.scan.completed")
        ]);
        let announced = read_json(&batch, &events).unwrap();
        assert_eq!((announced.pushed.len(), announced.others), (1, 1));
    }

    #[test]
    fn binary_events_of_zot_are_read() {
        let digest = digest();
        let event = |kind: &str, data: &Value| {
            let lines = [
                ("ce-specversion", "1.0"),
                ("ce-type", kind),
                ("ce-source", "zotregistry.dev"),
                ("ce-id", "1"),
                ("content-type", "application/json"),
            ];
            read_json(&lines, data).unwrap()
        };
        let data = |reference: &str| {
            json!({"name": "team/app", "reference": reference, "digest": digest, "mediaType": OCI,
                "manifest": "{\"schemaVersion\":2}"})
        };
        for kind in [
            "zotregistry.image.updated",
            "com.example.registry.image.updated",
        ] {
            let announced = event(kind, &data("v1"));
            assert_eq!(pushes(&announced), [format!("team/app v1 {digest}")]);
        }
        let announced = event("zotregistry.image.updated", &data(&digest));
        assert_eq!(pushes(&announced), [format!("team/app - {digest}")]);
        for kind in [
            "zotregistry.image.deleted",
            "zotregistry.repository.created",
            "myimage.pushed",
        ] {
            let announced = event(kind, &data("v1"));
            assert_eq!((announced.pushed.len(), announced.others), (0, 1), "{kind}");
        }
        let plain = event(
            "image.pushed",
            &json!({"repository": "team/app", "tag": "v2"}),
        );
        assert_eq!(pushes(&plain), ["team/app v2 -"]);
    }

    #[test]
    fn hostile_notifications_are_errors_or_name_nothing() {
        let none: &[(&'static str, &str)] = &[];
        for body in [
            "",
            "null",
            "[]",
            "7",
            "{\"events\": 7}",
            "{\"events\": [",
            "\u{0}",
        ] {
            assert_eq!(
                read(&headers(none), body.as_bytes()),
                Err(Unreadable::Json),
                "{body:?}"
            );
        }
        for body in ["{}", "{\"type\": \"x\"}", "{\"specversion\": \"1.0\"}"] {
            assert_eq!(
                read(&headers(none), body.as_bytes()),
                Err(Unreadable::Form),
                "{body:?}"
            );
        }
        let many = |count: usize| format!("{{\"events\": [{}{{}}]}}", "{},".repeat(count - 1));
        let announced = read(&headers(none), many(MAX_EVENTS).as_bytes()).unwrap();
        assert_eq!(announced.malformed, MAX_EVENTS);
        assert_eq!(
            read(&headers(none), many(MAX_EVENTS + 1).as_bytes()),
            Err(Unreadable::Json)
        );
        for (repository, tag) in [
            ("../../etc", "v1"),
            ("A", "v1"),
            ("a", "v 1"),
            ("a", "sha256:1"),
            ("a\r\nX: y", "v1"),
        ] {
            let body = json!({"specversion": "1.0", "type": "image.pushed",
                "data": {"repository": repository, "tag": tag}});
            let announced = read_json(none, &body).unwrap();
            assert_eq!(
                (announced.pushed.len(), announced.malformed),
                (0, 1),
                "{body}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body in "[\\[\\]{}\":,a-z0-9]{0,60}", binary in any::<bool>()) {
            let lines: &[(&'static str, &str)] =
                if binary { &[("ce-specversion", "1.0"), ("ce-type", "image.pushed")] } else { &[] };
            if let Ok(announced) = read(&headers(lines), body.as_bytes()) {
                prop_assert!(announced.pushed.len() <= MAX_EVENTS);
            }
        }
    }
}
