//! An image into its twin: plan, convert each layer in one streaming pass, write the new documents.

use crate::oci::{Digest, Manifest, Repository};
use crate::store::{Generation, ImageRecord, Store};
use crate::upstream::Source;

/// The conversion's part of the configuration.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// Why an image has no twin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Upstream(#[from] crate::upstream::Error),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

/// Converts images, each once however many ask; clones share the work.
#[derive(Debug, Clone)]
pub struct Converter {}

impl Converter {
    pub fn new(_config: &Config, _store: Store) -> Result<Self, Error> {
        unimplemented!()
    }

    pub fn generation(&self) -> &Generation {
        unimplemented!()
    }

    /// The record of the twin of `source`, if there is one: one look into the store, nothing else.
    pub async fn lookup(&self, _source: &Digest) -> Result<Option<ImageRecord>, Error> {
        unimplemented!()
    }

    /// The twin of a manifest or an index, converted now if need be. The work goes on when the caller stops waiting.
    pub async fn convert(
        &self,
        _source: &Source,
        _repository: &Repository,
        _manifest: &Manifest,
    ) -> Result<ImageRecord, std::sync::Arc<Error>> {
        unimplemented!()
    }
}
