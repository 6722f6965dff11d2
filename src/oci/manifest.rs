//! Image manifests, indexes and image configurations.
//!
//! Every type keeps the fields that it does not know, in their order, so that a rewritten document
//! loses nothing of its source. All are read by the rules of `lenient`.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::digest::Digest;
use super::lenient::{field, keep, set, texts};
use super::platform::Platform;

/// The largest manifest that Starlift reads or serves: containerd refuses larger ones
/// (`remotes/docker/fetcher.go`).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most bytes of an image configuration; the largest in the wild hold some hundred KiB of history.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// The most children of an index and the most layers of an image. The largest known ones have some
/// hundred. The limit bounds the memory that a manifest of the largest size takes once it is
/// parsed.
pub const MAX_DESCRIPTORS: usize = 20_000;

/// Points at an object by digest (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Empty if absent.
    pub media_type: String,
    pub digest: Digest,
    /// Zero if absent or given as unknown (-1). `rest` then keeps the number.
    pub size: u64,
    pub urls: Vec<String>,
    pub annotations: Map<String, Value>,
    pub platform: Option<DescriptorPlatform>,
    pub rest: Map<String, Value>,
}

/// The `platform` of an index child. Unknown and unusual fields are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DescriptorPlatform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl DescriptorPlatform {
    pub fn to_platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

impl Descriptor {
    /// A descriptor with only the given fields.
    pub fn plain(media_type: String, digest: Digest, size: u64) -> Self {
        let (urls, annotations, rest) = (Vec::new(), Map::new(), Map::new());
        Self {
            media_type,
            digest,
            size,
            urls,
            annotations,
            platform: None,
            rest,
        }
    }

    /// The size, if the manifest gives one. No object that a manifest names is empty.
    pub fn known_size(&self) -> Option<u64> {
        Some(self.size).filter(|size| *size > 0)
    }
}

/// A manifest as it travels: its exact bytes, the media type it was served with, and the digest of
/// the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: bytes::Bytes,
}

impl Manifest {
    /// A manifest that Starlift itself wrote.
    pub fn new(media_type: String, bytes: bytes::Bytes) -> Self {
        Self {
            media_type,
            digest: Digest::sha256_of(&bytes),
            bytes,
        }
    }

    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The descriptor that points to this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::plain(self.media_type.clone(), self.digest.clone(), self.size())
    }
}

/// An image manifest: Docker schema 2 or OCI.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageManifest {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "mediaType", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(rename = "artifactType", skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An image index or Docker manifest list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Index {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "mediaType", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(rename = "artifactType", skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub manifests: Children,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The children of an index. A child that is not a descriptor, or that has an unknown kind of
/// digest, is kept in its place but not listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Children {
    known: Vec<Descriptor>,
    /// Each unlisted child with the number of listed children before it.
    odd: Vec<(usize, Value)>,
}

/// An image configuration. Starlift reads only `rootfs`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageConfig {
    pub rootfs: RootFs,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The diff-ids of the layers, bottom first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Children {
    pub fn push(&mut self, child: Descriptor) {
        self.known.push(child);
    }

    /// Removes listed children. The unlisted ones stay.
    pub fn retain(&mut self, mut keeps: impl FnMut(&Descriptor) -> bool) {
        let mut removed_before = vec![0];
        let mut removed = 0;
        self.known.retain(|child| {
            let is_kept = keeps(child);
            removed += usize::from(!is_kept);
            removed_before.push(removed);
            is_kept
        });
        for (place, _) in &mut self.odd {
            *place -= removed_before.get(*place).copied().unwrap_or(removed);
        }
    }
}

impl std::ops::Deref for Children {
    type Target = [Descriptor];

    fn deref(&self) -> &[Descriptor] {
        &self.known
    }
}

impl std::ops::DerefMut for Children {
    fn deref_mut(&mut self) -> &mut [Descriptor] {
        &mut self.known
    }
}

