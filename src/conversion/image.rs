//! The conversion of an image from one location to another.

use std::time::Duration;

use indicatif::ProgressBar;

use super::record::{self, Line};
use super::scratch::ScratchStore;
use crate::convert::{self, Converter};
use crate::failure::Failure;
use crate::inspect::report::ImageReport;
use crate::oci::{Digest, Manifest, Platform};
use crate::store::records::PassedThrough;
use crate::store::{self, ImageRecord};
use crate::transport::{
    Destination, Endpoint, ImageBundle, ImageReader, Location, Registries, external_toc,
};

/// Interval between updates of the counter while layers are converted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A conversion of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageConversion<'a> {
    pub(crate) source: &'a Location,
    pub(crate) target: &'a Location,
    pub(crate) registries: Registries<'a>,
    pub(crate) convert: &'a convert::Config,
    /// The settings of the store that holds converted layers until they are written.
    pub(crate) store: &'a store::Config,
    /// The location of a store that keeps converted layers; `None` for a temporary one.
    pub(crate) store_location: Option<&'a str>,
    /// The platforms of a multi-platform image that are written; empty for all that are converted.
    pub(crate) platforms: &'a [Platform],
    /// Whether OCI media types replace Docker's. Layouts and archives always have OCI's.
    pub(crate) oci: bool,
    /// Whether layers that are eStargz already keep their order.
    pub(crate) reuse: bool,
}

/// The result of a conversion.
#[derive(Debug, serde::Serialize)]
pub(crate) struct ConversionReport {
    pub(crate) source: Digest,
    pub(crate) converted: Digest,
    pub(crate) media_type: String,
    pub(crate) generation: String,
    pub(crate) images: Vec<ImageReport>,
    pub(crate) passed_through: Vec<PassedThrough>,
    /// The number of signed statements that are attached.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) statements: usize,
    /// The number of images that were left out because the source does not have them.
    #[serde(skip)]
    pub(crate) missing: usize,
}

impl ImageConversion<'_> {
    /// Converts the image, with the files of `recorded` first, and writes it to its target.
    /// `counter` counts the bytes of layers converted, then of blobs written.
    pub(crate) async fn run(
        &self,
        recorded: Vec<Line>,
        counter: &ProgressBar,
    ) -> Result<ConversionReport, Failure> {
        if self.convert.signing_key.is_some() && !Destination::takes_referrers(self.target) {
            return Err(Failure::new(
                "convert.signing_key is set, and an archive holds an image alone: sign into a \
                 registry or a layout",
            ));
        }
        let endpoint = self.registries.endpoint(self.source)?;
        let folder = Destination::folder(self.target);
        let scratch = ScratchStore::open(self.store, self.store_location, folder).await?;
        let manifest = endpoint.manifest().await?;
        let priorities = record::of_image(recorded, &endpoint, &manifest).await?;
        let priorities = priorities.keeping_lazy_layers(self.reuse);
        let converter = Converter::prioritizing(self.convert, scratch.store.clone(), priorities);
        let converter = converter.map_err(Failure::from_error)?;
        let record = convert(&converter, &endpoint, &manifest, counter).await?;
        let reader = ImageReader {
            store: Some(&scratch.store),
            endpoint: &endpoint,
        };
        let (bundle, missing) = self.bundle(reader, &record).await?;
        self.write(&converter, &record, reader, &bundle, counter)
            .await?;
        let statements = self.attach_statements(&converter, &record, &bundle).await?;
        Ok(ConversionReport {
            statements,
            source: manifest.digest.clone(),
            generation: converter.generation().0.clone(),
            images: ImageReport::of_bundle(reader, &bundle).await?,
            converted: bundle.root.digest.clone(),
            media_type: bundle.root.media_type.clone(),
            passed_through: record.passed_through,
            missing,
        })
    }

    /// Returns the documents to write, and the number of images that the source does not have.
    async fn bundle(
        &self,
        reader: ImageReader<'_>,
        record: &ImageRecord,
    ) -> Result<(ImageBundle, usize), Failure> {
        let converted = reader
            .manifest(&record.converted, &record.media_type)
            .await?;
        let packed = ImageBundle::pack(reader, converted).await?;
        let missing = packed.missing.len();
        let mut bundle = packed.without_missing()?;
        if !self.platforms.is_empty() {
            bundle = bundle.select(self.platforms)?;
        } else if Destination::takes_one_image(self.target) {
            bundle = bundle.select(&[Platform::of_this_machine()])?;
        }
        if self.oci || Destination::is_layout(self.target) {
            bundle = bundle.translated_to_oci()?;
        }
        Ok((bundle, missing))
    }

    /// Writes the bundle and its external TOCs to the target.
    async fn write(
        &self,
        converter: &Converter,
        record: &ImageRecord,
        reader: ImageReader<'_>,
        bundle: &ImageBundle,
        counter: &ProgressBar,
    ) -> Result<(), Failure> {
        let (source, repository) = (&reader.endpoint.source, &reader.endpoint.repository);
        let tocs = converter.toc_image(source, repository, record).await;
        let tocs = tocs.map_err(Failure::from_error)?;
        let tocs = external_toc::of_bundle(tocs.as_ref(), reader, bundle).await?;
        let destination = self.registries.destination(self.target)?;
        counter.set_message("writing");
        counter.reset();
        counter.set_length(bundle.blobs.iter().map(|blob| blob.size).sum());
        bundle
            .deliver(reader, destination, tocs.as_ref(), counter)
            .await
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Converts an image, and counts the bytes of its layers.
async fn convert(
    converter: &Converter,
    endpoint: &Endpoint,
    source_manifest: &Manifest,
    counter: &ProgressBar,
) -> Result<ImageRecord, Failure> {
    let conversion = converter.convert(&endpoint.source, &endpoint.repository, source_manifest);
    tokio::pin!(conversion);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let outcome = loop {
        tokio::select! {
            outcome = &mut conversion => break outcome,
            _ = ticks.tick() => count(converter, counter),
        }
    };
    outcome.map_err(|error| Failure::when(format!("converting {}", source_manifest.digest))(&error))
}

/// Counts the bytes of the layers that are being converted.
fn count(converter: &Converter, counter: &ProgressBar) {
    let conversions = converter.status();
    let layers = conversions.iter().flat_map(|conversion| &conversion.layers);
    let (done, total) = layers.fold((0, 0), |(done, total), layer| {
        (done + layer.done, total + layer.total)
    });
    counter.set_length(total);
    counter.set_position(done);
}
