//! The documents of a converted image: a new configuration and a new manifest. Every process makes
//! the same bytes from the same input.
//!
//! Media types follow the source, except for zstd:chunked, where the converted image is OCI
//! throughout. The reader of that format, containers/image, refuses zstd layers in Docker manifests
//! ("unsupported docker v2s2 media type"). A zstd:chunked layer gets no stargz annotation, because
//! containers/storage refuses a layer that has both (`pkg/chunked/toc/toc.go`).

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::claims;
use super::plan::{ImagePlan, LayerPlan};
use super::reason::printable;
use crate::oci::annotations::{
    GENERATION, LAYER_DIGEST, SOURCE_DIFF_ID, SOURCE_DIGEST, SOURCE_SIZE, TOC_DIGEST, UNCOMPRESSED,
    UNCOMPRESSED_SIZE, ZSTD_CHECKSUM, ZSTD_POSITION,
};
use crate::oci::manifest::{ImageManifest, MAX_MANIFEST_BYTES};
use crate::oci::{Descriptor, Digest, Manifest, lenient, media_type, translate};
use crate::store::records::{ConvertedLayer, Limit, PassedThrough};
use crate::store::{Generation, LayerOutcome};

/// An image's configuration: the fields that a conversion needs, and the whole text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// `None` if a text is not a digest. That layer then stays unchanged.
    diff_ids: Vec<Option<Digest>>,
    text: Bytes,
}

/// The outcome for an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assembled {
    /// `None` when no layer of the image could be replaced.
    pub(crate) converted: Option<ConvertedImage>,
    pub(crate) passed_through: Vec<PassedThrough>,
    /// The configured limits among the reasons.
    pub(crate) limits: Vec<Limit>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConvertedImage {
    /// The new configuration; `None` when it is unchanged.
    pub(crate) config: Option<Bytes>,
    pub(crate) manifest: Manifest,
    /// The content of the manifest's bytes.
    pub(crate) image: ImageManifest,
    /// The same manifest in the media types of the other family (Docker or OCI). `None` when a part
    /// of it has no counterpart there.
    pub(crate) translated: Option<Manifest>,
    /// The converted layers and external TOCs that the manifest names.
    pub(crate) objects: Vec<Digest>,
}

impl Config {
    /// Parses the configuration of an image of `layers` layers, or returns the reason why it is
    /// invalid.
    pub(crate) fn parse(text: Bytes, layers: usize) -> Result<Self, String> {
        let unreadable = |reason: String| {
            format!(
                "the image configuration is not readable: {}",
                printable(&reason)
            )
        };
        let mut document: Value =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        let list = diff_ids_of(&mut document).map_err(unreadable)?;
        let diff_ids: Vec<_> = list
            .iter()
            .map(|text| text.as_str()?.parse().ok())
            .collect();
        if diff_ids.len() != layers {
            return Err(format!(
                "the image has {layers} layers, its configuration {} diff-ids",
                diff_ids.len()
            ));
        }
        Ok(Self { diff_ids, text })
    }

    /// Returns the configuration with other diff-ids; `None` when they are the same.
    fn with_diff_ids(
        &self,
        diff_ids: &[Option<Digest>],
    ) -> Result<Option<Bytes>, serde_json::Error> {
        if self.diff_ids == diff_ids {
            return Ok(None);
        }
        let mut document: Value = serde_json::from_slice(&self.text)?;
        let list = diff_ids_of(&mut document).map_err(serde::de::Error::custom)?;
        for (text, diff_id) in list.iter_mut().zip(diff_ids) {
            if let Some(diff_id) = diff_id {
                *text = Value::from(diff_id.to_string());
            }
        }
        serde_json::to_vec(&document).map(|text| Some(text.into()))
    }
}

/// Returns the list of diff-ids in an image configuration.
fn diff_ids_of(document: &mut Value) -> Result<&mut Vec<Value>, String> {
    let rootfs = lenient::get_mut(document, "rootfs")?.ok_or("it has no rootfs")?;
    let list = lenient::get_mut(rootfs, "diff_ids")?.ok_or("it has no diff-ids")?;
    list.as_array_mut()
        .ok_or_else(|| "its diff-ids are not a list".to_owned())
}