impl From<Vec<Descriptor>> for Children {
    fn from(known: Vec<Descriptor>) -> Self {
        Self {
            known,
            odd: Vec::new(),
        }
    }
}

impl<'a> IntoIterator for &'a Children {
    type Item = &'a Descriptor;
    type IntoIter = std::slice::Iter<'a, Descriptor>;

    fn into_iter(self) -> Self::IntoIter {
        self.known.iter()
    }
}

impl IntoIterator for Children {
    type Item = Descriptor;
    type IntoIter = std::vec::IntoIter<Descriptor>;

    fn into_iter(self) -> Self::IntoIter {
        self.known.into_iter()
    }
}

impl Serialize for Children {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.known.len() + self.odd.len()))?;
        let mut odd = self.odd.iter().peekable();
        for (place, child) in self.known.iter().enumerate() {
            while let Some((_, value)) = odd.next_if(|(before, _)| *before <= place) {
                list.serialize_element(value)?;
            }
            list.serialize_element(child)?;
        }
        for (_, value) in odd {
            list.serialize_element(value)?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Children {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listed;
        impl<'de> Visitor<'de> for Listed {
            type Value = Children;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Children, A::Error> {
                let mut children = Children::default();
                while let Some(value) = list.next_element::<Value>()? {
                    if children.known.len() + children.odd.len() >= MAX_DESCRIPTORS {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_DESCRIPTORS} children"
                        )));
                    }
                    match Descriptor::deserialize(&value) {
                        Ok(child) => children.known.push(child),
                        Err(_) => children.odd.push((children.known.len(), value)),
                    }
                }
                Ok(children)
            }
        }
        deserializer.deserialize_seq(Listed)
    }
}

/// The layers. One that is not a descriptor makes the image unreadable, because the position of
/// each layer matters.
struct Layers(Vec<Descriptor>);

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listed;
        impl<'de> Visitor<'de> for Listed {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of layers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = list.next_element()? {
                    if layers.len() >= MAX_DESCRIPTORS {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_DESCRIPTORS} layers"
                        )));
                    }
                    layers.push(layer);
                }
                Ok(Layers(layers))
            }
        }
        deserializer.deserialize_seq(Listed)
    }
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("mediaType", &self.media_type)?;
        object.serialize_entry("digest", &self.digest)?;
        if !self.rest.contains_key("size") {
            object.serialize_entry("size", &self.size)?;
        }
        if !self.urls.is_empty() {
            object.serialize_entry("urls", &self.urls)?;
        }
        if !self.annotations.is_empty() {
            object.serialize_entry("annotations", &self.annotations)?;
        }
        if let Some(platform) = &self.platform {
            object.serialize_entry("platform", platform)?;
        }
        for (key, value) in &self.rest {
            object.serialize_entry(key, value)?;
        }
        object.end()
    }
}

/// Implements `Deserialize` for an object whose fields `$key` set `$slot`. The others are kept in
/// `rest`. Those of `$kept` are kept under their canonical name.
macro_rules! object {
    ($type:ty, $what:literal, {$($key:literal => $slot:ident: $value:ty),+}, [$($kept:literal),*], $rest:ident => $made:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read;
                impl<'de> Visitor<'de> for Read {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<$type, A::Error> {
                        $(let mut $slot: Option<$value> = None;)+
                        let mut $rest = Map::new();
                        while let Some(key) = object.next_key::<String>()? {
                            match field(&key, &[$($key),+]) {
                                $(Some($key) => set(&mut $slot, object.next_value()?),)+
                                _ => keep(&mut $rest, key, &[$($kept),*], object.next_value()?),
                            }
                        }
                        $made
                    }
                }
                deserializer.deserialize_map(Read)
            }
        }
    };
}

