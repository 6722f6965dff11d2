//! The memory that a JSON document takes once it is parsed, computed without building a tree.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// The memory of a key or a value in a tree: 72 bytes, in arrays that grow up to twice as many, and
/// the text of a key.
const NODE_BYTES: u64 = 128;

/// Returns the most bytes that the tree of a JSON document takes.
///
/// # Errors
/// When the text is not JSON.
pub(crate) fn tree(text: &[u8]) -> Result<u64, serde_json::Error> {
    let mut nodes = 0;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.deserialize_any(Counter { nodes: &mut nodes })?;
    deserializer.end()?;
    Ok(nodes
        .saturating_mul(NODE_BYTES)
        .saturating_add(text.len() as u64))
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
        let zeros = format!("[{}0]", "0,".repeat(1000));
        let text = format!("[\"{}\"]", "x".repeat(2000));
        assert!(tree(zeros.as_bytes()).unwrap() > 1000 * NODE_BYTES);
        assert!(tree(text.as_bytes()).unwrap() < 2000 + 4 * NODE_BYTES);
    }

    #[test]
    fn invalid_json_has_no_weight() {
        for text in ["", "[1, 2", "{} {}", "[1e999]", &"[".repeat(1000)] {
            assert!(tree(text.as_bytes()).is_err(), "{text}");
        }
    }
}
