//! Distinguishes manifests from everything else that may come in their place: a login page, a list
//! of errors, a configuration.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::digest::Digest;
use super::lenient::{Outline, field};
use super::manifest::Manifest;
use super::media_type::{self, DOCKER_SCHEMA_1, DOCKER_SIGNED_SCHEMA_1, ManifestKind};

/// The number of characters of foreign text that an error repeats.
const MAX_REPEATED: usize = 100;

/// The reason why some bytes are not the requested manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("bytes do not have the digest {expected}")]
    WrongDigest { expected: Digest },
    #[error("{0}")]
    NoManifest(String),
}

/// Reads the manifest in `bytes`, which was served with the media type `named`, and checks it
/// against `expected`, if there is one.
pub fn read(
    named: Option<&str>,
    expected: Option<Digest>,
    bytes: Bytes,
) -> Result<Manifest, DocumentError> {
    let digest = match expected {
        Some(expected) => {
            let is = |bytes: &[u8]| {
                let mut hasher = expected.hasher();
                hasher.update(bytes);
                hasher.finish() == expected
            };
            if !is(&bytes) && !signed_payload(&bytes).is_some_and(|payload| is(&payload)) {
                return Err(DocumentError::WrongDigest { expected });
            }
            Some(expected)
        }
        None => None,
    };
    let media_type = media_type_of(named, &bytes).map_err(DocumentError::NoManifest)?;
    let digest = digest.unwrap_or_else(|| {
        let payload = (media_type == DOCKER_SIGNED_SCHEMA_1)
            .then(|| signed_payload(&bytes))
            .flatten();
        Digest::sha256_of(payload.as_deref().unwrap_or(&bytes))
    });
    Ok(Manifest {
        media_type,
        digest,
        bytes,
    })
}

/// Returns the media type of the manifest in `bytes`, which was served with the media type `named`,
/// or the reason why it is not a manifest.
///
/// `named` counts if Starlift knows it and the document has its shape. Registries also send generic
/// types (`application/json`, `text/plain`). Then the document's own `mediaType` counts, or its
/// shape.
pub fn media_type_of(named: Option<&str>, bytes: &[u8]) -> Result<String, String> {
    let named = named.unwrap_or_default();
    let Ok(outline) = serde_json::from_slice::<Document>(bytes) else {
        return Err(format!(
            "it is no manifest but {}",
            if named.is_empty() {
                "something else".to_owned()
            } else {
                cut(named)
            }
        ));
    };
    let own = outline.media_type.as_deref().unwrap_or_default();
    let shape = outline.shape();
    for candidate in [named, own] {
        if let Some(wanted) = Shape::of_type(candidate) {
            let disagree = || format!("it is called {} and is something else", cut(candidate));
            return if shape.may_be(wanted) {
                Ok(candidate.to_owned())
            } else {
                Err(disagree())
            };
        }
    }
    // A kind of manifest that Starlift does not know. Artifacts have had some.
    if is_vendors(own) && (outline.version.is_some() || own == named) {
        return Ok(own.to_owned());
    }
    let by_shape = match shape {
        Shape::Index => Some(media_type::OCI_INDEX),
        Shape::Image if outline.version.is_some() || outline.has_layers => {
            Some(media_type::OCI_MANIFEST)
        }
        Shape::Schema1 if outline.has_signatures => Some(DOCKER_SIGNED_SCHEMA_1),
        Shape::Schema1 => Some(DOCKER_SCHEMA_1),
        Shape::Image | Shape::Several | Shape::Other => None,
    };
    match by_shape {
        Some(media_type) => Ok(media_type.to_owned()),
        None if is_vendors(named) && outline.version.is_some() => Ok(named.to_owned()),
        None => Err("it is JSON and no manifest".to_owned()),
    }
}

fn is_vendors(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.") && media_type.ends_with("json")
}

/// Foreign text, cut and quoted.
fn cut(text: &str) -> String {
    format!("{:?}", text.chars().take(MAX_REPEATED).collect::<String>())
}

/// The kind of manifest that a document looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Image,
    Index,
    /// Docker's manifests of before 2016.
    Schema1,
    /// Readable as more than one kind. Its media type decides, and it is never converted.
    Several,
    Other,
}

impl Shape {
    fn of_type(media_type: &str) -> Option<Self> {
        match media_type {
            DOCKER_SCHEMA_1 | DOCKER_SIGNED_SCHEMA_1 => Some(Self::Schema1),
            other => media_type::manifest_kind(other).map(|kind| match kind {
                ManifestKind::Image => Self::Image,
                ManifestKind::Index => Self::Index,
            }),
        }
    }

    fn may_be(self, wanted: Self) -> bool {
        self == wanted || self == Self::Several
    }
}

/// The fields that distinguish the kinds of documents.
#[derive(Debug, Default)]
struct Document {
    version: Option<u64>,
    media_type: Option<String>,
    is_index: bool,
    has_config: bool,
    has_layers: bool,
    is_schema1: bool,
    has_signatures: bool,
}

impl Document {
    fn shape(&self) -> Shape {
        let is_image = self.has_config || self.has_layers;
        match (is_image, self.is_index, self.is_schema1) {
            (true, false, false) => Shape::Image,
            (false, true, false) => Shape::Index,
            (false, false, true) => Shape::Schema1,
            (false, false, false) => Shape::Other,
            _ => Shape::Several,
        }
    }

