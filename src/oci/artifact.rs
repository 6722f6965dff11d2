//! A document as an OCI artifact that refers to an image, so that it is copied together with the
//! image.
//!
//! An image manifest with an empty configuration and one layer, the document (OCI image-spec,
//! manifest.md, "Guidelines for Artifact Usage").

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::manifest::ImageManifest;
use super::media_type::OCI_MANIFEST;
use super::{Descriptor, Digest, Manifest};

/// The configuration of an artifact without one (image-spec, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// The objects of an artifact.
#[derive(Debug, Clone)]
pub struct Artifact {
    pub manifest: Manifest,
    /// The blobs that the manifest names: the empty configuration and the document.
    pub blobs: [(Descriptor, Bytes); 2],
    kind: &'static str,
    annotations: Map<String, Value>,
}

impl Artifact {
    /// Makes `document` a referrer of the image that `subject` points to. `kind` is the type of the
    /// artifact and of its document.
    pub fn new(
        kind: &'static str,
        document: Bytes,
        subject: &Descriptor,
        annotations: Map<String, Value>,
    ) -> Self {
        let empty = (described(EMPTY_TYPE, EMPTY), Bytes::from_static(EMPTY));
        let document = (described(kind, &document), document);
        let subject = json!({"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": empty.0,
            "layers": [document.0],
            "subject": subject,
            "annotations": annotations,
        });
        Self {
            manifest: Manifest::new(OCI_MANIFEST.to_owned(), manifest.to_string().into()),
            blobs: [empty, document],
            kind,
            annotations,
        }
    }

    /// The descriptor in a list of referrers (distribution-spec, "Listing Referrers").
    pub fn listed(&self) -> Descriptor {
        let mut descriptor = self.manifest.descriptor();
        descriptor.annotations = self.annotations.clone();
        descriptor
            .rest
            .insert("artifactType".to_owned(), self.kind.into());
        descriptor
    }
}

/// The type of a referrer, as its list has it.
pub fn kind_of(referrer: &Descriptor) -> Option<&str> {
    referrer.rest.get("artifactType").and_then(Value::as_str)
}

/// The descriptor of an artifact's document, or `None` if the manifest is of something else or the
/// document is longer than `limit`.
pub fn document_of(manifest: &Manifest, kind: &str, limit: u64) -> Option<Descriptor> {
    let manifest: ImageManifest = serde_json::from_slice(&manifest.bytes).ok()?;
    let fits = |layer: &Descriptor| layer.size <= limit && layer.media_type == kind;
    manifest.layers.into_iter().next().filter(fits)
}

fn described(media_type: &str, bytes: &[u8]) -> Descriptor {
    let mut descriptor =
        Manifest::new(media_type.to_owned(), Bytes::copy_from_slice(bytes)).descriptor();
    descriptor.digest = Digest::sha256_of(bytes);
    descriptor
}
