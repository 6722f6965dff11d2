//! Decides whether an envelope proves that a digest is part of a converted image.

use super::envelope::{Envelope, EnvelopeError, pae};
use super::keys::{KeyId, PublicKey, TrustedKeys};
use super::statement::{PAYLOAD_TYPE, Provenance, Statement, StatementError};
use crate::oci::Digest;

/// A statement with a signature of a trusted key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub key: KeyId,
    pub provenance: Provenance,
}

/// Why an envelope proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("signed by the key {0}, which is not trusted")]
    Untrusted(String),
    #[error("signature does not match: the statement was altered, or another key made it")]
    Signature,
    #[error("payload is of the type {0:?}, not a statement")]
    PayloadType(String),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("statement is not about {0}")]
    OtherDigest(Digest),
}

/// Verifies the envelope with `keys`, and that its statement names `digest`. Nothing of the payload
/// is parsed before its signature is verified.
///
/// # Errors
/// The reason why it proves nothing.
pub fn verify(envelope: &[u8], keys: &TrustedKeys, digest: &Digest) -> Result<Verified, Refusal> {
    let envelope = Envelope::parse(envelope)?;
    let key = signer(&envelope, keys)?.id().clone();
    let provenance = provenance(&envelope)?;
    if !provenance.names(digest) {
        return Err(Refusal::OtherDigest(digest.clone()));
    }
    Ok(Verified { key, provenance })
}

/// Reads an envelope without a look at its signatures, to show it.
///
/// # Errors
/// If it is not an envelope with a statement on a conversion.
pub fn unverified(envelope: &[u8]) -> Result<(Vec<String>, Provenance), Refusal> {
    let envelope = Envelope::parse(envelope)?;
    let keys = envelope.key_ids().map(str::to_owned).collect();
    Ok((keys, provenance(&envelope)?))
}

/// Returns a trusted key of which the envelope has a signature. The keys that the envelope names
/// are only a hint, so that all trusted ones are tried.
fn signer<'a>(envelope: &Envelope, keys: &'a TrustedKeys) -> Result<&'a PublicKey, Refusal> {
    let message = pae(&envelope.payload_type, &envelope.payload);
    let signed = |key: &&PublicKey| {
        let mut signatures = envelope.signatures.iter();
        signatures.any(|signature| key.verifies(&message, &signature.bytes))
    };
    if let Some(key) = keys.iter().find(signed) {
        return Ok(key);
    }
    if keys.iter().any(|key| envelope.claims(key.id())) {
        return Err(Refusal::Signature);
    }
    // The names are somebody's text.
    let is_name = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Err(match envelope.key_ids().find(is_name) {
        Some(id) => Refusal::Untrusted(id.chars().take(64).collect()),
        None => Refusal::Signature,
    })
}

fn provenance(envelope: &Envelope) -> Result<Provenance, Refusal> {
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(Refusal::PayloadType(
            envelope.payload_type.chars().take(100).collect(),
        ));
    }
    Ok(Statement::parse(&envelope.payload)?.provenance()?)
}