object!(Descriptor, "a descriptor", {
    "mediaType" => media_type: String, "digest" => digest: Digest, "size" => size: i64, "urls" => urls: Vec<Option<String>>,
    "annotations" => annotations: Map<String, Value>, "platform" => platform: DescriptorPlatform
}, ["data", "artifactType"], rest => {
    let size = size.unwrap_or_default();
    if size < 0 {
        rest.insert("size".to_owned(), Value::from(size));
    }
    Ok(Descriptor {
        media_type: media_type.unwrap_or_default(),
        digest: digest.ok_or_else(|| A::Error::missing_field("digest"))?,
        size: u64::try_from(size).unwrap_or_default(),
        urls: texts(urls).unwrap_or_default(),
        annotations: annotations.unwrap_or_default(),
        platform: platform.filter(DescriptorPlatform::says_something),
        rest,
    })
});

impl DescriptorPlatform {
    fn says_something(&self) -> bool {
        !self.architecture.is_empty() || !self.os.is_empty() || !self.rest.is_empty()
    }
}

object!(DescriptorPlatform, "a platform", {
    "architecture" => architecture: String, "os" => os: String, "variant" => variant: String
}, ["os.version", "os.features"], rest => Ok(DescriptorPlatform {
    architecture: architecture.unwrap_or_default(),
    os: os.unwrap_or_default(),
    variant,
    rest,
}));

object!(ImageManifest, "an image manifest", {
    "schemaVersion" => version: u32, "mediaType" => media_type: String, "artifactType" => artifact_type: String,
    "config" => config: Descriptor, "layers" => layers: Layers
}, ["annotations", "subject", "manifests", "fsLayers"], rest => Ok(ImageManifest {
    schema_version: version.unwrap_or(SCHEMA_VERSION),
    media_type,
    artifact_type,
    config: config.ok_or_else(|| A::Error::missing_field("config"))?,
    layers: layers.map(|layers| layers.0).unwrap_or_default(),
    rest,
}));

object!(Index, "an index", {
    "schemaVersion" => version: u32, "mediaType" => media_type: String, "artifactType" => artifact_type: String,
    "manifests" => manifests: Children
}, ["annotations", "subject", "config", "layers", "fsLayers"], rest => Ok(Index {
    schema_version: version.unwrap_or(SCHEMA_VERSION),
    media_type,
    artifact_type,
    manifests: manifests.unwrap_or_default(),
    rest,
}));

object!(ImageConfig, "an image configuration", {"rootfs" => rootfs: RootFs},
    ["architecture", "os", "variant", "config", "history", "created"], rest => Ok(ImageConfig {
    rootfs: rootfs.unwrap_or_default(),
    rest,
}));

object!(RootFs, "a root file system", {"type" => kind: String, "diff_ids" => diff_ids: Vec<Digest>}, [], rest => Ok(RootFs {
    kind: kind.unwrap_or_default(),
    diff_ids: diff_ids.unwrap_or_default(),
    rest,
}));

