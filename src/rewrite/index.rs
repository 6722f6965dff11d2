//! The conversion of an index's document: converted children replace their sources, every other
//! child stays unchanged.
//!
//! BuildKit's attestations name the child that they describe by an annotation on their own
//! descriptor. When that child is replaced, the annotation is updated, so that clients still find
//! the attestation. The statement inside the attestation still names the source, whose digest is
//! kept beside it.

use std::collections::HashMap;

use serde_json::Value;

use super::image;
use super::plan::{ChildPlan, IndexPlan};
use crate::oci::annotations::{REFERENCE_DIGEST, SOURCE_DIGEST};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Descriptor, Digest, Manifest, media_type, translate};
use crate::store::records::PassedThrough;
use crate::store::{Generation, ImageRecord};

/// The outcome for a child.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Child {
    Recorded(Box<ImageRecord>),
    Source(String),
}

/// Replaces children in the index by their converted images. `children` holds the known outcomes,
/// by source digest.
///
/// Returns the record, with the sizes of these children as its origin, and the documents to store:
/// the converted index, and the same in the other family's media types. When no child is replaced there are no documents, and the record names the
/// source itself.
pub(crate) fn assemble(
    source: &Manifest,
    plan: &IndexPlan,
    children: &HashMap<Digest, Child>,
    generation: &Generation,
) -> Result<(ImageRecord, Vec<Manifest>), serde_json::Error> {
    let mut index = plan.index.clone();
    let mut record = unchanged(source);
    let mut converted = HashMap::new();
    for (descriptor, plan) in index.manifests.iter_mut().zip(&plan.children) {
        // A platform that is not converted on its own is not retried on its own.
        if let (ChildPlan::Convert, Some(Child::Recorded(child))) =
            (plan, children.get(&descriptor.digest))
        {
            record.limits.extend(&child.limits);
        }
        match converted_of(descriptor, plan, children) {
            Ok(child) => {
                converted.insert(descriptor.digest.clone(), child);
                if is_translated(descriptor, child) {
                    record.media_type = media_type::to_oci(&source.media_type)
                        .unwrap_or(&source.media_type)
                        .to_owned();
                }
                replace(descriptor, child);
                let sizes = record.origin.get_or_insert_default();
                child.origin.iter().for_each(|origin| sizes.add(origin));
                record.objects.extend(child.objects.iter().cloned());
                match &descriptor.platform {
                    Some(platform) => record.platforms.push(platform.to_platform()),
                    None => record.platforms.extend(child.platforms.iter().cloned()),
                }
            }
            Err(reason) => record.passed_through.push(PassedThrough {
                digest: descriptor.digest.clone(),
                reason,
            }),
        }
    }
    record.limits.sort_unstable();
    record.limits.dedup();
    if converted.is_empty() {
        return Ok((record, Vec::new()));
    }
    for descriptor in index.manifests.iter_mut() {
        follow(descriptor, &converted);
    }
    image::annotate(&mut index.rest, &source.digest, generation);
    if record.media_type != source.media_type {
        index.media_type = Some(record.media_type.clone());
    }
    let manifest = Manifest::new(
        record.media_type.clone(),
        serde_json::to_vec(&index)?.into(),
    );
    if manifest.size() > MAX_MANIFEST_BYTES {
        let mut record = ImageRecord {
            limits: record.limits,
            ..unchanged(source)
        };
        let reason =
            format!("converted index would be over the limit of {MAX_MANIFEST_BYTES} bytes");
        record.passed_through.push(PassedThrough {
            digest: source.digest.clone(),
            reason,
        });
        return Ok((record, Vec::new()));
    }
    record.converted = manifest.digest.clone();
    record.size = manifest.size();
    let translated = translated(&manifest, &converted);
    record.translated = translated.as_ref().map(Manifest::descriptor);
    let documents: Vec<_> = translated.into_iter().chain([manifest]).collect();
    record
        .objects
        .extend(documents.iter().map(|document| document.digest.clone()));
    Ok((record, documents))
}

/// Translates the index, and the converted images it names, to the media types of the other family.
/// `None` when one of these images has no translation.
fn translated(index: &Manifest, converted: &HashMap<Digest, &ImageRecord>) -> Option<Manifest> {
    let children = converted
        .values()
        .map(|child| Some((&child.converted, child.translated.as_ref()?)));
    let children = children.collect::<Option<HashMap<_, _>>>()?;
    translate::index(index, |child| children.get(&child.digest).copied().cloned())
}

/// Returns the record of a manifest that stays unchanged.
pub(crate) fn unchanged(source: &Manifest) -> ImageRecord {
    ImageRecord {
        source: source.digest.clone(),
        converted: source.digest.clone(),
        media_type: source.media_type.clone(),
        size: source.size(),
        translated: None,
        platforms: Vec::new(),
        objects: Vec::new(),
        passed_through: Vec::new(),
        limits: Vec::new(),
        order: None,
        origin: None,
    }
}

