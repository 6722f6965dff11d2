//! Random images, the same for the same seed: layers in every compression, indexes, attestations
//! and referrers.

use std::io::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};
use starlift::oci::{Digest, media_type};

/// A manifest or index with everything that it names.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// The configuration and the layers that the manifest names.
    pub(crate) blobs: Vec<Bytes>,
    pub(crate) children: Vec<Image>,
}

impl Image {
    fn new(media_type: &str, document: &Value, blobs: Vec<Bytes>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            bytes: document.to_string().into(),
            blobs,
            children: Vec::new(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.bytes)
    }

    /// Returns the compressed layers, bottom first.
    pub(crate) fn layers(&self) -> &[Bytes] {
        &self.blobs[1..]
    }

    pub(crate) fn document(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    /// Returns this image with another document, which names the same blobs and children.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut document = self.document();
        change(&mut document);
        Self {
            bytes: document.to_string().into(),
            ..self.clone()
        }
    }

    /// Returns the image with this tar as its only layer.
    pub(crate) fn with_layer(&self, tar: &[u8]) -> Self {
        let layer = compress(tar, Compression::Gzip);
        let mut config: Value = serde_json::from_slice(&self.blobs[0]).unwrap();
        config["rootfs"]["diff_ids"] = json!([Digest::sha256_of(tar).to_string()]);
        let config = Bytes::from(config.to_string());
        let mut document = self.document();
        document["config"] = blob(media_type::OCI_CONFIG, &config);
        document["layers"] = json!([blob(media_type::OCI_LAYER_GZIP, &layer)]);
        Self::new(&self.media_type, &document, vec![config, layer])
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest().to_string(), "size": self.bytes.len()})
    }

    /// Returns an OCI index over `(OS/ARCHITECTURE, image)`, with an attestation for each image on
    /// request, like BuildKit's.
    pub(crate) fn index(images: Vec<(&str, Image)>, with_attestations: bool) -> Self {
        let (mut manifests, mut children, mut attestations) = (Vec::new(), Vec::new(), Vec::new());
        for (platform, image) in images {
            let (os, architecture) = platform.split_once('/').unwrap();
            let mut descriptor = image.descriptor();
            descriptor["platform"] = json!({"architecture": architecture, "os": os});
            manifests.push(descriptor);
            if with_attestations {
                attestations.push((image.digest(), image.attestation()));
            }
            children.push(image);
        }
        for (subject, attestation) in attestations {
            let mut descriptor = attestation.descriptor();
            descriptor["annotations"] = json!({
                "vnd.docker.reference.digest": subject.to_string(),
                "vnd.docker.reference.type": "attestation-manifest",
            });
            descriptor["platform"] = json!({"architecture": "unknown", "os": "unknown"});
            manifests.push(descriptor);
            children.push(attestation);
        }
        let document =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        Self {
            children,
            ..Self::new(media_type::OCI_INDEX, &document, Vec::new())
        }
    }

    fn attestation(&self) -> Self {
        let statement = json!({"_type": "https://in-toto.io/Statement/v0.1", "subject": self.digest().to_string()});
        let statement = Bytes::from(statement.to_string());
        let config = Bytes::from_static(
            br#"{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        );
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": blob(media_type::OCI_CONFIG, &config),
            "layers": [blob("application/vnd.in-toto+json", &statement)],
        });
        Self::new(media_type::OCI_MANIFEST, &document, vec![config, statement])
    }

    /// Returns an artifact that refers to this image, for the referrers API.
    pub(crate) fn referrer(&self, artifact_type: &str) -> Self {
        let config = Bytes::from_static(b"{}");
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": blob("application/vnd.oci.empty.v1+json", &config),
            "layers": [blob("application/vnd.oci.empty.v1+json", &config)],
            "subject": self.descriptor(),
        });
        Self::new(media_type::OCI_MANIFEST, &document, vec![config])
    }
}

fn blob(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes).to_string(), "size": bytes.len()})
}

