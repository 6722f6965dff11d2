//! An image opened with its documents.

use super::blob::Blob;
use super::profiles::{self, ImageProfiles};
use super::report::{ImageReport, Report};
use crate::failure::Failure;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Digest, Platform};
use crate::transport::document::parse;
use crate::transport::{Endpoint, ImageBundle, ImageReader, Location, Registries};

/// An image or a multi-platform image, and the place that it is read from.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(super) endpoint: Endpoint,
    pub(super) bundle: ImageBundle,
    /// The digest and the media type of the root, whatever the platform.
    root: (Digest, String),
}

impl OpenImage {
    /// Reads the documents of the image at `location`, or only of its image for `platform`.
    pub(crate) async fn open(
        registries: Registries<'_>,
        location: &str,
        platform: Option<&Platform>,
    ) -> Result<Self, Failure> {
        let location: Location = location.parse().map_err(Failure::from_error)?;
        let endpoint = registries.endpoint(&location)?;
        let manifest = endpoint.manifest().await?;
        let root = (manifest.digest.clone(), manifest.media_type.clone());
        let reader = ImageReader {
            store: None,
            endpoint: &endpoint,
        };
        let mut bundle = ImageBundle::pack(reader, manifest).await?;
        if let Some(platform) = platform {
            bundle = bundle.select(std::slice::from_ref(platform))?;
        }
        Ok(Self {
            endpoint,
            bundle,
            root,
        })
    }

    /// The digest of the manifest that was named, whatever the platform.
    pub(super) fn root_digest(&self) -> &Digest {
        &self.root.0
    }

    pub(super) fn reader(&self) -> ImageReader<'_> {
        ImageReader {
            store: None,
            endpoint: &self.endpoint,
        }
    }

    /// Returns the report from the documents and the layers' TOCs.
    ///
    /// # Errors
    /// If the image cannot be read. One broken image of several is only named in the report.
    pub(crate) async fn report(&self) -> Result<Report, Failure> {
        let (digest, media_type) = self.root.clone();
        let (mut images, mut broken) = (Vec::new(), Vec::new());
        for manifest in self.bundle.images() {
            match ImageReport::of_image(self.reader(), manifest).await {
                Ok(image) => images.push(image),
                Err(failure) if manifest.digest != digest => {
                    broken.push((manifest.digest.clone(), failure));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Report {
            digest,
            media_type,
            images,
            broken,
            missing: self.bundle.missing.len(),
        })
    }

    /// Returns the profiles that refer to each image.
    pub(crate) async fn profiles(&self) -> Result<Vec<ImageProfiles>, Failure> {
        let mut images = Vec::new();
        for manifest in self.bundle.images() {
            images.push(ImageProfiles {
                image: manifest.digest.clone(),
                profiles: profiles::of_image(&self.endpoint, manifest).await?,
            });
        }
        Ok(images)
    }

    /// Returns the exact bytes of the TOC of layer `number`, which only an image of one layer may
    /// leave out.
    pub(crate) async fn toc_of_layer(&self, number: Option<usize>) -> Result<Vec<u8>, Failure> {
        let [manifest] = *self.bundle.images() else {
            return Err(Failure::new(
                "the image has several platforms: name one with --platform",
            ));
        };
        let layers = parse::<ImageManifest>(manifest)?.layers;
        let number = match (number, layers.len()) {
            (Some(number), _) => number,
            (None, 1) => 0,
            (None, count) => {
                return Err(Failure::new(format!(
                    "the image has {count} layers: name one with --layer"
                )));
            }
        };
        let layer = layers
            .get(number)
            .ok_or_else(|| Failure::new(format!("the image has {} layers", layers.len())))?;
        let blob = Blob::Remote {
            endpoint: &self.endpoint,
            layer,
        };
        let toc = blob.index().await?.toc;
        let toc =
            toc.ok_or_else(|| Failure::new(format!("the layer {} holds no TOC", layer.digest)))?;
        Ok(toc.json().to_vec())
    }
}