/// The version of a manifest that gives none. containerd and skopeo do not check it.
const SCHEMA_VERSION: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_kept() {
        let text = r#"{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"data":"eA=="},"layers":[],"annotations":{"b":"2","a":"1"},"com.example":[1,{"x":null}]}"#;
        let manifest: ImageManifest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&manifest).unwrap(), text);
    }

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// A descriptor of `DIGEST` with these further fields.
    fn descriptor(fields: &str) -> Result<Descriptor, serde_json::Error> {
        serde_json::from_str(&format!(r#"{{"digest":"{DIGEST}"{fields}}}"#))
    }

    #[test]
    fn descriptors_are_read_as_go_reads_them() {
        for fields in [
            "",
            r#","mediaType":null,"size":null,"urls":null,"annotations":null,"platform":null,"data":null"#,
            r#","size":0"#,
            r#","Size":5,"size":0"#,
            r#","platform":{}"#,
            r#","platform":{"os":null,"architecture":null,"variant":null}"#,
            r#","urls":[]"#,
            r#","annotations":{}"#,
        ] {
            let read = descriptor(fields).unwrap_or_else(|error| panic!("{fields}: {error}"));
            assert_eq!(
                read,
                Descriptor::plain(String::new(), DIGEST.parse().unwrap(), 0),
                "{fields}"
            );
            assert_eq!(read.known_size(), None);
        }
        let read =
            descriptor(r#","SIZE":7,"MediaType":"a/b","Annotations":{"k":null},"urls":[null,"u"]"#)
                .unwrap();
        assert_eq!(
            (read.size, read.media_type.as_str(), read.urls.len()),
            (7, "a/b", 2)
        );
        assert!(read.annotations.contains_key("k"));
        for fields in [
            r#","size":"7""#,
            r#","size":7.0"#,
            r#","size":1e3"#,
            r#","annotations":[]"#,
            r#","platform":"linux""#,
        ] {
            assert!(descriptor(fields).is_err(), "Go refuses {fields}");
        }
    }

    #[test]
    fn an_unknown_size_is_written_as_it_was_read() {
        let read = descriptor(r#","size":-1"#).unwrap();
        assert_eq!((read.size, read.known_size()), (0, None));
        assert!(
            serde_json::to_string(&read)
                .unwrap()
                .ends_with(r#""size":-1}"#)
        );
    }

    #[test]
    fn an_odd_child_keeps_its_place_and_the_index_is_readable() {
        let good = format!(r#"{{"mediaType":"a","digest":"{DIGEST}","size":1}}"#);
        let odd = [
            r#"{"digest":"blake3:00","size":1}"#,
            "null",
            "{}",
            "7",
            r#"{"digest":null}"#,
        ];
        let children = [odd[0], &good, odd[1], odd[2], &good, odd[3], odd[4]].join(",");
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{children}]}}"#);
        let mut index: Index = serde_json::from_str(&text).unwrap();
        assert_eq!(index.manifests.len(), 2);
        assert_eq!(serde_json::to_string(&index).unwrap(), text);
        let mut number = 0;
        index.manifests.retain(|_| {
            number += 1;
            number == 2
        });
        let children = [odd[0], odd[1], odd[2], &good, odd[3], odd[4]].join(",");
        let left = serde_json::to_string(&index).unwrap();
        assert_eq!(
            left,
            format!(r#"{{"schemaVersion":2,"manifests":[{children}]}}"#)
        );
    }

    #[test]
    fn documents_with_missing_fields_are_read() {
        for text in [
            "{}",
            r#"{"manifests":null}"#,
            r#"{"schemaVersion":null,"mediaType":null,"annotations":null}"#,
        ] {
            let index: Index = serde_json::from_str(text).unwrap();
            assert_eq!(
                (
                    index.schema_version,
                    index.manifests.len(),
                    index.rest.len()
                ),
                (2, 0, 0),
                "{text}"
            );
        }
        let text = format!(
            r#"{{"Config":{{"digest":"{DIGEST}"}},"layers":null,"FSLAYERS":[],"annotations":null}}"#
        );
        let image: ImageManifest = serde_json::from_str(&text).unwrap();
        assert!(
            image.layers.is_empty() && image.rest.contains_key("fsLayers") && image.rest.len() == 1
        );
        for text in [
            "{}",
            r#"{"rootfs":null,"history":null}"#,
            r#"{"rootfs":{"type":null,"diff_ids":null}}"#,
        ] {
            let config: ImageConfig = serde_json::from_str(text).unwrap();
            assert!(config.rootfs.diff_ids.is_empty(), "{text}");
        }
        let twice = r#"{"mediaType":"a","mediaType":"b","manifests":[]}"#;
        assert_eq!(
            serde_json::from_str::<Index>(twice)
                .unwrap()
                .media_type
                .as_deref(),
            Some("b")
        );
    }

    #[test]
    fn the_number_of_children_is_bounded() {
        let list = vec!["{}"; MAX_DESCRIPTORS + 1].join(",");
        assert!(serde_json::from_str::<Index>(&format!(r#"{{"manifests":[{list}]}}"#)).is_err());
    }
}
