//! The rules of Go's `encoding/json`, by which every registry, Docker, containerd and skopeo read
//! documents.
//!
//! A `null` is an absent field. A key names a field in any case of its letters, and the last of
//! several counts. Numbers are integers, and a value of another type is an error, as it is in Go.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The name among `known` that Go takes `key` for.
pub(super) fn field(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let same = |name: &&&'static str| key.chars().map(folded).eq(name.chars().map(folded));
    known
        .iter()
        .find(|name| **name == key)
        .or_else(|| known.iter().find(same))
        .copied()
}

/// The lower-case form; two letters outside of ASCII fold into it (Go, `encoding/json`,
/// `foldRune`).
fn folded(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    }
}

/// Gives a field its next value. `null` leaves the field unchanged.
pub(super) fn set<T>(slot: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *slot = value;
    }
}

/// Keeps a field that the reader does not know or keeps unchanged.
pub(super) fn keep(
    rest: &mut Map<String, Value>,
    key: String,
    kept: &[&'static str],
    value: Value,
) {
    match field(&key, kept) {
        Some(_) if value.is_null() => {}
        Some(name) => drop(rest.insert(name.to_owned(), value)),
        None => drop(rest.insert(key, value)),
    }
}

/// The value of the field `name`, in any spelling. An error if there are several.
pub(crate) fn get_mut<'a>(
    object: &'a mut Value,
    name: &'static str,
) -> Result<Option<&'a mut Value>, String> {
    let Some(object) = object.as_object_mut() else {
        return Ok(None);
    };
    let mut found = object
        .iter_mut()
        .filter(|(key, _)| field(key, &[name]).is_some());
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(format!("{name:?} occurs more than once")),
        (found, _) => Ok(found
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())),
    }
}

/// A list of strings. A `null` among them is empty, as in Go.
pub(super) fn texts(values: Option<Vec<Option<String>>>) -> Option<Vec<String>> {
    values.map(|values| values.into_iter().map(Option::unwrap_or_default).collect())
}

/// A value, as far as the kind of a document depends on it. Its content is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outline {
    Null,
    Number(u64),
    Text(String),
    List,
    Object,
    Other,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Outline;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Outline, E> {
                Ok(Outline::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Outline, E> {
                Ok(Outline::Other)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Outline, E> {
                Ok(Outline::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Outline, E> {
                Ok(Outline::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Outline, E> {
                Ok(Outline::Other)
            }

            fn visit_str<E>(self, text: &str) -> Result<Outline, E> {
                Ok(Outline::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Outline, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Outline::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Outline, A::Error> {
                while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Outline::Object)
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fold_as_in_go() {
        let known = &["mediaType", "layers"];
        for (key, name) in [
            ("mediaType", Some("mediaType")),
            ("MEDIATYPE", Some("mediaType")),
            ("layer\u{17f}", Some("layers")),
            ("media_type", None),
            ("", None),
        ] {
            assert_eq!(field(key, known), name, "{key}");
        }
    }

    #[test]
    fn a_field_in_two_spellings_is_an_error() {
        let mut document = serde_json::json!({"RootFS": {"diff_ids": []}, "other": null});
        assert!(get_mut(&mut document, "rootfs").unwrap().is_some());
        assert!(get_mut(&mut document, "other").unwrap().is_none());
        document["rootfs"] = serde_json::json!({});
        assert!(get_mut(&mut document, "rootfs").is_err());
    }
}