/// As [`unchanged`], with the reason.
pub(crate) fn passed_through(source: &Manifest, reason: String) -> ImageRecord {
    let passed_through = vec![PassedThrough {
        digest: source.digest.clone(),
        reason,
    }];
    ImageRecord {
        passed_through,
        ..unchanged(source)
    }
}

fn converted_of<'a>(
    descriptor: &Descriptor,
    plan: &ChildPlan,
    children: &'a HashMap<Digest, Child>,
) -> Result<&'a ImageRecord, String> {
    let default_reason = match plan {
        ChildPlan::Leave(reason) => return Err(reason.clone()),
        ChildPlan::IfPulled(reason) => reason.as_str(),
        ChildPlan::Convert => "not converted",
    };
    match children.get(&descriptor.digest) {
        Some(Child::Recorded(record)) if record.converted != record.source => Ok(record),
        Some(Child::Recorded(record)) => Err(record
            .passed_through
            .first()
            .map_or(default_reason, |first| first.reason.as_str())
            .to_owned()),
        Some(Child::Source(reason)) => Err(reason.clone()),
        None => Err(default_reason.to_owned()),
    }
}

/// Whether a Docker image became an OCI image. The list that contains it must then be an index.
fn is_translated(descriptor: &Descriptor, child: &ImageRecord) -> bool {
    media_type::is_docker(&descriptor.media_type) && !media_type::is_docker(&child.media_type)
}

fn replace(descriptor: &mut Descriptor, child: &ImageRecord) {
    image::point_at(descriptor, child.converted.clone(), child.size);
    descriptor.media_type = child.media_type.clone();
}

