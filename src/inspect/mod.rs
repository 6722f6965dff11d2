//! Reports on the parts of images and layers, and verifies every byte of them.

pub(crate) mod blob;
pub(crate) mod image;
pub(crate) mod layer;
pub(crate) mod open;
pub(crate) mod profiles;
pub(crate) mod provenance;
pub(crate) mod report;

use serde::Serialize;

/// The outcome of verifying a layer or an image's documents.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    /// `linux/amd64 layer 0 sha256:…`
    pub(crate) name: String,
    /// The kind of the part, and how much of it was compared.
    pub(crate) what: String,
    /// The differences; empty if there are none.
    pub(crate) findings: Vec<String>,
}

impl Part {
    /// Returns the outcome for a missing child of a sparse index, which has no differences.
    fn not_held(name: String) -> Self {
        Self {
            name,
            what: "not in the source".to_owned(),
            findings: Vec::new(),
        }
    }
}
