//! One entry of a TOC, field by field as the reference writes it (stargz-snapshotter,
//! docs/estargz.md, "TOC").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    #[default]
    Reg,
    /// A symbolic link.
    Symlink,
    /// A hard link to another entry.
    Hardlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A FIFO.
    Fifo,
    /// Continues the regular file before it.
    Chunk,
}

/// One entry of a TOC. The order of the fields is the order in the JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The name as in the tar. Bytes that are not UTF-8 are U+FFFD here and exact in `raw_name`.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Bytes of a regular file's content.
    #[serde(default, skip_serializing_if = "is_default")]
    pub size: u64,
    /// RFC 3339, UTC, whole seconds; empty for the zero time.
    #[serde(rename = "modtime", default, skip_serializing_if = "is_default")]
    pub mod_time: String,
    /// The target of a symbolic or hard link.
    #[serde(default, skip_serializing_if = "is_default")]
    pub link_name: String,
    /// The tar header's mode: permission bits, set-uid, set-gid and sticky.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: i64,
    /// The owner.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uid: i64,
    /// The group.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: i64,
    /// Empty if the last entry with this `uid` had the same name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub user_name: String,
    /// Empty if the last entry with this `gid` had the same name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub group_name: String,
    /// Where the member that holds the content, or this chunk of it, begins in the blob.
    #[serde(default, skip_serializing_if = "is_default")]
    pub offset: u64,
    /// Bytes to skip in the inflated member.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inner_offset: u64,
    /// The major number of a device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dev_major: i64,
    /// The minor number of a device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dev_minor: i64,
    /// The number of names. The reference writes it, this crate does not.
    #[serde(rename = "NumLink", default, skip_serializing_if = "is_default")]
    pub num_link: i64,
    /// Extended attributes; values are base64 in the JSON.
    #[serde(
        default,
        with = "base64_values",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Digest of the whole content, on the file's first entry.
    #[serde(default, skip_serializing_if = "is_default")]
    pub digest: String,
    /// Where the chunk begins in its file.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chunk_offset: u64,
    /// Bytes of this chunk; zero means "to the end of the file".
    #[serde(default, skip_serializing_if = "is_default")]
    pub chunk_size: u64,
    /// Digest of this chunk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chunk_digest: String,
    /// An extension that other readers ignore: the exact name, base64, if it is not UTF-8.
    #[serde(
        default,
        with = "base64_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub raw_name: Option<Vec<u8>>,
    /// An extension that other readers ignore: the exact link target, base64, if it is not UTF-8.
    #[serde(
        default,
        with = "base64_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub raw_link_name: Option<Vec<u8>>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

mod base64_values {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<String, Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(key, value)| (key, STANDARD.encode(value))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Vec<u8>>, D::Error> {
        let map = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?
            .unwrap_or_default();
        map.into_iter()
            .map(|(key, value)| {
                let value = STANDARD
                    .decode(value.unwrap_or_default())
                    .map_err(serde::de::Error::custom)?;
                Ok((key, value))
            })
            .collect()
    }
}

mod base64_option {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value.as_deref().unwrap_or_default()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
            .transpose()
    }
}
