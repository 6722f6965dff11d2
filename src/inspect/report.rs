//! The reports of `inspect` and `convert` on the parts of an image.

use estargz::footer::Form;
use estargz::toc::UnverifiedToc;
use serde::Serialize;
use serde_json::{Map, Value};

use super::blob::{Blob, BlobIndex};
use crate::failure::Failure;
use crate::oci::annotations::{
    SOURCE_DIFF_ID, SOURCE_DIGEST, SOURCE_SIZE, TOC_DIGEST, UNCOMPRESSED_SIZE, ZSTD_CHECKSUM,
};
use crate::oci::manifest::{ImageConfig, ImageManifest, MAX_CONFIG_BYTES};
use crate::oci::media_type::is_convertible_layer;
use crate::oci::{Descriptor, Digest, Manifest};
use crate::transport::document::parse;
use crate::transport::{Endpoint, ImageBundle, ImageReader};

/// The report on an image or a multi-platform image.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) images: Vec<ImageReport>,
    /// The images that cannot be read, each with the reason.
    #[serde(skip)]
    pub(crate) broken: Vec<(Digest, Failure)>,
    /// The number of images of the index that the source does not have.
    #[serde(skip)]
    pub(crate) missing: usize,
}

/// The report on a layer in a file.
#[derive(Debug, Serialize)]
pub(crate) struct FileReport {
    pub(crate) size: u64,
    pub(crate) kind: Kind,
    pub(crate) toc: Option<TocReport>,
}

/// An image manifest and its layers.
#[derive(Debug, Serialize)]
pub(crate) struct ImageReport {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// `os/architecture`, as the image's configuration says; artifacts have none.
    pub(crate) platform: Option<String>,
    pub(crate) config: Digest,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) annotations: Map<String, Value>,
    pub(crate) layers: Vec<LayerReport>,
}

/// A layer, by its descriptor and, for `inspect`, by its footer and TOC.
#[derive(Debug, Serialize)]
pub(crate) struct LayerReport {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) size: u64,
    pub(crate) kind: Kind,
    pub(crate) diff_id: Option<Digest>,
    pub(crate) uncompressed_size: Option<u64>,
    pub(crate) toc_digest: Option<String>,
    pub(crate) source: Option<SourceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) toc: Option<TocReport>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) annotations: Map<String, Value>,
}

/// The source layer, by Starlift's annotations.
#[derive(Debug, Serialize)]
pub(crate) struct SourceReport {
    pub(crate) digest: String,
    pub(crate) diff_id: Option<String>,
    /// Length of the source tar inside the layer's stream.
    pub(crate) size: Option<u64>,
}

/// The TOC in a layer's bytes.
#[derive(Debug, Serialize)]
pub(crate) struct TocReport {
    pub(crate) digest: String,
    /// Whether the manifest names this digest; `None` if it names none.
    pub(crate) named_by_manifest: Option<bool>,
    pub(crate) json_bytes: usize,
    pub(crate) entries: usize,
    pub(crate) chunks: usize,
}

/// A kind of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Estargz,
    /// eStargz whose TOC is a blob of its own.
    EstargzExternalToc,
    /// The format before eStargz.
    Stargz,
    Zstdchunked,
    Plain,
}

impl Kind {
    /// Returns the kind of a layer whose footer has this form; `None` if it has no footer.
    pub(crate) fn of_form(form: Option<Form>) -> Self {
        match form {
            Some(Form::Estargz) => Self::Estargz,
            Some(Form::ExternalToc) => Self::EstargzExternalToc,
            Some(Form::LegacyStargz) => Self::Stargz,
            Some(Form::ZstdChunked) => Self::Zstdchunked,
            None => Self::Plain,
        }
    }

    /// Returns the kind that the manifest's annotations claim. The layer is not read.
    fn of_annotations(annotations: &Map<String, Value>) -> Self {
        if annotations.contains_key(ZSTD_CHECKSUM) {
            Self::Zstdchunked
        } else if annotations.contains_key(TOC_DIGEST) {
            Self::Estargz
        } else {
            Self::Plain
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Estargz => "estargz",
            Self::EstargzExternalToc => "estargz-external-toc",
            Self::Stargz => "stargz",
            Self::Zstdchunked => "zstdchunked",
            Self::Plain => "plain",
        }
    }
}

impl FileReport {
    /// Returns the report on `blob`, whose end is `index`.
    pub(crate) fn of(blob: &Blob<'_>, index: BlobIndex) -> Result<Self, Failure> {
        let toc = index.toc.map(|toc| TocReport::of(toc, None, None));
        Ok(Self {
            size: blob.size(),
            kind: Kind::of_form(index.form),
            toc: toc.transpose()?,
        })
    }
}

