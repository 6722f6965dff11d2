//! The TOC's JSON as a stream of entries: one at a time, borrowed from the text where possible.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::TocError;
use crate::entry::EntryKind;

/// One entry for readers: the fields of [`crate::Entry`] and those that containers/storage adds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawEntry<'a> {
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    #[serde(rename = "type")]
    pub(crate) kind: EntryKind,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(borrow, rename = "modtime", default)]
    pub(crate) mod_time: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) link_name: Cow<'a, str>,
    #[serde(default)]
    pub(crate) mode: i64,
    #[serde(default)]
    pub(crate) uid: i64,
    #[serde(default)]
    pub(crate) gid: i64,
    #[serde(borrow, default)]
    pub(crate) user_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) group_name: Cow<'a, str>,
    #[serde(default)]
    pub(crate) offset: u64,
    #[serde(default)]
    pub(crate) end_offset: u64,
    #[serde(default)]
    pub(crate) inner_offset: u64,
    #[serde(default)]
    pub(crate) dev_major: i64,
    #[serde(default)]
    pub(crate) dev_minor: i64,
    #[serde(default, deserialize_with = "xattrs")]
    pub(crate) xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(borrow, default)]
    pub(crate) digest: Cow<'a, str>,
    #[serde(default)]
    pub(crate) chunk_offset: u64,
    #[serde(default)]
    pub(crate) chunk_size: u64,
    #[serde(borrow, default)]
    pub(crate) chunk_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) chunk_type: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) raw_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) raw_link_name: Option<Cow<'a, str>>,
}

/// Extended attributes of one file: listxattr(2) lists at most 64 KiB of names, and a name with its
/// space takes 8 bytes.
const MAX_FILE_XATTRS: usize = 8192;

fn xattrs<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, Option<String>>>, D::Error> {
    deserializer.deserialize_option(Xattrs)
}

/// Reads a map of limited length: the tree that holds it is many times as large as the text.
struct Xattrs;

impl<'de> Visitor<'de> for Xattrs {
    type Value = Option<BTreeMap<String, Option<String>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_FILE_XATTRS} extended attributes")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut xattrs = BTreeMap::new();
        while let Some((name, value)) = map.next_entry()? {
            if xattrs.len() == MAX_FILE_XATTRS {
                return Err(serde::de::Error::invalid_length(xattrs.len() + 1, &self));
            }
            xattrs.insert(name, value);
        }
        Ok(Some(xattrs))
    }
}

/// Calls `each` with every entry of `json`, in order. Stops at its first error.
pub(crate) fn for_each<'a, T, F>(json: &'a [u8], each: F) -> Result<(), TocError>
where
    T: Deserialize<'a>,
    F: FnMut(T) -> Result<(), TocError>,
{
    let mut sink = Sink {
        each,
        failed: None,
        entry: PhantomData,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let version = Document(&mut sink)
        .deserialize(&mut deserializer)
        .and_then(|version| {
            deserializer.end()?;
            Ok(version)
        });
    if let Some(error) = sink.failed {
        return Err(error);
    }
    match version.map_err(TocError::Json)? {
        1 => Ok(()),
        other => Err(TocError::Version(other)),
    }
}

struct Sink<T, F> {
    each: F,
    failed: Option<TocError>,
    entry: PhantomData<fn(T)>,
}

struct Document<'s, T, F>(&'s mut Sink<T, F>);

struct Entries<'s, T, F>(&'s mut Sink<T, F>);

impl<'de, T, F> DeserializeSeed<'de> for Document<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), TocError>,
{
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T, F> Visitor<'de> for Document<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), TocError>,
{
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a TOC")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<i64, A::Error> {
        let (mut version, mut seen) = (0, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "version" => version = map.next_value()?,
                "entries" if seen => return Err(serde::de::Error::duplicate_field("entries")),
                "entries" => {
                    seen = true;
                    map.next_value_seed(Entries(&mut *self.0))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(version)
    }
}

impl<'de, T, F> DeserializeSeed<'de> for Entries<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), TocError>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, T, F> Visitor<'de> for Entries<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), TocError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of a TOC")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            if let Err(error) = (self.0.each)(entry) {
                self.0.failed = Some(error);
                return Err(serde::de::Error::custom("an entry was refused"));
            }
        }
        Ok(())
    }
}