    fn note(&mut self, name: &str, value: Outline) {
        match (name, value) {
            ("schemaVersion", Outline::Number(version)) => self.version = Some(version),
            ("mediaType", Outline::Text(text)) => self.media_type = Some(text),
            ("manifests", Outline::List | Outline::Null) => self.is_index = true,
            ("config", Outline::Object) => self.has_config = true,
            ("layers", Outline::List) => self.has_layers = true,
            ("fsLayers", Outline::List) => self.is_schema1 = true,
            ("signatures", Outline::List) => self.has_signatures = true,
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Document, A::Error> {
                let known = &[
                    "schemaVersion",
                    "mediaType",
                    "manifests",
                    "config",
                    "layers",
                    "fsLayers",
                    "signatures",
                ];
                let mut document = Document::default();
                while let Some((key, value)) = object.next_entry::<String, Outline>()? {
                    if let Some(name) = field(&key, known) {
                        document.note(name, value);
                    }
                }
                Ok(document)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// The signed part of a schema 1 manifest, whose digest is that of these bytes (distribution,
/// `manifest/schema1`; libtrust, `ParsePrettySignature`). `None` for everything else.
fn signed_payload(bytes: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Signed {
        signatures: Vec<Signature>,
    }
    #[derive(serde::Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(serde::Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let signed: Signed = serde_json::from_slice(bytes).ok()?;
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let protected = |signature: &Signature| {
        serde_json::from_slice::<Protected>(&decoded(&signature.protected)?).ok()
    };
    let first = protected(signed.signatures.first()?)?;
    let agree = signed
        .signatures
        .iter()
        .all(|signature| protected(signature).as_ref() == Some(&first));
    let mut payload = bytes.get(..first.format_length).filter(|_| agree)?.to_vec();
    payload.extend_from_slice(&decoded(&first.format_tail)?);
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_of_their_type_are_manifests() {
        use media_type::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
        let (index, image) = (
            r#"{"schemaVersion":2,"manifests":[]}"#,
            r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
        );
        let old = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        let artifact =
            r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}"#;
        let artifact_type = "application/vnd.oci.artifact.manifest.v1+json";
        for (named, text, expected) in [
            ("", index, Some(OCI_INDEX)),
            (OCI_INDEX, r#"{"manifests":null}"#, Some(OCI_INDEX)),
            ("text/html", index, Some(OCI_INDEX)),
            ("application/json", image, Some(OCI_MANIFEST)),
            (DOCKER_MANIFEST, image, Some(DOCKER_MANIFEST)),
            (OCI_MANIFEST, index, None),
            (OCI_INDEX, image, None),
            (OCI_INDEX, "<!doctype html>", None),
            ("text/html; charset=utf-8", "<!doctype html>", None),
            ("", "", None),
            ("", "[]", None),
            ("application/json", r#"{"errors":[]}"#, None),
            (OCI_MANIFEST, r#"{"errors":[]}"#, None),
            (
                "",
                r#"{"architecture":"amd64","config":{},"rootfs":{}}"#,
                None,
            ),
            ("", r#"{"mediaType":"a/b","manifests":[]}"#, Some(OCI_INDEX)),
            ("application/json", old, Some(DOCKER_SCHEMA_1)),
            (DOCKER_SIGNED_SCHEMA_1, old, Some(DOCKER_SIGNED_SCHEMA_1)),
            (DOCKER_SIGNED_SCHEMA_1, image, None),
            (artifact_type, artifact, Some(artifact_type)),
            ("", artifact, None),
            (
                "application/vnd.example+json",
                r#"{"schemaVersion":3}"#,
                Some("application/vnd.example+json"),
            ),
        ] {
            assert_eq!(
                media_type_of(Some(named), text.as_bytes()).ok().as_deref(),
                expected,
                "{named} {text}"
            );
        }
        let own = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{{}}}}"#);
        assert_eq!(
            media_type_of(Some("text/plain"), own.as_bytes()).as_deref(),
            Ok(DOCKER_MANIFEST)
        );
        let long = media_type_of(Some(&"\u{1b}x".repeat(1000)), b"").unwrap_err();
        assert!(long.len() < 1000 && !long.contains('\u{1b}'), "{long}");
    }

    fn signed(payload: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let (head, tail) = payload.split_at(payload.len() - 2);
        let protected = format!(
            r#"{{"formatLength":{},"formatTail":"{}"}}"#,
            head.len(),
            encode(tail)
        );
        format!(
            r#"{head},"signatures":[{{"protected":"{}"}}]{tail}"#,
            encode(&protected)
        )
    }

    #[test]
    fn the_digest_of_a_signed_manifest_is_that_of_its_payload() {
        let payload = "{\"schemaVersion\":1,\"fsLayers\":[]\n}";
        let bytes = Bytes::from(signed(payload));
        let digest = Digest::sha256_of(payload.as_bytes());
        for expected in [None, Some(digest.clone())] {
            let manifest = read(Some(DOCKER_SIGNED_SCHEMA_1), expected, bytes.clone()).unwrap();
            assert_eq!((&manifest.digest, &manifest.bytes), (&digest, &bytes));
        }
        let travelled = Digest::sha256_of(&bytes);
        assert!(read(Some(DOCKER_SIGNED_SCHEMA_1), Some(travelled), bytes.clone()).is_ok());
        let other = Digest::sha256_of(b"other");
        let wrong = read(Some(DOCKER_SIGNED_SCHEMA_1), Some(other.clone()), bytes);
        assert_eq!(wrong, Err(DocumentError::WrongDigest { expected: other }));
        let beyond = signed(payload).replace("\"signatures\"", "\"signature\"");
        assert_eq!(signed_payload(beyond.as_bytes()), None);
    }
}