impl ImageReport {
    /// Returns the reports on a bundle's images, from their documents only.
    pub(crate) async fn of_bundle(
        reader: ImageReader<'_>,
        bundle: &ImageBundle,
    ) -> Result<Vec<Self>, Failure> {
        let mut reports = Vec::new();
        for manifest in bundle.images() {
            reports.push(Self::of_documents(reader, manifest).await?);
        }
        Ok(reports)
    }

    /// Returns the report from the manifest and the configuration.
    pub(crate) async fn of_documents(
        reader: ImageReader<'_>,
        manifest: &Manifest,
    ) -> Result<Self, Failure> {
        let image: ImageManifest = parse(manifest)?;
        let config = configuration(reader, &image.config).await?;
        let diff_ids = config
            .as_ref()
            .map(|config| config.rootfs.diff_ids.as_slice())
            .unwrap_or_default();
        let annotations = match image.rest.get("annotations") {
            Some(Value::Object(annotations)) => annotations.clone(),
            _ => Map::new(),
        };
        let layers = image.layers.iter().enumerate();
        Ok(Self {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.clone(),
            platform: config.as_ref().and_then(platform),
            config: image.config.digest,
            annotations,
            layers: layers
                .map(|(n, layer)| LayerReport::of_descriptor(layer, diff_ids.get(n)))
                .collect(),
        })
    }

    /// Returns the report from the documents, and from each layer's footer and TOC.
    pub(crate) async fn of_image(
        reader: ImageReader<'_>,
        manifest: &Manifest,
    ) -> Result<Self, Failure> {
        let mut report = Self::of_documents(reader, manifest).await?;
        let image: ImageManifest = parse(manifest)?;
        for (layer, report) in image.layers.iter().zip(&mut report.layers) {
            if is_convertible_layer(&layer.media_type) && layer.urls.is_empty() {
                report.look_into(reader.endpoint, layer).await?;
            }
        }
        Ok(report)
    }
}

impl LayerReport {
    fn of_descriptor(layer: &Descriptor, diff_id: Option<&Digest>) -> Self {
        let text = |key: &str| {
            layer
                .annotations
                .get(key)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let number = |key: &str| text(key).and_then(|digits| digits.parse().ok());
        let source = text(SOURCE_DIGEST).map(|digest| SourceReport {
            digest,
            diff_id: text(SOURCE_DIFF_ID),
            size: number(SOURCE_SIZE),
        });
        Self {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
            size: layer.size,
            kind: Kind::of_annotations(&layer.annotations),
            diff_id: diff_id.cloned(),
            uncompressed_size: number(UNCOMPRESSED_SIZE),
            toc_digest: text(TOC_DIGEST),
            source,
            toc: None,
            annotations: layer.annotations.clone(),
        }
    }

    async fn look_into(&mut self, endpoint: &Endpoint, layer: &Descriptor) -> Result<(), Failure> {
        let index = Blob::Remote { endpoint, layer }.index().await?;
        self.kind = Kind::of_form(index.form);
        if let Some(toc) = index.toc {
            let named = self.annotations.get(ZSTD_CHECKSUM).and_then(Value::as_str);
            self.toc = Some(TocReport::of(toc, self.toc_digest.as_deref(), named)?);
        }
        Ok(())
    }
}

impl TocReport {
    /// From the manifest, `named` is the digest of the TOC, and `checksum` that of its compressed
    /// bytes.
    fn of(
        toc: UnverifiedToc,
        named: Option<&str>,
        checksum: Option<&str>,
    ) -> Result<Self, Failure> {
        let digest = toc.digest();
        let section = toc.section_digest().to_string();
        let json_bytes = toc.json().len();
        let named_by_manifest = named
            .map(|named| named == digest.to_string())
            .or(checksum.map(|checksum| checksum == section));
        let toc = toc
            .verify(&digest)
            .map_err(Failure::when(format!("TOC {digest} is malformed")))?;
        Ok(Self {
            digest: digest.to_string(),
            named_by_manifest,
            json_bytes,
            entries: toc.len(),
            chunks: toc.chunk_count(),
        })
    }
}

/// Returns the image configuration. `None` for artifacts, whose configuration has another format,
/// and for a configuration over the size limit.
async fn configuration(
    reader: ImageReader<'_>,
    config: &Descriptor,
) -> Result<Option<ImageConfig>, Failure> {
    if config.size > MAX_CONFIG_BYTES {
        return Ok(None);
    }
    let bytes = reader.bytes(config).await?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn platform(config: &ImageConfig) -> Option<String> {
    let text = |key: &str| config.rest.get(key).and_then(Value::as_str);
    let name = format!("{}/{}", text("os")?, text("architecture")?);
    Some(text("variant").map_or(name.clone(), |variant| format!("{name}/{variant}")))
}
