//! Signed statements on converted images, attached to them at their destination.

use super::image::ImageConversion;
use crate::convert::Converter;
use crate::failure::Failure;
use crate::oci::{Artifact, Manifest};
use crate::provenance::{self, SigningKey};
use crate::store::ImageRecord;
use crate::transport::ImageBundle;
use crate::transport::document::is_index;

impl ImageConversion<'_> {
    /// Attaches a statement to each converted manifest of the bundle, which is written. Returns the
    /// number of statements.
    pub(super) async fn attach_statements(
        &self,
        converter: &Converter,
        record: &ImageRecord,
        bundle: &ImageBundle,
    ) -> Result<usize, Failure> {
        let Some(key) = &self.convert.signing_key else {
            return Ok(0);
        };
        let key = SigningKey::read(key).map_err(Failure::from_error)?;
        let mut attached = 0;
        for manifest in bundle.children.iter().chain([&bundle.root]) {
            let is_root = manifest.digest == bundle.root.digest;
            let artifact = statement(converter, &key, manifest, is_root.then_some(record)).await?;
            if let Some(artifact) = artifact {
                let destination = self.registries.destination(self.target)?;
                destination.attach(&artifact, &manifest.digest).await?;
                attached += 1;
            }
        }
        Ok(attached)
    }
}

/// Returns the statement on a manifest, if this conversion made it. `root` is the record of the
/// conversion if it is the root, from which platforms may have been left out.
async fn statement(
    converter: &Converter,
    key: &SigningKey,
    manifest: &Manifest,
    root: Option<&ImageRecord>,
) -> Result<Option<Artifact>, Failure> {
    let Some(source) = provenance::source_of(manifest) else {
        return Ok(None);
    };
    let context = format!("signing {}", manifest.digest);
    let is_own_index = root.is_some_and(|record| {
        is_index(manifest) && record.converted != record.source && record.source == source
    });
    // An image that passed through may name any source. The converter knows those that it made.
    let is_made = is_own_index
        || !converter
            .statements(&manifest.digest, &source)
            .await
            .map_err(Failure::when(context.as_str()))?
            .is_empty();
    if !is_made {
        return Ok(None);
    }
    let artifact = provenance::sign(key, manifest, &source);
    artifact.map(Some).map_err(Failure::when(context))
}