/// The compression of a layer's tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Describes a random image, which is small by default.
#[derive(Debug, Clone)]
pub(crate) struct ImageBuilder {
    random: Random,
    layers: usize,
    files: usize,
    max_file: usize,
    compression: Compression,
    docker: bool,
    architecture: String,
}

impl ImageBuilder {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            layers: 2,
            files: 10,
            max_file: 4096,
            compression: Compression::Gzip,
            docker: false,
            architecture: "amd64".to_owned(),
        }
    }

    pub(crate) fn layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// Sets the number of regular files in each layer.
    pub(crate) fn files(self, files: usize) -> Self {
        Self { files, ..self }
    }

    /// Sets the size of the largest file.
    pub(crate) fn max_file(self, max_file: usize) -> Self {
        Self { max_file, ..self }
    }

    pub(crate) fn compression(self, compression: Compression) -> Self {
        Self {
            compression,
            ..self
        }
    }

    /// Uses Docker's media types instead of OCI's.
    pub(crate) fn docker(self) -> Self {
        Self {
            docker: true,
            ..self
        }
    }

    pub(crate) fn architecture(self, architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            ..self
        }
    }

    pub(crate) fn build(mut self) -> Image {
        let tars: Vec<Vec<u8>> = (0..self.layers).map(|layer| self.tar(layer)).collect();
        let diff_ids: Vec<String> = tars
            .iter()
            .map(|tar| Digest::sha256_of(tar).to_string())
            .collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created_by": "random"})).collect::<Vec<_>>(),
        });
        let config = Bytes::from(config.to_string());
        let layers: Vec<Bytes> = tars
            .iter()
            .map(|tar| compress(tar, self.compression))
            .collect();
        let (manifest_type, config_type, layer_type) = self.media_types();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": blob(config_type, &config),
            "layers": layers.iter().map(|layer| blob(layer_type, layer)).collect::<Vec<_>>(),
        });
        Image::new(
            manifest_type,
            &document,
            std::iter::once(config).chain(layers).collect(),
        )
    }

    fn media_types(&self) -> (&'static str, &'static str, &'static str) {
        let layer = match (self.docker, self.compression) {
            (true, Compression::Plain) => media_type::DOCKER_LAYER,
            (true, Compression::Gzip) => media_type::DOCKER_LAYER_GZIP,
            (true, Compression::Zstd) => media_type::DOCKER_LAYER_ZSTD,
            (false, Compression::Plain) => media_type::OCI_LAYER,
            (false, Compression::Gzip) => media_type::OCI_LAYER_GZIP,
            (false, Compression::Zstd) => media_type::OCI_LAYER_ZSTD,
        };
        if self.docker {
            (
                media_type::DOCKER_MANIFEST,
                media_type::DOCKER_CONFIG,
                layer,
            )
        } else {
            (media_type::OCI_MANIFEST, media_type::OCI_CONFIG, layer)
        }
    }

    /// Returns a tar with a directory of random files. Some are half zeros, so that compression
    /// matters.
    fn tar(&mut self, layer: usize) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut directory = header(tar::EntryType::Directory, 0, 0o755);
        tar.append_data(&mut directory, format!("layer{layer}/"), std::io::empty())
            .unwrap();
        for file in 0..self.files {
            let length = self.random.index(self.max_file + 1);
            let mut content = self.random.bytes(length);
            content[length / 2..].fill(0);
            let mut header = header(tar::EntryType::Regular, length as u64, 0o644);
            tar.append_data(
                &mut header,
                format!("layer{layer}/file{file}"),
                content.as_slice(),
            )
            .unwrap();
        }
        tar.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1_600_000_000);
    header
}

/// Returns `tar`, compressed as a layer.
pub(crate) fn compress(tar: &[u8], compression: Compression) -> Bytes {
    match compression {
        Compression::Plain => Bytes::copy_from_slice(tar),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap().into()
        }
        Compression::Zstd => zstd::encode_all(tar, 1).unwrap().into(),
    }
}

/// A small generator (splitmix64). Tests must see the same bytes in every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns an index below `end`.
    pub(crate) fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes())
            .flatten()
            .take(length)
            .collect()
    }
}