/// Replaces the converted layers in the image. `outcomes` holds every layer that the plan converts,
/// by source digest. `keeps_source` means that a converted layer begins with the source's tar.
pub(crate) fn assemble(
    source: &Manifest,
    plan: &ImagePlan,
    config: &Config,
    outcomes: &HashMap<Digest, LayerOutcome>,
    generation: &Generation,
    keeps_source: bool,
) -> Result<Assembled, serde_json::Error> {
    let mut image = plan.manifest.clone();
    let mut diff_ids = config.diff_ids.clone();
    let mut objects = Vec::new();
    let mut passed_through = Vec::new();
    let limits: BTreeSet<_> = outcomes.values().filter_map(LayerOutcome::limit).collect();
    let limits: Vec<_> = limits.into_iter().collect();
    for ((layer, plan), diff_id) in image.layers.iter_mut().zip(&plan.layers).zip(&mut diff_ids) {
        match replacement(layer, plan, diff_id, outcomes) {
            Ok(converted) => {
                *layer = layer_descriptor(layer, converted, keeps_source);
                *diff_id = Some(converted.diff_id.clone());
                objects.push(converted.digest.clone());
                objects.extend(converted.external_toc.clone());
            }
            Err(reason) => {
                if *plan == LayerPlan::Renew {
                    layer.annotations.retain(|key, _| !claims::is_lazy_key(key));
                }
                passed_through.push(PassedThrough {
                    digest: layer.digest.clone(),
                    reason,
                });
            }
        }
    }
    if objects.is_empty() {
        return Ok(Assembled {
            converted: None,
            passed_through,
            limits,
        });
    }
    let config = config.with_diff_ids(&diff_ids)?;
    if let Some(config) = &config {
        point_at(
            &mut image.config,
            Digest::sha256_of(config),
            config.len() as u64,
        );
    }
    annotate(&mut image.rest, &source.digest, generation);
    let mut media_type = source.media_type.as_str();
    if image
        .layers
        .iter()
        .any(|layer| layer.media_type == media_type::OCI_LAYER_ZSTD)
    {
        media_type = media_type::to_oci(media_type).unwrap_or(media_type);
        make_oci(&mut image);
    }
    let manifest = Manifest::new(media_type.to_owned(), serde_json::to_vec(&image)?.into());
    if manifest.size() > MAX_MANIFEST_BYTES {
        let reason =
            format!("converted manifest would be over the limit of {MAX_MANIFEST_BYTES} bytes");
        passed_through.push(PassedThrough {
            digest: source.digest.clone(),
            reason,
        });
        return Ok(Assembled {
            converted: None,
            passed_through,
            limits,
        });
    }
    let translated = translate::image(&manifest);
    Ok(Assembled {
        converted: Some(ConvertedImage {
            config,
            manifest,
            image,
            translated,
            objects,
        }),
        passed_through,
        limits,
    })
}

/// Translates all media types in the image to OCI.
fn make_oci(image: &mut ImageManifest) {
    let descriptors = image
        .layers
        .iter_mut()
        .chain([&mut image.config])
        .map(|descriptor| &mut descriptor.media_type);
    for media_type in descriptors.chain(&mut image.media_type) {
        if let Some(oci) = media_type::to_oci(media_type) {
            *media_type = oci.to_owned();
        }
    }
}

/// Returns the replacement of `layer`, or the reason why it is not replaced.
fn replacement<'a>(
    layer: &Descriptor,
    plan: &LayerPlan,
    diff_id: &Option<Digest>,
    outcomes: &'a HashMap<Digest, LayerOutcome>,
) -> Result<&'a ConvertedLayer, String> {
    if let LayerPlan::PassThrough(reason) | LayerPlan::Claimed(reason) = plan {
        return Err(reason.clone());
    }
    match outcomes.get(&layer.digest) {
        Some(LayerOutcome::Converted(converted))
            if Some(&converted.source_diff_id) == diff_id.as_ref() =>
        {
            Ok(converted)
        }
        Some(LayerOutcome::Converted(converted)) => {
            let said = diff_id
                .as_ref()
                .map_or("none".to_owned(), Digest::to_string);
            Err(format!(
                "its diff-id is {}, the image configuration says {said}",
                converted.source_diff_id
            ))
        }
        Some(LayerOutcome::PassedThrough { reason, .. }) => Err(reason.clone()),
        None => Err("not converted".to_owned()),
    }
}

