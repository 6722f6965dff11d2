//! Every key of the bucket, in one enum, which is the whole layout. A key that ends in `.json` is a
//! record with a checksum.
//!
//! ```text
//! layers/<generation>/sha256/<hex of the source layer>
//! blobs/sha256/<hex>
//! records/digest/sha256/<hex>.json
//! records/layer/<generation>/sha256/<hex of the source layer>.json
//! records/image/<generation>/sha256/<hex of the source manifest>.json
//! records/stack/sha256/<hex of the stack>.json
//! records/statement/sha256/<hex of the converted manifest>.json
//! profiles/sha256/<hex of the source configuration>.json
//! links/sha256/<hex of the holder>/sha256/<hex>.json
//! salt.json                    the salt of observers' ids
//! used/sha256/<hex>            written at the object's last use
//! leases/<name>
//! scrub.json                   the time of the last full check
//! probe/<name>                 written and deleted when a store is opened
//! ```

use std::fmt;
use std::str::FromStr;

use crate::oci::Digest;
use crate::profile::Stack;

/// The format generation and options that a converted object's bytes depend on:
/// `g1-gzip6-source-262144`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub String);

/// The path of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A converted layer, named by its source layer, because its own digest is not known before the
    /// conversion.
    Layer {
        generation: Generation,
        source: Digest,
    },
    /// A small object (manifest, config, external TOC) by its own digest.
    Blob(Digest),
    /// The record that names the key of the object with this digest.
    DigestRecord(Digest),
    LayerRecord {
        generation: Generation,
        source: Digest,
    },
    ImageRecord {
        generation: Generation,
        source: Digest,
    },
    /// The record that names the image with this list of layers.
    StackRecord(Stack),
    /// The record of the signed statements on the converted image with this digest.
    StatementRecord(Digest),
    /// The profile data of the image with this source configuration.
    Knowledge(Digest),
    /// The record that an upstream or one of its repositories was shown to hold this digest, or that
    /// it is stored for an account.
    Link {
        /// The hash of the holder's name.
        holder: Digest,
        digest: Digest,
    },
    Salt,
    /// The last use of the object with this digest: the time at which this empty object was
    /// written.
    Used(Digest),
    Lease(String),
    /// The time of the last check of the whole store.
    Scrub,
    /// A test object that shows that the store is writable.
    Probe(String),
}

impl Key {
    /// The place of all image records of a generation.
    pub(super) fn images_of(generation: &Generation) -> String {
        format!("records/image/{}", Name(&generation.0))
    }

    /// The kind of object, as a metric label.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Layer { .. } => "layer",
            Self::Blob(_) => "blob",
            Self::DigestRecord(_) => "digest-record",
            Self::LayerRecord { .. } => "layer-record",
            Self::ImageRecord { .. } => "image-record",
            Self::StackRecord(_) => "stack-record",
            Self::StatementRecord(_) => "statement-record",
            Self::Knowledge(_) => "profile",
            Self::Link { .. } => "link",
            Self::Salt => "salt",
            Self::Used(_) => "mark",
            Self::Lease(_) => "lease",
            Self::Scrub => "scrub",
            Self::Probe(_) => "probe",
        }
    }
}

/// The path is not a key of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key of the store")]
pub struct ParseKeyError(String);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer { generation, source } => {
                write!(f, "layers/{}/{}", Name(&generation.0), Place(source))
            }
            Self::Blob(digest) => write!(f, "blobs/{}", Place(digest)),
            Self::DigestRecord(digest) => write!(f, "records/digest/{}.json", Place(digest)),
            Self::LayerRecord { generation, source } => {
                write!(
                    f,
                    "records/layer/{}/{}.json",
                    Name(&generation.0),
                    Place(source)
                )
            }
            Self::ImageRecord { generation, source } => {
                write!(
                    f,
                    "records/image/{}/{}.json",
                    Name(&generation.0),
                    Place(source)
                )
            }
            Self::StackRecord(Stack(digest)) => write!(f, "records/stack/{}.json", Place(digest)),
            Self::StatementRecord(converted) => {
                write!(f, "records/statement/{}.json", Place(converted))
            }
            Self::Knowledge(image) => write!(f, "profiles/{}.json", Place(image)),
            Self::Link { holder, digest } => {
                write!(f, "links/{}/{}.json", Place(holder), Place(digest))
            }
            Self::Salt => f.write_str("salt.json"),
            Self::Used(digest) => write!(f, "used/{}", Place(digest)),
            Self::Lease(name) => write!(f, "leases/{}", Name(name)),
            Self::Scrub => f.write_str("scrub.json"),
            Self::Probe(name) => write!(f, "probe/{}", Name(name)),
        }
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        parse(path).ok_or_else(|| ParseKeyError(path.to_owned()))
    }
}

