//! Decides how to treat a manifest, from its bytes only.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::reason::printable;
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, REFERENCE_TYPE, TOC_DIGEST, ZSTD_CHECKSUM};
use crate::oci::manifest::{ImageManifest, Index};
use crate::oci::media_type::{self, ManifestKind};
use crate::oci::{Descriptor, Digest, Manifest, Platform};

/// The value of `REFERENCE_TYPE` on an attestation.
const ATTESTATION: &str = "attestation-manifest";

/// The most layers of an image: overlayfs mounts at most 500, and images with every layer twice
/// still fit.
const MAX_LAYERS: usize = 1024;
/// The most children of an index: the largest in the wild have some hundred, attestations included.
const MAX_CHILDREN: usize = 1024;
/// The most children of an index that are converted when the index is pulled.
const MAX_CONVERTED: usize = 64;
/// The depth of nested indexes: an index within an index within an index. Deeper ones have not been
/// seen.
const MAX_NESTED: usize = 3;

/// The treatment of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    /// The manifest stays unchanged, for this reason.
    PassThrough(String),
    Image(Box<ImagePlan>),
    Index(IndexPlan),
}

/// An image with at least one layer to convert.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImagePlan {
    pub(crate) manifest: ImageManifest,
    /// One plan for each layer of the manifest.
    pub(crate) layers: Vec<LayerPlan>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerPlan {
    Convert,
    /// The layer claims to be lazily readable but is not as claimed: it is converted, and its
    /// claims are dropped.
    Renew,
    /// The layer passes through for this reason if its claims are true.
    Claimed(String),
    PassThrough(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IndexPlan {
    pub(crate) index: Index,
    /// One plan for each child of the index.
    pub(crate) children: Vec<ChildPlan>,
}

impl IndexPlan {
    /// Returns the children to convert, each once, of an index that was found in `depth` other
    /// indexes.
    pub(crate) fn to_convert(&self, depth: usize) -> Vec<Digest> {
        let children = self.index.manifests.iter().zip(&self.children);
        let children = children.filter(|(child, _)| depth < MAX_NESTED || !is_index(child));
        let wanted = children
            .filter(|(_, plan)| **plan == ChildPlan::Convert)
            .map(|(child, _)| &child.digest);
        let mut seen = HashSet::new();
        wanted
            .filter(|digest| seen.insert(*digest))
            .cloned()
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChildPlan {
    Convert,
    /// The child is replaced by its converted image if somebody has pulled it; otherwise it stays
    /// unchanged.
    IfPulled(String),
    Leave(String),
}

impl IndexPlan {
    /// Whether children may be converted later without a new conversion of the index.
    pub(crate) fn may_change(&self) -> bool {
        let mut children = self.index.manifests.iter().zip(&self.children);
        children.any(|(child, plan)| match plan {
            ChildPlan::IfPulled(_) => true,
            ChildPlan::Convert => is_index(child),
            ChildPlan::Leave(_) => false,
        })
    }
}

fn is_index(child: &Descriptor) -> bool {
    media_type::manifest_kind(&child.media_type) == Some(ManifestKind::Index)
}

/// The operator's choice of images to convert.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) platforms: &'a [Platform],
    pub(crate) all_platforms: bool,
    /// Convert layers again that are eStargz already.
    pub(crate) renew: bool,
}

/// Returns the plan for `manifest`.
pub(crate) fn plan(manifest: &Manifest, wanted: &Wanted<'_>) -> Plan {
    let planned = match media_type::manifest_kind(&manifest.media_type) {
        Some(ManifestKind::Image) => plan_image(manifest, wanted),
        Some(ManifestKind::Index) => plan_index(manifest, wanted),
        None => Err(format!(
            "manifests of the type {} are not converted",
            printable(&manifest.media_type)
        )),
    };
    planned.unwrap_or_else(Plan::PassThrough)
}

fn plan_image(manifest: &Manifest, wanted: &Wanted<'_>) -> Result<Plan, String> {
    let image: ImageManifest = serde_json::from_slice(&manifest.bytes).map_err(|error| {
        format!(
            "the manifest is not readable: {}",
            printable(&error.to_string())
        )
    })?;
    check_kind(
        manifest,
        image.schema_version,
        image.media_type.as_deref(),
        &image.rest,
        "manifests",
    )?;
    let config_type = image.config.media_type.as_str();
    if !matches!(
        config_type,
        media_type::DOCKER_CONFIG | media_type::OCI_CONFIG
    ) {
        return Err(format!(
            "an artifact: its configuration is of the type {}",
            printable(config_type)
        ));
    }
    if image.layers.len() > MAX_LAYERS {
        return Err(format!(
            "it has {} layers, more than {MAX_LAYERS}",
            image.layers.len()
        ));
    }
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| plan_layer(layer, wanted))
        .collect();
    let plan = ImagePlan {
        manifest: image,
        layers,
    };
    match plan.unconverted() {
        None => Ok(Plan::Image(Box::new(plan))),
        Some(reason) => Err(reason),
    }
}

impl ImagePlan {
    /// Returns the reason why no layer is converted, if none is.
    pub(crate) fn unconverted(&self) -> Option<String> {
        match self.layers.first() {
            _ if self
                .layers
                .iter()
                .any(|layer| !matches!(layer, LayerPlan::PassThrough(_))) =>
            {
                None
            }
            Some(LayerPlan::PassThrough(reason)) => Some(format!(
                "no layer is converted, the first because it is {reason}"
            )),
            _ => Some("an image without layers".to_owned()),
        }
    }
}

fn plan_layer(layer: &Descriptor, wanted: &Wanted<'_>) -> LayerPlan {
    let media_type = layer.media_type.as_str();
    let has = |key: &str| layer.annotations.contains_key(key);
    let reason = if media_type.ends_with("+encrypted") {
        "encrypted".to_owned()
    } else if !layer.urls.is_empty()
        || media_type.contains("foreign")
        || media_type.contains("nondistributable")
    {
        "foreign".to_owned()
    } else if !media_type::is_convertible_layer(media_type) {
        format!("of the type {}", printable(media_type))
    } else if has(ZSTD_CHECKSUM) || has(OLDER_ZSTD_CHECKSUM) {
        return LayerPlan::Claimed("zstd:chunked already".to_owned());
    } else if has(TOC_DIGEST) && !wanted.renew {
        return LayerPlan::Claimed("eStargz already".to_owned());
    } else {
        return LayerPlan::Convert;
    };
    LayerPlan::PassThrough(reason)
}

fn plan_index(manifest: &Manifest, wanted: &Wanted<'_>) -> Result<Plan, String> {
    let index: Index = serde_json::from_slice(&manifest.bytes).map_err(|error| {
        format!(
            "the index is not readable: {}",
            printable(&error.to_string())
        )
    })?;
    check_kind(
        manifest,
        index.schema_version,
        index.media_type.as_deref(),
        &index.rest,
        "layers",
    )?;
    if index.manifests.len() > MAX_CHILDREN {
        return Err(format!(
            "it has {} children, more than {MAX_CHILDREN}",
            index.manifests.len()
        ));
    }
    let mut children: Vec<_> = index
        .manifests
        .iter()
        .map(|child| plan_child(child, wanted))
        .collect();
    for child in children
        .iter_mut()
        .filter(|child| **child == ChildPlan::Convert)
        .skip(MAX_CONVERTED)
    {
        *child = ChildPlan::IfPulled(format!(
            "one of more than {MAX_CONVERTED} to convert, and nobody has pulled it"
        ));
    }
    if children
        .iter()
        .all(|child| matches!(child, ChildPlan::Leave(_)))
    {
        return Err("an index without image manifests".to_owned());
    }
    Ok(Plan::Index(IndexPlan { index, children }))
}

fn plan_child(child: &Descriptor, wanted: &Wanted<'_>) -> ChildPlan {
    if media_type::manifest_kind(&child.media_type).is_none() {
        return ChildPlan::Leave(format!("of the type {}", printable(&child.media_type)));
    }
    if child
        .annotations
        .get(REFERENCE_TYPE)
        .and_then(Value::as_str)
        == Some(ATTESTATION)
    {
        return ChildPlan::Leave("an attestation".to_owned());
    }
    if child.rest.contains_key("artifactType") {
        return ChildPlan::Leave("an artifact".to_owned());
    }
    let Some(platform) = child
        .platform
        .as_ref()
        .map(|platform| platform.to_platform())
    else {
        // The children of a nested index name their own platforms.
        return if wanted.all_platforms || is_index(child) {
            ChildPlan::Convert
        } else {
            ChildPlan::IfPulled("for no named platform".to_owned())
        };
    };
    if platform.os == "unknown" {
        ChildPlan::Leave("for no platform".to_owned())
    } else if wanted.all_platforms
        || wanted
            .platforms
            .iter()
            .any(|wanted| wanted.matches(&platform))
    {
        ChildPlan::Convert
    } else {
        ChildPlan::IfPulled(format!(
            "for {}, which nobody has pulled",
            printable(&platform.to_string())
        ))
    }
}

/// Rejects documents that can be read as another type than the one they were served as (the
/// ambiguity of CVE-2021-41190).
fn check_kind(
    manifest: &Manifest,
    schema_version: u32,
    inner_type: Option<&str>,
    rest: &Map<String, Value>,
    foreign_key: &str,
) -> Result<(), String> {
    if schema_version != 2 {
        return Err(format!("its schemaVersion is {schema_version}"));
    }
    if let Some(inner) = inner_type.filter(|inner| *inner != manifest.media_type) {
        return Err(format!(
            "it was served as {} and calls itself {}",
            printable(&manifest.media_type),
            printable(inner)
        ));
    }
    if rest.contains_key(foreign_key) || rest.contains_key("fsLayers") {
        return Err("it can be read as more than one kind of manifest".to_owned());
    }
    if rest
        .get("annotations")
        .is_some_and(|annotations| !annotations.is_object())
    {
        return Err("its annotations are not an object".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(media_type: &str, document: &Value) -> Plan {
        let manifest = Manifest::new(media_type.to_owned(), document.to_string().into());
        let platforms = [
            "linux/amd64".parse().unwrap(),
            "linux/arm64".parse().unwrap(),
        ];
        plan(
            &manifest,
            &Wanted {
                platforms: &platforms,
                all_platforms: false,
                renew: false,
            },
        )
    }

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::sha256_of(media_type.as_bytes()), "size": 1000})
    }

    fn image(layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG), "layers": layers})
    }

    fn layer_plans(layers: &[Value]) -> Vec<LayerPlan> {
        let with_one_more: Vec<_> = layers
            .iter()
            .cloned()
            .chain([descriptor(media_type::OCI_LAYER)])
            .collect();
        match planned(media_type::OCI_MANIFEST, &image(&with_one_more)) {
            Plan::Image(mut image) => {
                image.layers.pop();
                image.layers
            }
            other => panic!("{other:?}"),
        }
    }

    fn reason(media_type: &str, document: &Value) -> String {
        match planned(media_type, document) {
            Plan::PassThrough(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_layers_are_converted_whatever_their_compression() {
        let types = [
            media_type::DOCKER_LAYER,
            media_type::DOCKER_LAYER_GZIP,
            media_type::DOCKER_LAYER_ZSTD,
            media_type::OCI_LAYER,
            media_type::OCI_LAYER_GZIP,
            media_type::OCI_LAYER_ZSTD,
        ];
        assert_eq!(
            layer_plans(&types.map(descriptor)),
            types.map(|_| LayerPlan::Convert)
        );
    }

    #[test]
    fn only_the_unsupported_layers_pass_through() {
        let with = |key: &str, value: Value| {
            let mut layer = descriptor(media_type::OCI_LAYER_GZIP);
            layer[key] = value;
            layer
        };
        let odd = [
            (descriptor(media_type::DOCKER_LAYER_FOREIGN), "foreign"),
            (
                with("urls", json!(["https://example.com/layer"])),
                "foreign",
            ),
            (
                descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
                "encrypted",
            ),
            (
                descriptor("application/x-thing"),
                "of the type application/x-thing",
            ),
        ];
        for (layer, reason) in odd {
            assert_eq!(
                layer_plans(&[layer]),
                [LayerPlan::PassThrough(reason.to_owned())]
            );
        }
        for (key, reason) in [
            (TOC_DIGEST, "eStargz already"),
            (ZSTD_CHECKSUM, "zstd:chunked already"),
            (OLDER_ZSTD_CHECKSUM, "zstd:chunked already"),
        ] {
            let layer = with("annotations", json!({key: "x"}));
            assert_eq!(
                layer_plans(&[layer]),
                [LayerPlan::Claimed(reason.to_owned())],
                "{key}"
            );
        }
    }

    #[test]
    fn manifests_that_are_not_images_pass_through() {
        let layer = || descriptor(media_type::OCI_LAYER_GZIP);
        let mut artifact = image(&[layer()]);
        artifact["config"] = descriptor("application/vnd.cncf.helm.config.v1+json");
        assert!(reason(media_type::OCI_MANIFEST, &artifact).contains("artifact"));
        assert!(reason(media_type::OCI_MANIFEST, &image(&[])).contains("without layers"));
        let attestation = image(&[descriptor("application/vnd.in-toto+json")]);
        assert!(reason(media_type::OCI_MANIFEST, &attestation).contains("in-toto"));
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(reason(schema1, &json!({"schemaVersion": 1})).contains(schema1));
        assert!(reason(media_type::OCI_MANIFEST, &json!([])).contains("not readable"));
        assert!(reason(media_type::DOCKER_MANIFEST, &image(&[layer()])).contains("calls itself"));
        let mut both = image(&[layer()]);
        both["manifests"] = json!([]);
        assert!(reason(media_type::OCI_MANIFEST, &both).contains("more than one kind"));
    }

    #[test]
    fn an_index_converts_the_wanted_platforms() {
        let child = |os: &str, architecture: &str| {
            let mut child = descriptor(media_type::OCI_MANIFEST);
            child["platform"] = json!({"os": os, "architecture": architecture});
            child
        };
        let mut attestation = child("linux", "amd64");
        attestation["annotations"] = json!({REFERENCE_TYPE: ATTESTATION});
        let document = json!({"schemaVersion": 2, "manifests": [
            child("linux", "amd64"), child("linux", "arm64"), child("linux", "s390x"), attestation,
            child("unknown", "unknown"), descriptor(media_type::OCI_INDEX), descriptor(media_type::OCI_MANIFEST)]});
        let Plan::Index(index) = planned(media_type::OCI_INDEX, &document) else {
            panic!("no index")
        };
        assert!(matches!(
            index.children.as_slice(),
            [
                ChildPlan::Convert,
                ChildPlan::Convert,
                ChildPlan::IfPulled(_),
                ChildPlan::Leave(_),
                ChildPlan::Leave(_),
                ChildPlan::Convert,
                ChildPlan::IfPulled(_)
            ]
        ));
    }

    #[test]
    fn more_layers_or_children_than_any_image_has_pass_through() {
        let layers = vec![descriptor(media_type::OCI_LAYER_GZIP); MAX_LAYERS + 1];
        assert!(reason(media_type::OCI_MANIFEST, &image(&layers)).contains("1025 layers"));
        let index = |children: usize| {
            let child = |number: usize| {
                let mut child = descriptor(media_type::OCI_MANIFEST);
                child["digest"] = json!(Digest::sha256_of(number.to_string().as_bytes()));
                child["platform"] = json!({"os": "linux", "architecture": "amd64"});
                child
            };
            json!({"schemaVersion": 2, "manifests": (0..children).map(child).collect::<Vec<_>>()})
        };
        assert!(reason(media_type::OCI_INDEX, &index(MAX_CHILDREN + 1)).contains("1025 children"));
        let Plan::Index(plan) = planned(media_type::OCI_INDEX, &index(MAX_CHILDREN)) else {
            panic!("no index")
        };
        assert_eq!(plan.to_convert(0).len(), MAX_CONVERTED);
        assert!(matches!(plan.children.last(), Some(ChildPlan::IfPulled(_))));
    }

    #[test]
    fn indexes_are_converted_to_a_bounded_depth() {
        let document =
            json!({"schemaVersion": 2, "manifests": [descriptor(media_type::OCI_INDEX)]});
        let Plan::Index(plan) = planned(media_type::OCI_INDEX, &document) else {
            panic!("no index")
        };
        assert_eq!(
            [0, MAX_NESTED - 1, MAX_NESTED].map(|depth| plan.to_convert(depth).len()),
            [1, 1, 0]
        );
        assert!(plan.may_change());
    }
}