fn layer_descriptor(
    source: &Descriptor,
    converted: &ConvertedLayer,
    keeps_source: bool,
) -> Descriptor {
    let is_zstd = converted.compression == "zstd";
    let media_type = match (is_zstd, media_type::is_docker(&source.media_type)) {
        (true, _) => media_type::OCI_LAYER_ZSTD,
        (false, true) => media_type::DOCKER_LAYER_GZIP,
        (false, false) => media_type::OCI_LAYER_GZIP,
    };
    let mut layer = source.clone();
    layer.media_type = media_type.to_owned();
    point_at(&mut layer, converted.digest.clone(), converted.size);
    let annotations = &mut layer.annotations;
    let written = if is_zstd {
        [ZSTD_CHECKSUM, ZSTD_POSITION]
    } else {
        [TOC_DIGEST, UNCOMPRESSED_SIZE]
    };
    // Annotations that describe how to read the source layer are wrong for the converted layer.
    annotations.retain(|key, _| written.contains(&key.as_str()) || !claims::is_lazy_key(key));
    let mut annotate =
        |key: &str, value: String| annotations.insert(key.to_owned(), Value::from(value));
    if is_zstd {
        converted
            .zstd_manifest_checksum
            .as_ref()
            .map(|checksum| annotate(ZSTD_CHECKSUM, checksum.to_string()));
        converted
            .zstd_manifest_position
            .as_ref()
            .map(|position| annotate(ZSTD_POSITION, position.clone()));
    } else {
        annotate(TOC_DIGEST, converted.toc_digest.to_string());
        annotate(UNCOMPRESSED_SIZE, converted.uncompressed_size.to_string());
    }
    annotate(SOURCE_DIGEST, source.digest.to_string());
    annotate(SOURCE_DIFF_ID, converted.source_diff_id.to_string());
    if keeps_source {
        annotate(SOURCE_SIZE, converted.source_size.to_string());
    }
    if source.annotations.contains_key(UNCOMPRESSED) {
        annotate(UNCOMPRESSED, converted.diff_id.to_string());
    }
    layer
}

/// Makes `descriptor` point at another object. An embedded copy of the old object (`data`) is
/// deleted.
pub(crate) fn point_at(descriptor: &mut Descriptor, digest: Digest, size: u64) {
    descriptor.digest = digest;
    descriptor.size = size;
    descriptor.rest.shift_remove("data");
    descriptor.rest.shift_remove("size");
}

/// Records the source and the generation in a manifest's or an index's annotations.
pub(crate) fn annotate(rest: &mut Map<String, Value>, source: &Digest, generation: &Generation) {
    let annotations = rest
        .entry("annotations")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(annotations) = annotations {
        annotations.insert(SOURCE_DIGEST.to_owned(), Value::from(source.to_string()));
        annotations.insert(GENERATION.to_owned(), Value::from(generation.0.clone()));
    }
}

