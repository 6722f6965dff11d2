//! Verifies images: every document and layer, and each against its source if that is named.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;

use futures::TryStreamExt as _;
use indicatif::ProgressBar;

use super::Part;
use super::layer::{Claims, Source, verify_blob};
use super::open::OpenImage;
use crate::failure::Failure;
use crate::inspect::report::{ImageReport, LayerReport};
use crate::layers::digest::to_format;
use crate::oci::manifest::{ImageConfig, ImageManifest};
use crate::oci::media_type::is_convertible_layer;
use crate::oci::{Descriptor, Digest, Manifest, Platform};
use crate::provenance::TrustedKeys;
use crate::transport::document::parse;
use crate::transport::{ImageReader, Registries, external_toc};

/// An opened image with its external TOCs.
struct Opened {
    image: OpenImage,
    /// The external TOCs of the image, by layer.
    tocs: HashMap<Digest, Descriptor>,
}

impl Opened {
    async fn open(verification: &Verification<'_>, location: &str) -> Result<Self, Failure> {
        let Verification {
            registries,
            platform,
            ..
        } = verification;
        let image = OpenImage::open(*registries, location, *platform).await?;
        let layers = external_toc::layers(&image.bundle);
        let tocs = external_toc::of_source(&image.endpoint, &layers).await;
        let tocs = tocs.into_iter().flat_map(|image| image.layers);
        let tocs = tocs
            .filter_map(|toc| Some((external_toc::layer_of(&toc)?, toc)))
            .collect();
        Ok(Self { image, tocs })
    }

    fn reader(&self) -> ImageReader<'_> {
        self.image.reader()
    }
}

/// The settings of a verification.
#[derive(Debug)]
pub(crate) struct Verification<'a> {
    pub(crate) registries: Registries<'a>,
    /// Only this platform of a multi-platform image.
    pub(crate) platform: Option<&'a Platform>,
    /// If there are any, a statement on the image must be signed by one of these.
    pub(crate) keys: &'a TrustedKeys,
    pub(crate) counter: &'a ProgressBar,
}

impl Verification<'_> {
    /// Verifies every image at `location`, against the images at `against`. Digests of documents are
    /// checked as they are read.
    pub(crate) async fn verify(
        &self,
        location: &str,
        against: Option<&str>,
    ) -> Result<Vec<Part>, Failure> {
        let converted = Opened::open(self, location).await?;
        let source = match against {
            Some(source) => Some(Opened::open(self, source).await?),
            None => None,
        };
        let total = converted
            .image
            .bundle
            .blobs
            .iter()
            .map(|blob| blob.size)
            .sum();
        self.counter.set_length(total);
        let missing = converted.image.bundle.missing.iter();
        let mut parts: Vec<_> = missing
            .map(|digest| Part::not_held(digest.to_string()))
            .collect();
        if !self.keys.is_empty() {
            let source = source.as_ref().map(|source| &source.image);
            parts.push(converted.image.provenance(self.keys, source).await);
        }
        for manifest in converted.image.bundle.images() {
            let image = Image::read(&converted, manifest).await?;
            let source_image = match &source {
                Some(source) => Some((source, image.source_in(source).await?)),
                None => None,
            };
            parts.push(
                image.documents(
                    source_image
                        .as_ref()
                        .map(|(_, source_image)| source_image.as_ref()),
                ),
            );
            let source_image =
                source_image.and_then(|(source, source_image)| Some((source, source_image?)));
            image
                .layers(&converted, source_image.as_ref(), self.counter, &mut parts)
                .await?;
        }
        Ok(parts)
    }
}

/// An image manifest with its configuration and report.
struct Image {
    name: String,
    manifest: ImageManifest,
    /// `None` for artifacts.
    config: Option<ImageConfig>,
    report: ImageReport,
}

impl Image {
    async fn read(opened: &Opened, manifest: &Manifest) -> Result<Self, Failure> {
        let report = ImageReport::of_documents(opened.reader(), manifest).await?;
        let manifest: ImageManifest = parse(manifest)?;
        let bytes = opened.reader().bytes(&manifest.config).await?;
        let name = report
            .platform
            .clone()
            .unwrap_or_else(|| "artifact".to_owned());
        Ok(Self {
            name,
            config: serde_json::from_slice(&bytes).ok(),
            manifest,
            report,
        })
    }