fn follow(descriptor: &mut Descriptor, converted: &HashMap<Digest, &ImageRecord>) {
    let subject = descriptor
        .annotations
        .get(REFERENCE_DIGEST)
        .and_then(Value::as_str);
    let Some(subject) = subject.and_then(|text| text.parse::<Digest>().ok()) else {
        return;
    };
    if let Some(child) = converted.get(&subject) {
        descriptor.annotations.insert(
            REFERENCE_DIGEST.to_owned(),
            Value::from(child.converted.to_string()),
        );
        descriptor
            .annotations
            .insert(SOURCE_DIGEST.to_owned(), Value::from(subject.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::annotations::REFERENCE_TYPE;
    use crate::rewrite::plan::{self, Plan};

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    fn child(name: &str, architecture: &str) -> Value {
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest(name), "size": 5,
            "platform": {"os": "linux", "architecture": architecture, "os.features": ["x"]}, "data": "eA=="})
    }

    fn attestation(subject: &str) -> Value {
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest("attestation"), "size": 5,
            "annotations": {REFERENCE_TYPE: "attestation-manifest", REFERENCE_DIGEST: digest(subject)},
            "platform": {"os": "unknown", "architecture": "unknown"}})
    }

    fn in_docker(name: &str) -> Manifest {
        Manifest::new(
            media_type::DOCKER_MANIFEST.to_owned(),
            format!("{name} in Docker's words").into(),
        )
    }

    fn record(name: &str) -> Child {
        Child::Recorded(Box::new(ImageRecord {
            source: digest(name),
            converted: digest(&format!("{name} converted")),
            media_type: media_type::OCI_MANIFEST.to_owned(),
            size: 99,
            translated: Some(in_docker(name).descriptor()),
            platforms: vec![],
            objects: vec![digest(&format!("{name} layer"))],
            passed_through: vec![],
            limits: vec![],
            order: None,
            origin: None,
        }))
    }

    fn assembled(manifests: &[Value], children: &[(&str, Child)]) -> (ImageRecord, Option<Value>) {
        let document =
            json!({"schemaVersion": 2, "manifests": manifests, "annotations": {"kept": "yes"}});
        let source = Manifest::new(
            media_type::OCI_INDEX.to_owned(),
            document.to_string().into(),
        );
        let wanted = plan::Wanted {
            platforms: &["linux/amd64".parse().unwrap()],
            all_platforms: false,
            renew: false,
        };
        let Plan::Index(plan) = plan::plan(&source, &wanted) else {
            panic!("no index")
        };
        let children = children
            .iter()
            .map(|(name, child)| (digest(name), child.clone()))
            .collect();
        let (record, documents) =
            assemble(&source, &plan, &children, &Generation("g1".to_owned())).unwrap();
        assert_eq!(documents.is_empty(), record.converted == record.source);
        assert!(
            documents
                .iter()
                .all(|document| record.objects.contains(&document.digest))
        );
        (
            record,
            documents
                .last()
                .map(|converted| serde_json::from_slice(&converted.bytes).unwrap()),
        )
    }

    #[test]
    fn converted_children_replace_their_sources_and_the_rest_stays() {
        let source_manifest = [
            child("amd", "amd64"),
            child("ibm", "s390x"),
            attestation("amd"),
            attestation("ibm"),
        ];
        let (recorded, index) = assembled(&source_manifest, &[("amd", record("amd"))]);
        let index = index.unwrap();
        let first = &index["manifests"][0];
        assert_eq!(first["digest"], json!(digest("amd converted")));
        assert_eq!(first["size"], 99);
        assert_eq!(first["platform"], source_manifest[0]["platform"]);
        assert!(first.get("data").is_none());
        assert_eq!(index["manifests"][1], source_manifest[1]);
        assert_eq!(index["manifests"][3], source_manifest[3]);
        assert_eq!(index["annotations"]["kept"], "yes");
        assert_eq!(recorded.platforms, ["linux/amd64".parse().unwrap()]);
        let translated = recorded.translated.unwrap().digest;
        assert_eq!(
            recorded.objects,
            [digest("amd layer"), translated, recorded.converted]
        );
        assert_eq!(recorded.passed_through.len(), 3);
    }

    #[test]
    fn a_list_of_an_image_that_became_oci_is_an_index() {
        let mut docker = child("amd", "amd64");
        docker["mediaType"] = json!(media_type::DOCKER_MANIFEST);
        let document = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST_LIST, "manifests": [docker]});
        let source = Manifest::new(
            media_type::DOCKER_MANIFEST_LIST.to_owned(),
            document.to_string().into(),
        );
        let wanted = plan::Wanted {
            platforms: &[],
            all_platforms: true,
            renew: false,
        };
        let Plan::Index(plan) = plan::plan(&source, &wanted) else {
            panic!("no index")
        };
        let children = HashMap::from([(digest("amd"), record("amd"))]);
        let (record, documents) =
            assemble(&source, &plan, &children, &Generation("g1".to_owned())).unwrap();
        let manifest = documents.last().unwrap();
        assert_eq!(
            (&*record.media_type, &*manifest.media_type),
            (media_type::OCI_INDEX, media_type::OCI_INDEX)
        );
        let document: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(document["mediaType"], media_type::OCI_INDEX);
        assert_eq!(
            document["manifests"][0]["mediaType"],
            media_type::OCI_MANIFEST
        );
    }

    #[test]
    fn an_index_is_translated_with_all_its_images_or_not_at_all() {
        let children = [child("amd", "amd64"), child("ibm", "s390x")];
        let document = json!({"schemaVersion": 2, "manifests": children});
        let source = Manifest::new(
            media_type::OCI_INDEX.to_owned(),
            document.to_string().into(),
        );
        let wanted = plan::Wanted {
            platforms: &[],
            all_platforms: true,
            renew: false,
        };
        let Plan::Index(plan) = plan::plan(&source, &wanted) else {
            panic!("no index")
        };
        let assembled = |ibm: Child| {
            let children = HashMap::from([(digest("amd"), record("amd")), (digest("ibm"), ibm)]);
            assemble(&source, &plan, &children, &Generation("g1".to_owned())).unwrap()
        };
        let (_, documents) = assembled(Child::Source("odd".to_owned()));
        let [translated, _converted] = &*documents else {
            panic!("{documents:?}")
        };
        assert_eq!(translated.media_type, media_type::DOCKER_MANIFEST_LIST);
        let list: Value = serde_json::from_slice(&translated.bytes).unwrap();
        assert_eq!(
            list["manifests"][0]["digest"],
            json!(in_docker("amd").digest)
        );
        assert_eq!(
            list["manifests"][0]["mediaType"],
            media_type::DOCKER_MANIFEST
        );
        assert_eq!(
            list["manifests"][1], children[1],
            "a source image keeps its name"
        );
        let Child::Recorded(mut nameless) = record("ibm") else {
            unreachable!()
        };
        nameless.translated = None;
        let (record, documents) = assembled(Child::Recorded(nameless));
        assert_eq!((record.translated, documents.len()), (None, 1));
    }

    #[test]
    fn an_attestation_follows_the_child_it_describes() {
        let (_, index) = assembled(
            &[child("amd", "amd64"), attestation("amd")],
            &[("amd", record("amd"))],
        );
        let follower = &index.unwrap()["manifests"][1];
        assert_eq!(follower["digest"], json!(digest("attestation")));
        assert_eq!(
            follower["annotations"][REFERENCE_DIGEST],
            json!(digest("amd converted"))
        );
        assert_eq!(follower["annotations"][SOURCE_DIGEST], json!(digest("amd")));
    }

    #[test]
    fn a_pulled_platform_joins_the_index() {
        let manifests = [child("amd", "amd64"), child("ibm", "s390x")];
        let (before, _) = assembled(&manifests, &[("amd", record("amd"))]);
        let (after, _) = assembled(
            &manifests,
            &[("amd", record("amd")), ("ibm", record("ibm"))],
        );
        assert_ne!(before.converted, after.converted);
        assert_eq!(after.platforms.len(), 2);
        assert_eq!(after.passed_through, []);
    }

    #[test]
    fn an_index_without_replacements_is_its_source() {
        let (record, index) = assembled(
            &[child("amd", "amd64")],
            &[("amd", Child::Source("odd".to_owned()))],
        );
        assert_eq!(index, None);
        assert_eq!(record.passed_through[0].reason, "odd");
    }
}
