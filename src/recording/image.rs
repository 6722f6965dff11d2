//! The source image of a recording: the one for this machine's platform.

use serde::Deserialize;

use super::workload::RunConfig;
use crate::conversion::ImageConversion;
use crate::failure::Failure;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Manifest, Platform, Reference};
use crate::transport::ImageReader;
use crate::transport::document::{is_index, parse};
use crate::transport::platform::child_of;

/// An image that this machine can run.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) manifest: Manifest,
    pub(super) config: RunConfig,
}

/// The part of an image configuration that describes the process.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<RunConfig>,
}

impl Image {
    /// Reads the documents of the image for this machine's platform from the conversion's source.
    ///
    /// # Errors
    /// If the conversion's platforms do not include this machine's.
    pub(super) async fn find(conversion: &ImageConversion<'_>) -> Result<Self, Failure> {
        let platform = Platform::of_this_machine();
        let wanted = conversion.platforms;
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted.matches(&platform)) {
            let reason = "only an image for this machine can be run: take another's files from --record-in, or convert";
            return Err(Failure::new(format!(
                "{platform} is not among the platforms: {reason}"
            )));
        }
        let endpoint = conversion.registries.endpoint(conversion.source)?;
        let mut manifest = endpoint.manifest().await?;
        if is_index(&manifest) {
            let reference = Reference::Digest(child_of(&manifest, &platform)?.digest);
            let child = endpoint
                .source
                .manifest(&endpoint.repository, &reference)
                .await;
            manifest = child.map_err(Failure::when(format!(
                "reading the manifest for {platform}"
            )))?;
        }
        let config = parse::<ImageManifest>(&manifest)?.config;
        let reader = ImageReader {
            store: None,
            endpoint: &endpoint,
        };
        let bytes = reader.bytes(&config).await?;
        let config: Configuration = serde_json::from_slice(&bytes).map_err(Failure::when(
            format!("{} is not an image configuration", config.digest),
        ))?;
        Ok(Self {
            manifest,
            config: config.config.unwrap_or_default(),
        })
    }
}
