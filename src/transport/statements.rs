//! The signed statements that refer to an image in a source: fetched, and verified.

use bytes::Bytes;

use super::source::Source;
use crate::aside::aside;
use crate::oci::{Digest, Repository};
use crate::provenance::{self, Refusal, TrustedKeys, Verified};
use crate::registry::Error;
use crate::telemetry::log::chain;

/// Most statements on an image that are fetched. Everybody who may push to a registry may add some.
const MAX_STATEMENTS: usize = 16;

/// The envelope of a statement, not verified, or the reason why there is none.
#[derive(Debug)]
pub struct FoundStatement {
    /// The digest of its artifact.
    pub artifact: Digest,
    pub envelope: Result<Bytes, NoEnvelope>,
}

/// An artifact without an envelope that can be read.
#[derive(Debug, thiserror::Error)]
pub enum NoEnvelope {
    #[error("not fetched: {}", chain(.0))]
    Upstream(#[from] Error),
    #[error(
        "no envelope of at most {} bytes in it",
        provenance::MAX_ENVELOPE_BYTES
    )]
    Other,
}

/// Why an image is not shown to be converted by the holder of a trusted key.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    #[error("no signed statement refers to {0}")]
    NoStatement(Digest),
    #[error("statements on {image} not listed: {}", chain(.reason))]
    Upstream { image: Digest, reason: Error },
    #[error("statement {artifact}: {reason}")]
    NoEnvelope {
        artifact: Digest,
        reason: NoEnvelope,
    },
    #[error("statement {artifact}: {}", chain(.reason))]
    Refused { artifact: Digest, reason: Refusal },
}

/// A statement with a signature of a trusted key, and the digest of its artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub artifact: Digest,
    pub verified: Verified,
}

impl Source {
    /// Returns the statements that refer to the manifest `image`. One that cannot be fetched does
    /// not hide the others.
    pub async fn statements(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<Vec<FoundStatement>, Error> {
        let mut found = Vec::new();
        let referrers = self.referrers(repository, image).await?;
        let wanted = referrers
            .iter()
            .filter(|referrer| provenance::is_statement(referrer));
        for referrer in wanted.take(MAX_STATEMENTS) {
            let artifact = referrer.digest.clone();
            let document = self.document(repository, &artifact, provenance::document_of);
            let envelope = match document.await {
                Ok(Some(envelope)) => Ok(envelope),
                Ok(None) => Err(NoEnvelope::Other),
                Err(error) => Err(error.into()),
            };
            found.push(FoundStatement { artifact, envelope });
        }
        Ok(found)
    }

    /// Returns a statement on the manifest `image` that one of `keys` signed.
    ///
    /// # Errors
    /// The reason why there is none; if several statements are refused, the reason of the first.
    pub async fn proof(
        &self,
        repository: &Repository,
        image: &Digest,
        keys: &TrustedKeys,
    ) -> Result<Proof, Unproven> {
        let found = self.statements(repository, image).await;
        let found = found.map_err(|reason| Unproven::Upstream {
            image: image.clone(),
            reason,
        })?;
        let mut refused = None;
        for FoundStatement { artifact, envelope } in found {
            let reason = match envelope {
                Ok(envelope) => match verified(envelope, keys, image).await {
                    Ok(verified) => return Ok(Proof { artifact, verified }),
                    Err(reason) => Unproven::Refused { artifact, reason },
                },
                Err(reason) => Unproven::NoEnvelope { artifact, reason },
            };
            refused.get_or_insert(reason);
        }
        Err(refused.unwrap_or_else(|| Unproven::NoStatement(image.clone())))
    }
}

/// Verifies an envelope aside from the runtime's threads: a long one with many signatures takes some
/// milliseconds for each.
async fn verified(
    envelope: Bytes,
    keys: &TrustedKeys,
    image: &Digest,
) -> Result<Verified, Refusal> {
    let (keys, image) = (keys.clone(), image.clone());
    aside(envelope.len(), move || {
        provenance::verify(&envelope, &keys, &image)
    })
    .await
}