fn parse(path: &str) -> Option<Key> {
    let segments: Vec<&str> = path.split('/').collect();
    Some(match segments.as_slice() {
        ["layers", generation, algorithm, hex] => Key::Layer {
            generation: Generation(unescape(generation)?),
            source: digest(algorithm, hex)?,
        },
        ["blobs", algorithm, hex] => Key::Blob(digest(algorithm, hex)?),
        ["records", "digest", algorithm, file] => {
            Key::DigestRecord(digest(algorithm, json(file)?)?)
        }
        ["records", "layer", generation, algorithm, file] => Key::LayerRecord {
            generation: Generation(unescape(generation)?),
            source: digest(algorithm, json(file)?)?,
        },
        ["records", "image", generation, algorithm, file] => Key::ImageRecord {
            generation: Generation(unescape(generation)?),
            source: digest(algorithm, json(file)?)?,
        },
        ["records", "stack", algorithm, file] => {
            Key::StackRecord(Stack(digest(algorithm, json(file)?)?))
        }
        ["records", "statement", algorithm, file] => {
            Key::StatementRecord(digest(algorithm, json(file)?)?)
        }
        ["profiles", algorithm, file] => Key::Knowledge(digest(algorithm, json(file)?)?),
        ["links", kind, holder, algorithm, file] => Key::Link {
            holder: digest(kind, holder)?,
            digest: digest(algorithm, json(file)?)?,
        },
        ["salt.json"] => Key::Salt,
        ["used", algorithm, hex] => Key::Used(digest(algorithm, hex)?),
        ["leases", name] => Key::Lease(unescape(name)?),
        ["scrub.json"] => Key::Scrub,
        ["probe", name] => Key::Probe(unescape(name)?),
        _ => return None,
    })
}

fn digest(algorithm: &str, hex: &str) -> Option<Digest> {
    format!("{algorithm}:{hex}").parse().ok()
}

fn json(file: &str) -> Option<&str> {
    file.strip_suffix(".json")
}

/// A digest as two path segments.
struct Place<'a>(&'a Digest);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.algorithm().name(), self.0.hex())
    }
}

/// A name as one path segment: letters, digits, `-`, `_` and inner dots stay, every other byte
/// becomes `=XX`.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.bytes().enumerate() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                    write!(f, "{}", char::from(byte))?
                }
                b'.' if at > 0 => write!(f, ".")?,
                _ => write!(f, "={byte:02X}")?,
            }
        }
        Ok(())
    }
}

fn unescape(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = match (first, behind) {
            (b'=', [high, low, behind @ ..]) => {
                bytes.extend(hex::decode([*high, *low]).ok()?);
                behind
            }
            (b'=', _) => return None,
            _ => {
                bytes.push(*first);
                behind
            }
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_have_readable_paths() {
        let digest = Digest::sha256_of(b"");
        let hex = digest.hex().to_owned();
        let generation = Generation("g1-gzip6-source".to_owned());
        let layer = Key::Layer {
            generation: generation.clone(),
            source: digest.clone(),
        };
        assert_eq!(
            layer.to_string(),
            format!("layers/g1-gzip6-source/sha256/{hex}")
        );
        let record = Key::ImageRecord {
            generation,
            source: digest,
        };
        assert_eq!(
            record.to_string(),
            format!("records/image/g1-gzip6-source/sha256/{hex}.json")
        );
    }

    #[test]
    fn foreign_paths_are_not_keys() {
        for path in [
            "",
            "layers",
            "blobs/sha256/00",
            "leases/a/b",
            "leases/=",
            "leases/=zz",
            "lost+found/x",
        ] {
            assert!(path.parse::<Key>().is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_parsed_from_its_path(name: String, seed: u64, kind in 0..14) {
            let source = Digest::sha256_of(&seed.to_le_bytes());
            let generation = Generation(format!("g{name}"));
            let key = match kind {
                0 => Key::Layer { generation, source },
                1 => Key::Blob(source),
                2 => Key::DigestRecord(source),
                3 => Key::LayerRecord { generation, source },
                4 => Key::ImageRecord { generation, source },
                5 => Key::Used(source),
                6 => Key::Probe(format!("p{name}")),
                7 => Key::StackRecord(Stack(source)),
                8 => Key::Knowledge(source),
                9 => Key::Salt,
                10 => Key::Scrub,
                11 => Key::Link { holder: Digest::sha256_of(name.as_bytes()), digest: source },
                12 => Key::StatementRecord(source),
                _ => Key::Lease(name),
            };
            let path = key.to_string();
            prop_assert!(object_store::path::Path::parse(&path).is_ok());
            prop_assert!(!path.split('/').any(|segment| segment == ".." || segment == "."));
            prop_assert_eq!(path.parse(), Ok(key));
        }
    }
}
