//! Reads one list of a JSON document element by element. No tree of the document is built, whatever
//! it holds beside the list.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::lenient::field;
use super::manifest::Descriptor;

/// The longest descriptor that is parsed for a part of it. One with many annotations has one or two
/// KiB.
const MAX_DESCRIPTOR_BYTES: usize = 64 << 10;

/// Calls `each` with every descriptor of the list `name` in the JSON object `text`. Elements that
/// are not descriptors, or are very long, are left out.
///
/// # Errors
/// If the text is not a JSON object, or the field is not a list.
pub(crate) fn for_each_descriptor(
    text: &[u8],
    name: &'static str,
    mut each: impl FnMut(Descriptor),
) -> Result<(), serde_json::Error> {
    for_each(text, name, |element| {
        let is_short = element.len() <= MAX_DESCRIPTOR_BYTES;
        if is_short && let Ok(descriptor) = serde_json::from_str(element) {
            each(descriptor);
        }
    })
}

/// Calls `each` with the text of every element of the list `name` in the JSON object `text`. A
/// list that is absent or `null` is empty.
///
/// # Errors
/// If the text is not a JSON object, or the field is not a list.
pub(crate) fn for_each<'a>(
    text: &'a [u8],
    name: &'static str,
    each: impl FnMut(&'a str),
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.deserialize_map(Object { name, each })?;
    deserializer.end()
}

struct Object<F> {
    name: &'static str,
    each: F,
}

impl<'de, F: FnMut(&'de str)> Visitor<'de> for Object<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            if field(&key, &[self.name]).is_some() {
                fields.next_value_seed(List(&mut self.each))?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct List<'a, F>(&'a mut F);

impl<'de, F: FnMut(&'de str)> DeserializeSeed<'de> for List<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(&'de str)> Visitor<'de> for List<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<&RawValue>()? {
            (self.0)(item.get());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Result<Vec<&str>, serde_json::Error> {
        let mut found = Vec::new();
        for_each(text.as_bytes(), "tags", |element| found.push(element)).map(|()| found)
    }

    #[test]
    fn the_elements_of_one_list_are_read() {
        let text = r#"{"x": [{}, 1], "Tags": ["a", null, {"b": [2]}], "y": "tags"}"#;
        assert_eq!(elements(text).unwrap(), ["\"a\"", "null", "{\"b\": [2]}"]);
        for empty in ["{}", r#"{"tags": null}"#, r#"{"tags": []}"#] {
            assert!(elements(empty).unwrap().is_empty(), "{empty}");
        }
        for bad in ["", "[]", "7", r#"{"tags": 7}"#, r#"{"tags": [}"#, "{} {}"] {
            assert!(elements(bad).is_err(), "{bad}");
        }
    }
}