    /// Returns the source image in `source`: the image with the same digest, or else the first one
    /// for the same platform.
    async fn source_in(&self, source: &Opened) -> Result<Option<Self>, Failure> {
        if let Some(same) = source
            .image
            .bundle
            .images()
            .into_iter()
            .find(|manifest| manifest.digest == self.report.digest)
        {
            return Self::read(source, same).await.map(Some);
        }
        for manifest in source.image.bundle.images() {
            let image = Self::read(source, manifest).await?;
            if image.report.platform == self.report.platform {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// Verifies manifest and configuration: as many diff-ids as layers, and all but the diff-ids as
    /// in the source image. `source_image` is `Some(None)` if the source has no image for this
    /// platform.
    fn documents(&self, source_image: Option<Option<&Self>>) -> Part {
        let mut findings = Vec::new();
        let layers = self.manifest.layers.len();
        let is_image = self
            .manifest
            .layers
            .iter()
            .all(|layer| is_convertible_layer(&layer.media_type));
        if let Some(config) = self.config.as_ref().filter(|_| is_image)
            && config.rootfs.diff_ids.len() != layers
        {
            findings.push(format!(
                "{layers} layers have {} diff-ids",
                config.rootfs.diff_ids.len()
            ));
        }
        match source_image {
            Some(None) => findings.push("the source has no image for this platform".to_owned()),
            Some(Some(source_image)) => self.compare(source_image, &mut findings),
            None => {}
        }
        Part {
            name: format!("{} {}", self.name, self.report.digest),
            what: "documents".to_owned(),
            findings,
        }
    }

    fn compare(&self, source_image: &Self, findings: &mut Vec<String>) {
        let (mine, theirs) = (
            self.manifest.layers.len(),
            source_image.manifest.layers.len(),
        );
        if mine != theirs {
            findings.push(format!("{mine} layers, the source has {theirs}"));
        }
        match (&self.config, &source_image.config) {
            (Some(mine), Some(theirs)) => {
                let keys = mine.rest.keys().chain(
                    theirs
                        .rest
                        .keys()
                        .filter(|key| !mine.rest.contains_key(*key)),
                );
                let differing = keys.filter(|key| mine.rest.get(*key) != theirs.rest.get(*key));
                findings.extend(
                    differing.map(|key| {
                        format!("{key:?} of the configuration differs from the source's")
                    }),
                );
            }
            (None, None) if self.manifest.config.digest == source_image.manifest.config.digest => {}
            _ => findings.push("the configuration is not the source's".to_owned()),
        }
    }

    async fn layers(
        &self,
        opened: &Opened,
        source_image: Option<&(&Opened, Self)>,
        counter: &ProgressBar,
        parts: &mut Vec<Part>,
    ) -> Result<(), Failure> {
        for (number, layer) in self.manifest.layers.iter().enumerate() {
            let name = format!("{} layer {number} {}", self.name, layer.digest);
            let file = download(opened, layer, counter).await?;
            if !is_convertible_layer(&layer.media_type) {
                parts.push(Part {
                    name,
                    what: layer.media_type.clone(),
                    findings: Vec::new(),
                });
                continue;
            }
            let mut claims = self.claims(number);
            if let Some(toc) = opened.tocs.get(&layer.digest) {
                claims.external_toc = Some(opened.reader().bytes(toc).await?);
            }
            let source = source_image
                .and_then(|(source, image)| Some((*source, image.manifest.layers.get(number)?)));
            if let Some((source, theirs)) =
                source.filter(|(_, theirs)| theirs.digest != layer.digest)
            {
                let file = download(source, theirs, counter).await?;
                claims.source = Some(
                    Source::of(&file)
                        .map_err(Failure::when(format!("reading {}", theirs.digest)))?,
                );
                claims.against = Some(file);
            }
            parts.push(verify_blob(name, file, claims).await?);
        }
        Ok(())
    }

    fn claims(&self, number: usize) -> Claims {
        let report = self.report.layers.get(number);
        let diff_id = report.and_then(|layer| layer.diff_id.as_ref());
        Claims {
            toc_digest: report.and_then(|layer| layer.toc_digest.as_deref()?.parse().ok()),
            diff_id: diff_id.and_then(|diff_id| to_format(diff_id).ok()),
            source: report.and_then(claimed_source),
            external_toc: None,
            against: None,
        }
    }
}

fn claimed_source(layer: &LayerReport) -> Option<Source> {
    let source = layer.source.as_ref()?;
    Some(Source {
        diff_id: source.diff_id.as_deref()?.parse().ok()?,
        size: source.size?,
    })
}

/// Downloads a blob into an unnamed temporary file, and checks its digest.
async fn download(
    opened: &Opened,
    blob: &Descriptor,
    counter: &ProgressBar,
) -> Result<File, Failure> {
    let what = || Failure::when("temporary file cannot be written");
    let mut file = tempfile::tempfile().map_err(what())?;
    let mut hasher = blob.digest.hasher();
    let mut stream = opened.reader().blob(blob).await?;
    while let Some(piece) = stream.try_next().await? {
        hasher.update(&piece);
        counter.inc(piece.len() as u64);
        file.write_all(&piece).map_err(what())?;
    }
    if hasher.finish() == blob.digest {
        Ok(file)
    } else {
        Err(Failure::new(format!(
            "{}: its bytes have another digest",
            blob.digest
        )))
    }
}
