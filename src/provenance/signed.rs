//! A statement's envelope as an artifact that refers to the converted image.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::envelope::{Envelope, MAX_ENVELOPE_BYTES, MEDIA_TYPE};
use super::keys::{SignError, SigningKey};
use super::statement::{PAYLOAD_TYPE, PREDICATE_TYPE, Statement, StatementError};
use crate::oci::annotations::{GENERATION, PREDICATE, SOURCE_DIGEST};
use crate::oci::{Artifact, Descriptor, Digest, Manifest, artifact};

/// Why an image has no statement.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("annotations name {0:?} as the source")]
    Source(String),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Signs that `converted`, an image or an index, was made from `source`, in the generation that its
/// annotations name.
///
/// The annotations of a manifest are only its author's word. The caller knows that the converter
/// made it.
///
/// # Errors
/// If its annotations name another source, there can be no statement on it, or no signature.
pub fn sign(
    key: &SigningKey,
    converted: &Manifest,
    source: &Digest,
) -> Result<Artifact, SigningError> {
    let (named, generation) = origin(converted)?;
    if named != source.to_string() {
        return Err(SigningError::Source(named));
    }
    let statement = Statement::on(converted, source, &generation)?;
    let envelope = Envelope::sign(PAYLOAD_TYPE, statement.to_json(), key)?;
    let annotations = Map::from_iter([(PREDICATE.to_owned(), PREDICATE_TYPE.into())]);
    let subject = converted.descriptor();
    Ok(Artifact::new(
        MEDIA_TYPE,
        envelope.to_json().into(),
        &subject,
        annotations,
    ))
}

/// Returns the source that the annotations of a manifest name. That is only its author's word.
pub fn source_of(manifest: &Manifest) -> Option<Digest> {
    origin(manifest).ok()?.0.parse().ok()
}

/// Returns the digest of the source and the generation, as the annotations of a manifest name them.
fn origin(converted: &Manifest) -> Result<(String, String), SigningError> {
    /// The only field that is needed. The rest must not become a tree in memory.
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let read = serde_json::from_slice::<Annotated>(&converted.bytes);
    let mut annotations = read.map_err(StatementError::Manifest)?.annotations;
    let mut take = |key: &str| annotations.remove(key).unwrap_or_default();
    Ok((take(SOURCE_DIGEST), take(GENERATION)))
}

/// Whether a referrer may hold a statement on a conversion, as its list describes it.
pub fn is_statement(referrer: &Descriptor) -> bool {
    let predicate = referrer.annotations.get(PREDICATE).and_then(Value::as_str);
    artifact::kind_of(referrer) == Some(MEDIA_TYPE)
        && predicate.is_none_or(|predicate| predicate == PREDICATE_TYPE)
}

/// The descriptor of the envelope in an artifact, or `None` if it is another artifact, or an
/// envelope that is too long.
pub fn document_of(artifact: &Manifest) -> Option<Descriptor> {
    artifact::document_of(artifact, MEDIA_TYPE, MAX_ENVELOPE_BYTES as u64)
}
