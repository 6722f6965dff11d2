//! The checksum that a record carries before its own fields.
//!
//! ```text
//! {"checksum":"<64 hex digits>",<the rest of the record's JSON>
//! ```
//! The checksum is the SHA-256 of the record's key, a line feed and all bytes after the comma. A
//! record whose bytes changed, or that is stored under another key, is damaged.

use bytes::Bytes;

use super::error::{Damage, Error};
use super::key::Key;
use crate::oci::Digest;
use crate::oci::digest::{Algorithm, Hasher};

const HEAD: &[u8] = b"{\"checksum\":\"";
const BEHIND: &[u8] = b"\",";
/// The hex digits of a SHA-256.
const HEX: usize = 64;

/// Serializes `record` as JSON with its checksum.
pub(super) fn seal(key: &Key, record: &impl serde::Serialize) -> Result<Bytes, Error> {
    let refused = |reason: String| Error::Record {
        key: key.to_string(),
        reason,
    };
    let json = serde_json::to_vec(record).map_err(|error| refused(error.to_string()))?;
    let Some(rest) = json.strip_prefix(b"{").filter(|rest| rest.len() > 1) else {
        return Err(refused("no fields".to_owned()));
    };
    Ok([HEAD, checksum(key, rest).hex().as_bytes(), BEHIND, rest]
        .concat()
        .into())
}

/// Parses the record in `bytes`, after verifying its checksum.
///
/// # Errors
/// [`Damage::Record`] if these are not the bytes that were written under `key`, or not a record of
/// this kind.
pub(super) fn unseal<R: serde::de::DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<R, Damage> {
    if !is_intact(key, bytes) {
        return Err(Damage::Record);
    }
    serde_json::from_slice(bytes).map_err(|_error| Damage::Record)
}

/// Whether these are the bytes that were written under `key`.
pub(super) fn is_intact(key: &Key, bytes: &[u8]) -> bool {
    let parts = bytes
        .strip_prefix(HEAD)
        .and_then(|behind| behind.split_at_checked(HEX));
    let Some((claimed, rest)) =
        parts.and_then(|(hex, rest)| Some((hex, rest.strip_prefix(BEHIND)?)))
    else {
        return false;
    };
    checksum(key, rest).hex().as_bytes() == claimed
}

fn checksum(key: &Key, rest: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(key.to_string().as_bytes());
    hasher.update(b"\n");
    hasher.update(rest);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Sample {
        text: String,
    }

    fn key() -> Key {
        Key::DigestRecord(Digest::sha256_of(b"x"))
    }

    #[test]
    fn a_record_under_another_key_is_damaged() {
        let sealed = seal(
            &key(),
            &Sample {
                text: "a".to_owned(),
            },
        )
        .unwrap();
        assert_eq!(
            unseal(&key(), &sealed),
            Ok(Sample {
                text: "a".to_owned()
            })
        );
        assert_eq!(unseal::<Sample>(&Key::Salt, &sealed), Err(Damage::Record));
        assert!(seal(&key(), &serde_json::json!({})).is_err());
    }

    proptest! {
        #[test]
        fn a_record_with_a_flipped_bit_or_a_lost_end_is_damaged(text: String, at: usize, bit in 0_u8..8) {
            let sealed = seal(&key(), &Sample { text }).unwrap();
            let at = at % sealed.len();
            let mut flipped = sealed.to_vec();
            flipped[at] ^= 1_u8 << bit;
            prop_assert!(!is_intact(&key(), &flipped));
            prop_assert!(!is_intact(&key(), &sealed[..at]));
            prop_assert!(is_intact(&key(), &sealed));
        }
    }
}
