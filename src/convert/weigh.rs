//! The memory that a JSON document takes once it is parsed, computed without building a tree.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// The memory of a key or a value in a tree: 72 bytes, in arrays that grow up to twice as many, and
/// the text of a key.
const NODE_BYTES: u64 = 128;
/// The number of trees of a document in memory at once: the source, the converted document, and its
/// translation to other media types.
const TREES: u64 = 3;

/// The most memory for a document: room for some 100,000 keys and values. The largest images and
/// indexes in the wild have a few thousand.
pub(super) const MAX_WEIGHT: u64 = 48 << 20;

/// Returns the most bytes that working on a JSON document takes, beside its text.
///
/// # Errors
/// When the text is not JSON.
pub(super) fn document(text: &[u8]) -> Result<u64, serde_json::Error> {
    let mut nodes = 0;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.deserialize_any(Counter { nodes: &mut nodes })?;
    deserializer.end()?;
    let text = (text.len() as u64).saturating_mul(TREES);
    Ok(nodes
        .saturating_mul(NODE_BYTES * TREES)
        .saturating_add(text))
}

/// Counts values and keys.
struct Counter<'a> {
    nodes: &'a mut u64,
}

impl Counter<'_> {
    fn again(&mut self) -> Counter<'_> {
        Counter { nodes: self.nodes }
    }
}

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        *self.nodes += 1;
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.again())?.is_some() {}
        self.visit_unit()
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key_seed(self.again())?.is_some() {
            entries.next_value_seed(self.again())?;
        }
        self.visit_unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_weigh_more_than_text() {
        let zeros = format!("[{}0]", "0,".repeat(2_000_000));
        let text = format!("[\"{}\"]", "x".repeat(4_000_000));
        assert!(document(zeros.as_bytes()).unwrap() > MAX_WEIGHT);
        assert!(document(text.as_bytes()).unwrap() < MAX_WEIGHT);
    }

    #[test]
    fn a_large_image_weighs_little() {
        let layer = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:0","size":1}"#;
        let image = format!(r#"{{"layers":[{}]}}"#, vec![layer; 500].join(","));
        assert!(document(image.as_bytes()).unwrap() < MAX_WEIGHT / 10);
    }

    #[test]
    fn invalid_json_has_no_weight() {
        for text in ["", "[1, 2", "{} {}", "[1e999]", &"[".repeat(1000)] {
            assert!(document(text.as_bytes()).is_err(), "{text}");
        }
    }
}
