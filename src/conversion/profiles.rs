//! Profiles of recorded files, attached to converted images.

use std::time::SystemTime;

use super::image::{ConversionReport, ImageConversion};
use super::record::{self, Line};
use crate::failure::Failure;
use crate::inspect::report::ImageReport;
use crate::oci::annotations::SOURCE_DIGEST;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Digest, Reference};
use crate::profile::{Knowledge, Workload, artifact};
use crate::transport::document::parse;

impl ImageConversion<'_> {
    /// Attaches to each converted image a profile of the files recorded for its source image. Returns
    /// the number of attached profiles.
    pub(crate) async fn attach_profiles(
        &self,
        report: &ConversionReport,
        recorded: &[Line],
    ) -> Result<usize, Failure> {
        let registries = self.registries;
        let endpoint = registries.endpoint(self.source)?;
        let created = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut attached = 0;
        for image in &report.images {
            let source_manifest = source_of(image);
            let files = record::of_manifest(recorded, &source_manifest);
            if files.is_empty() {
                continue;
            }
            let reference = Reference::Digest(source_manifest);
            let what = format!("reading the manifest {reference}");
            let source_manifest = endpoint
                .source
                .manifest(&endpoint.repository, &reference)
                .await
                .map_err(Failure::when(what))?;
            let mut knowledge =
                Knowledge::new(parse::<ImageManifest>(&source_manifest)?.config.digest);
            knowledge.record(files);
            let subject = registries.endpoint(&self.target.at(&image.digest))?;
            let subject = subject.manifest().await?;
            let artifact = artifact::of(
                &knowledge.profile(&Workload::default()),
                &subject.descriptor(),
                &created,
            );
            let artifact = artifact.map_err(Failure::from_error)?;
            registries
                .destination(self.target)?
                .attach(&artifact, &subject.digest)
                .await?;
            attached += 1;
        }
        Ok(attached)
    }
}

/// Returns the digest of the source image's manifest, which is the image's own if nothing was
/// converted.
fn source_of(image: &ImageReport) -> Digest {
    let named = image
        .annotations
        .get(SOURCE_DIGEST)
        .and_then(|digest| digest.as_str()?.parse().ok());
    named.unwrap_or_else(|| image.digest.clone())
}
