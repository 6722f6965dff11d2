//! Every key of the bucket, in one enum: this is the whole layout.

use std::fmt;

use crate::oci::Digest;

/// The format generation and options that a converted object's bytes depend on: `g1-gzip6-source-4194304`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub String);

/// The place of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A converted layer, named by what it was made of: known before its own digest is.
    Layer {
        generation: Generation,
        source: Digest,
    },
    /// A small object (manifest, config, external TOC) by its own digest.
    Blob(Digest),
    /// Where the object with this digest lies.
    DigestRecord(Digest),
    LayerRecord {
        generation: Generation,
        source: Digest,
    },
    ImageRecord {
        generation: Generation,
        source: Digest,
    },
    Lease(String),
}

impl fmt::Display for Key {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}
