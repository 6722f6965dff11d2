//! The signed statements on an image: shown as they are, or verified with trusted keys.

use serde::Serialize;

use super::Part;
use super::open::OpenImage;
use crate::failure::Failure;
use crate::oci::Digest;
use crate::provenance::{self, TrustedKeys};
use crate::transport::{Endpoint, FoundStatement};

/// The statements on one manifest.
#[derive(Debug, Serialize)]
pub(crate) struct ImageStatements {
    pub(crate) image: Digest,
    pub(crate) statements: Vec<StatementReport>,
}

/// A statement, not verified.
#[derive(Debug, Serialize)]
pub(crate) struct StatementReport {
    pub(crate) artifact: Digest,
    /// The keys that its signatures claim to be of.
    pub(crate) keys: Vec<String>,
    pub(crate) source: Option<Digest>,
    pub(crate) generation: Option<String>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

impl OpenImage {
    /// Returns the statements that refer to the manifest that was named, and to each image of it.
    pub(crate) async fn statements(&self) -> Result<Vec<ImageStatements>, Failure> {
        let mut digests = vec![self.root_digest().clone()];
        let images = self.bundle.images().into_iter();
        digests.extend(images.map(|image| image.digest.clone()));
        digests.dedup();
        let mut images = Vec::new();
        for image in digests {
            let statements = of_image(&self.endpoint, &image).await?;
            images.push(ImageStatements { image, statements });
        }
        Ok(images)
    }

    /// Verifies that the manifest that was named was made from `source`, one of the manifests there
    /// if any is given, by the holder of one of `keys`. Everything beneath the manifest is named in
    /// it by digest.
    pub(super) async fn provenance(&self, keys: &TrustedKeys, source: Option<&Self>) -> Part {
        let (root, endpoint) = (self.root_digest(), &self.endpoint);
        let name = format!("provenance {root}");
        let proof = endpoint
            .source
            .proof(&endpoint.repository, root, keys)
            .await;
        let (what, findings) = match proof {
            Ok(proof) => {
                let made = &proof.verified.provenance;
                let what = format!(
                    "made from {} in generation {}, signed by {}",
                    made.source, made.generation, proof.verified.key
                );
                let differs = source.is_some_and(|source| !source.holds(&made.source));
                let finding = "the statement names another source image".to_owned();
                (what, differs.then_some(finding).into_iter().collect())
            }
            Err(unproven) => ("no provenance".to_owned(), vec![unproven.to_string()]),
        };
        Part {
            name,
            what,
            findings,
        }
    }

    /// Whether `digest` is the manifest that was named, or an image of it.
    fn holds(&self, digest: &Digest) -> bool {
        let images = self.bundle.images().into_iter();
        self.root_digest() == digest || images.into_iter().any(|image| image.digest == *digest)
    }
}

async fn of_image(endpoint: &Endpoint, image: &Digest) -> Result<Vec<StatementReport>, Failure> {
    let what = format!("listing the referrers of {image}");
    let found = endpoint.source.statements(&endpoint.repository, image);
    let found = found.await.map_err(Failure::when(what))?;
    Ok(found.into_iter().map(StatementReport::of).collect())
}

impl StatementReport {
    fn of(found: FoundStatement) -> Self {
        let mut report = Self {
            artifact: found.artifact,
            keys: Vec::new(),
            source: None,
            generation: None,
            failure: None,
        };
        let envelope = found.envelope.map_err(|missing| missing.to_string());
        let read = envelope.and_then(|envelope| {
            provenance::unverified(&envelope).map_err(|refusal| refusal.to_string())
        });
        match read {
            Ok((keys, made)) => {
                report.keys = keys;
                (report.source, report.generation) = (Some(made.source), Some(made.generation));
            }
            Err(failure) => report.failure = Some(failure),
        }
        report
    }
}