/// Returns a manifest with the configuration `{}` and the TOCs of `layers`, as stargz-snapshotter
/// expects it under `TAG-esgztoc` (`nativeconverter/estargz/externaltoc/fetcher.go`). `layers`
/// holds each layer's digest and its TOC's digest and size.
pub(crate) fn toc_image(
    layers: &[(Digest, Digest, u64)],
) -> Result<(Bytes, Manifest), serde_json::Error> {
    let config = Bytes::from_static(b"{}");
    let descriptor = |media_type: &str, digest: Digest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        urls: Vec::new(),
        annotations: Map::new(),
        platform: None,
        rest: Map::new(),
    };
    let toc = |(layer, toc, size): &(Digest, Digest, u64)| {
        let mut toc = descriptor(media_type::OCI_LAYER_GZIP, toc.clone(), *size);
        toc.annotations
            .insert(LAYER_DIGEST.to_owned(), layer.to_string().into());
        toc
    };
    let image = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(
            media_type::OCI_CONFIG,
            Digest::sha256_of(&config),
            config.len() as u64,
        ),
        layers: layers.iter().map(toc).collect(),
        rest: Map::new(),
    };
    let manifest = Manifest::new(
        media_type::OCI_MANIFEST.to_owned(),
        serde_json::to_vec(&image)?.into(),
    );
    Ok((config, manifest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rewrite::plan::{self, Plan};

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    fn converted_layer(name: &str) -> ConvertedLayer {
        ConvertedLayer {
            digest: digest(&format!("{name} converted")),
            size: 77,
            diff_id: digest(&format!("{name} converted tar")),
            uncompressed_size: 1234,
            source_diff_id: digest(&format!("{name} tar")),
            source_size: 1000,
            toc_digest: digest(&format!("{name} toc")),
            compression: "gzip".to_owned(),
            external_toc: None,
            zstd_manifest_position: None,
            zstd_manifest_checksum: None,
        }
    }

    fn layer(name: &str) -> Value {
        json!({"mediaType": media_type::DOCKER_LAYER_GZIP, "digest": digest(name), "size": 5,
            "annotations": {"kept": "yes"}, "data": "eA=="})
    }

    fn config_of(names: &[&str]) -> Value {
        let diff_ids: Vec<_> = names
            .iter()
            .map(|name| digest(&format!("{name} tar")))
            .collect();
        json!({"architecture": "amd64", "config": {"Env": ["A=<1>"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "RUN \u{1F680}"}, {"empty_layer": true}], "x": 1.50})
    }

    fn assembled(names: &[&str], config: &Value, outcomes: &[(&str, LayerOutcome)]) -> Assembled {
        let layers: Vec<_> = names.iter().map(|name| layer(name)).collect();
        let document = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": {"mediaType": media_type::DOCKER_CONFIG, "digest": digest("config"), "size": 9}, "layers": layers,
            "annotations": {"also": "kept"}, "com.example": [1]});
        let source = Manifest::new(
            media_type::DOCKER_MANIFEST.to_owned(),
            document.to_string().into(),
        );
        let wanted = plan::Wanted {
            platforms: &[],
            all_platforms: true,
            renew: false,
        };
        let Plan::Image(plan) = plan::plan(&source, &wanted) else {
            panic!("no image")
        };
        let config = Config::parse(config.to_string().into(), names.len()).unwrap();
        let outcomes = outcomes
            .iter()
            .map(|(name, outcome)| (digest(name), outcome.clone()))
            .collect();
        assemble(
            &source,
            &plan,
            &config,
            &outcomes,
            &Generation("g1".to_owned()),
            true,
        )
        .unwrap()
    }

    fn both() -> Vec<(&'static str, LayerOutcome)> {
        vec![
            ("a", LayerOutcome::Converted(converted_layer("a"))),
            ("b", LayerOutcome::Converted(converted_layer("b"))),
        ]
    }

    #[test]
    fn only_what_must_change_changes() {
        let config = config_of(&["a", "b", "a"]);
        let converted = assembled(&["a", "b", "a"], &config, &both())
            .converted
            .unwrap();
        let new_config: Value = serde_json::from_slice(&converted.config.clone().unwrap()).unwrap();
        let mut expected = config.clone();
        expected["rootfs"]["diff_ids"] = json!([
            converted_layer("a").diff_id,
            converted_layer("b").diff_id,
            converted_layer("a").diff_id
        ]);
        assert_eq!(new_config, expected);
        let keys = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&new_config),
            keys(&config),
            "the order of the keys is kept too"
        );

        let manifest: Value = serde_json::from_slice(&converted.manifest.bytes).unwrap();
        assert_eq!(
            manifest["config"]["digest"],
            json!(Digest::sha256_of(&converted.config.unwrap()))
        );
        assert_eq!(manifest["com.example"], json!([1]));
        assert_eq!(manifest["annotations"]["also"], "kept");
        assert_eq!(manifest["annotations"][GENERATION], "g1");
        let first = &manifest["layers"][0];
        assert_eq!(first["mediaType"], media_type::DOCKER_LAYER_GZIP);
        assert_eq!(first["digest"], json!(converted_layer("a").digest));
        assert_eq!(first["size"], 77);
        assert_eq!(first["annotations"]["kept"], "yes");
        assert_eq!(
            first["annotations"][TOC_DIGEST],
            json!(converted_layer("a").toc_digest)
        );
        assert_eq!(first["annotations"][UNCOMPRESSED_SIZE], "1234");
        assert_eq!(first["annotations"][SOURCE_DIGEST], json!(digest("a")));
        assert_eq!(first["annotations"][SOURCE_SIZE], "1000");
        assert!(first.get("data").is_none());
        assert_eq!(manifest["layers"][0], manifest["layers"][2]);
    }

    #[test]
    fn a_layer_that_passes_through_stays_as_it_is() {
        let mut outcomes = both();
        outcomes[1].1 = LayerOutcome::PassedThrough {
            reason: "odd".to_owned(),
            limit: None,
        };
        let assembled = assembled(&["a", "b"], &config_of(&["a", "b"]), &outcomes);
        let manifest: Value =
            serde_json::from_slice(&assembled.converted.unwrap().manifest.bytes).unwrap();
        assert_eq!(manifest["layers"][1], layer("b"));
        assert_eq!(
            assembled.passed_through,
            [PassedThrough {
                digest: digest("b"),
                reason: "odd".to_owned()
            }]
        );
    }

    #[test]
    fn a_wrong_diff_id_keeps_the_source_layer() {
        let assembled = assembled(&["a"], &config_of(&["another"]), &both());
        assert_eq!(assembled.converted, None);
        assert!(assembled.passed_through[0].reason.contains("diff-id"));
    }

    #[test]
    fn an_external_toc_keeps_the_configuration() {
        let mut a = converted_layer("a");
        a.diff_id = a.source_diff_id.clone();
        a.external_toc = Some(digest("external"));
        let converted = assembled(
            &["a"],
            &config_of(&["a"]),
            &[("a", LayerOutcome::Converted(a.clone()))],
        )
        .converted
        .unwrap();
        assert_eq!(converted.config, None);
        assert_eq!(converted.objects, [a.digest, digest("external")]);
    }

    #[test]
    fn zstd_chunked_is_annotated_for_its_readers() {
        let mut a = converted_layer("a");
        a.compression = "zstd".to_owned();
        a.zstd_manifest_position = Some("1:2:3:1".to_owned());
        a.zstd_manifest_checksum = Some(digest("checksum"));
        let converted = assembled(
            &["a"],
            &config_of(&["a"]),
            &[("a", LayerOutcome::Converted(a))],
        )
        .converted
        .unwrap();
        let manifest: Value = serde_json::from_slice(&converted.manifest.bytes).unwrap();
        let layer = &manifest["layers"][0];
        assert_eq!(converted.manifest.media_type, media_type::OCI_MANIFEST);
        assert_eq!(manifest["mediaType"], media_type::OCI_MANIFEST);
        assert_eq!(manifest["config"]["mediaType"], media_type::OCI_CONFIG);
        assert_eq!(layer["mediaType"], media_type::OCI_LAYER_ZSTD);
        assert_eq!(
            layer["annotations"][ZSTD_CHECKSUM],
            json!(digest("checksum"))
        );
        assert_eq!(layer["annotations"][ZSTD_POSITION], "1:2:3:1");
        assert!(layer["annotations"].get(TOC_DIGEST).is_none());
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"rootfs":null}"#,
            r#"{"rootfs":{"diff_ids":{}}}"#,
            r#"{"rootfs":{"diff_ids":null}}"#,
        ] {
            assert!(
                Config::parse(Bytes::copy_from_slice(text.as_bytes()), 1).is_err(),
                "{text}"
            );
        }
        assert!(
            Config::parse(config_of(&["a", "b"]).to_string().into(), 1)
                .unwrap_err()
                .contains("2 diff-ids")
        );
    }

    #[test]
    fn a_toc_image_names_each_layer() {
        let (config, manifest) = toc_image(&[(digest("layer"), digest("toc"), 9)]).unwrap();
        let document: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(
            document["config"]["digest"],
            json!(Digest::sha256_of(&config))
        );
        let annotation = &document["layers"][0]["annotations"][LAYER_DIGEST];
        assert_eq!(*annotation, json!(digest("layer")));
    }
}
