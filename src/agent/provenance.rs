//! Refuses images without a signed statement, if the configuration requires one.
//!
//! ```text
//! Prepare with a target ▶ labels: image, manifest, layer ▶ statements on the manifest ▶ signed by a
//!                                                          trusted key, and names the layer
//! ```
//! A refused Prepare fails the pull. An answer "not lazy" would only make containerd unpack the same
//! bytes.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::time::timeout;

use super::config::Config;
use super::remote::{self, NotLazy};
use super::snapshots::Labels;
use super::spec::LayerSpec;
use crate::aside::aside;
use crate::oci::manifest::Index;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, ImageName, Manifest, Platform, Reference};
use crate::provenance::{KeyError, Provenance, TrustedKeys};
use crate::registry;
use crate::telemetry::log::chain;
use crate::transport::{Source, Unproven, Upstreams};

/// How long a proof is used for further layers of the image. A pull takes seconds, and a tag may
/// move.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// Most images whose proofs are held: with the largest statements some 20 MiB.
const MAX_PROVEN: u64 = 128;
/// Most images of an index that may be for this machine.
const MAX_CHILDREN: usize = 4;

/// Verifies where images were converted.
#[derive(Debug)]
pub struct ProvenanceCheck {
    config: Config,
    keys: TrustedKeys,
    upstreams: Upstreams,
    proven: Cache<Key, Arc<Vec<Provenance>>>,
}

/// An image, as a client names it, and its manifest if the client names that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: String,
    manifest: Option<Digest>,
}

/// The agent cannot require provenance.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(
        "require_provenance is set, and agent.provenance_keys names no public key whose signature \
         would do"
    )]
    NoKey,
    #[error("agent.provenance_keys: {0}")]
    Key(#[from] KeyError),
}

/// Why a layer may not be used.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    #[error(
        "image without provenance: its client sends no labels that name it; \
         agent.require_provenance is set"
    )]
    NoName,
    #[error("image {image} without provenance: {reason}; agent.require_provenance is set")]
    Image { image: String, reason: String },
}

impl ProvenanceCheck {
    /// Returns the check, or `None` if nothing requires it.
    ///
    /// # Errors
    /// If there is no key, or one that cannot be read.
    pub fn open(config: &Config, upstreams: &Upstreams) -> Result<Option<Self>, CheckError> {
        let keys = TrustedKeys::read(&config.provenance_keys)?;
        let mut rules = config.image.iter();
        let is_required =
            config.require_provenance || rules.any(|rule| rule.require_provenance == Some(true));
        if !is_required {
            return Ok(None);
        }
        if keys.is_empty() {
            return Err(CheckError::NoKey);
        }
        Ok(Some(Self {
            config: config.clone(),
            keys,
            upstreams: upstreams.clone(),
            proven: Cache::builder()
                .max_capacity(MAX_PROVEN)
                .time_to_live(PROVEN_FOR)
                .build(),
        }))
    }

    /// Verifies that a statement names the layer in `labels`, if its image must have one.
    ///
    /// # Errors
    /// The reason why the layer may not be used.
    pub(super) async fn layer(&self, labels: &Labels) -> Result<(), NotProven> {
        let Ok(spec) = LayerSpec::from_labels(labels) else {
            return if self.config.require_provenance {
                Err(NotProven::NoName)
            } else {
                Ok(())
            };
        };
        if !self.config.policy(&spec.reference).require_provenance {
            return Ok(());
        }
        let refused = |reason: String| NotProven::Image {
            image: spec.reference.clone(),
            reason,
        };
        let key = Key {
            reference: spec.reference.clone(),
            manifest: spec.manifest_digest.clone(),
        };
        let limit = self.config.mount_timeout;
        let proven = timeout(limit, self.proven.try_get_with(key, self.prove(&spec)));
        let proven = proven.await.map_err(|_elapsed| {
            let limit = humantime::format_duration(limit);
            refused(format!("no answer within {limit}"))
        })?;
        let proven = proven.map_err(|reason: Arc<String>| refused(reason.as_ref().clone()))?;
        if proven.iter().any(|statement| statement.names(&spec.digest)) {
            return Ok(());
        }
        Err(refused(format!(
            "its statement does not name the layer {}",
            spec.digest
        )))
    }

    /// Returns the statements on the image: on the manifest that the client names, or else on those
    /// that its reference may mean on this machine.
    async fn prove(&self, spec: &LayerSpec) -> Result<Arc<Vec<Provenance>>, String> {
        let (name, source) = remote::find(&self.upstreams, &spec.reference)
            .map_err(|error: NotLazy| chain(&error))?;
        let manifests = match &spec.manifest_digest {
            Some(manifest) => vec![manifest.clone()],
            None => candidates(&name, &source)
                .await
                .map_err(|error| format!("manifest not read: {}", chain(&error)))?,
        };
        let mut proven = Vec::new();
        let mut unproven = None;
        for manifest in manifests {
            let proof = source.proof(&name.repository, &manifest, &self.keys).await;
            match proof {
                Ok(proof) => proven.push(proof.verified.provenance),
                Err(reason) => unproven = Some(reason),
            }
        }
        match (proven.is_empty(), unproven) {
            (true, Some(reason)) => Err(Unproven::to_string(&reason)),
            (true, None) => Err("no image for this machine in its index".to_owned()),
            (false, _) => Ok(Arc::new(proven)),
        }
    }
}

/// Returns the image manifests that a reference may mean on this machine.
async fn candidates(name: &ImageName, source: &Source) -> Result<Vec<Digest>, registry::Error> {
    let reference = name.reference();
    let reference = reference.ok_or(registry::Error::NotFound)?;
    let found = source.resolve(&name.repository, &reference).await?;
    if manifest_kind(&found.media_type) != Some(ManifestKind::Index) {
        return Ok(vec![found.digest]);
    }
    let reference = Reference::Digest(found.digest);
    let index = source.manifest(&name.repository, &reference).await?;
    let len = index.bytes.len();
    Ok(aside(len, move || for_this_machine(&index)).await)
}

fn for_this_machine(index: &Manifest) -> Vec<Digest> {
    let machine = Platform::of_this_machine();
    let Ok(index) = serde_json::from_slice::<Index>(&index.bytes) else {
        return Vec::new();
    };
    let children = index.manifests.iter().filter(|child| {
        let platform = child.platform.as_ref();
        platform.is_some_and(|platform| machine.matches(&platform.to_platform()))
    });
    let digests = children.map(|child| child.digest.clone());
    digests.take(MAX_CHILDREN).collect()
}
