//! What an image and its layers are, and whether every byte of them is as it should be.

pub(crate) mod blob;
pub(crate) mod image;
pub(crate) mod layer;
pub(crate) mod report;

use serde::Serialize;

/// A layer or a document.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    /// `linux/amd64 layer 0 sha256:…`
    pub(crate) name: String,
    /// What it is, and how much was compared.
    pub(crate) what: String,
    /// What differs; nothing if all is well.
    pub(crate) findings: Vec<String>,
}

impl Part {
    /// A child of a sparse index: there is nothing that could be wrong.
    fn not_held(name: String) -> Self {
        Self {
            name,
            what: "not in the source".to_owned(),
            findings: Vec::new(),
        }
    }
}
