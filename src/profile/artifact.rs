//! A profile as an OCI artifact that refers to its image, so that it is copied together with the
//! image.

use serde_json::{Map, Value};

use super::document::{MAX_PROFILE_BYTES, MEDIA_TYPE, Profile};
use super::workload::Workload;
use crate::oci::annotations::{CREATED, PROFILE_WORKLOAD};
use crate::oci::{Artifact, Descriptor, Manifest, artifact};

/// Makes `profile` a referrer of the image that `subject` points to. `created` is a time in the
/// form of RFC 3339.
///
/// # Errors
/// Never: everything in it has a JSON form.
pub fn of(profile: &Profile, subject: &Descriptor, created: &str) -> serde_json::Result<Artifact> {
    let annotations = Map::from_iter([
        (
            PROFILE_WORKLOAD.to_owned(),
            profile.workload.to_string().into(),
        ),
        (CREATED.to_owned(), created.into()),
    ]);
    let document = profile.to_json()?.into();
    Ok(Artifact::new(MEDIA_TYPE, document, subject, annotations))
}

/// The workload whose profile a referrer carries, or `None` for other referrers.
pub fn workload_of(referrer: &Descriptor) -> Option<Workload> {
    let is_profile = artifact::kind_of(referrer) == Some(MEDIA_TYPE);
    let workload = referrer
        .annotations
        .get(PROFILE_WORKLOAD)
        .and_then(Value::as_str);
    workload.filter(|_| is_profile)?.parse().ok()
}

/// The newest profile of each workload among an image's referrers.
pub fn newest(referrers: &[Descriptor]) -> Vec<&Descriptor> {
    let created = |referrer: &Descriptor| {
        referrer
            .annotations
            .get(CREATED)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let mut found: Vec<_> = referrers
        .iter()
        .filter_map(|referrer| Some((workload_of(referrer)?, referrer)))
        .collect();
    found.sort_by_key(|(workload, referrer)| {
        (workload.clone(), created(referrer), referrer.digest.clone())
    });
    found.reverse();
    found.dedup_by_key(|(workload, _)| workload.clone());
    found.reverse();
    found.into_iter().map(|(_, referrer)| referrer).collect()
}

/// The profile of a workload among an image's referrers, or else that of the default workload.
pub fn of_workload<'a>(referrers: &'a [Descriptor], workload: &Workload) -> Option<&'a Descriptor> {
    let newest = newest(referrers);
    let of = |wanted: &Workload| {
        newest
            .iter()
            .find(|referrer| workload_of(referrer).as_ref() == Some(wanted))
            .copied()
    };
    of(workload).or_else(|| of(&Workload::default()))
}

/// The descriptor of an artifact's document, or `None` if the manifest is of something else or the
/// document is too large.
pub fn document_of(manifest: &Manifest) -> Option<Descriptor> {
    artifact::document_of(manifest, MEDIA_TYPE, MAX_PROFILE_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::oci::Digest;
    use crate::oci::media_type::OCI_MANIFEST;
    use crate::profile::Knowledge;

    fn profile(workload: &str) -> Profile {
        Knowledge::new(Digest::sha256_of(b"config")).profile(&workload.parse().unwrap())
    }

    fn subject() -> Descriptor {
        Manifest::new(OCI_MANIFEST.to_owned(), Bytes::from_static(b"image")).descriptor()
    }

    #[test]
    fn an_artifact_is_an_image_manifest_that_refers_to_its_image() {
        let artifact = of(&profile("web"), &subject(), "2026-01-01T00:00:00Z").unwrap();
        let manifest: Value = serde_json::from_slice(&artifact.manifest.bytes).unwrap();
        assert_eq!(manifest["subject"]["digest"], json!(subject().digest));
        assert_eq!(manifest["artifactType"], MEDIA_TYPE);
        // The digest that the specification gives for the empty descriptor.
        let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(manifest["config"]["digest"], empty);
        let document = document_of(&artifact.manifest).unwrap();
        assert_eq!(document, artifact.blobs[1].0);
        assert_eq!(
            Profile::parse(&artifact.blobs[1].1).unwrap(),
            profile("web")
        );
        assert_eq!(
            workload_of(&artifact.listed()),
            Some("web".parse().unwrap())
        );
    }

    #[test]
    fn the_newest_profile_of_each_workload_counts() {
        let listed = |workload, created| {
            of(&profile(workload), &subject(), created)
                .unwrap()
                .listed()
        };
        let (old, new) = (
            listed("web", "2026-01-01T00:00:00Z"),
            listed("web", "2026-02-01T00:00:00Z"),
        );
        let other = listed("batch", "2025-01-01T00:00:00Z");
        let mut foreign = subject();
        foreign
            .rest
            .insert("artifactType".to_owned(), "application/spdx+json".into());
        let all = [new.clone(), foreign, old, other.clone()];
        assert_eq!(newest(&all), [&other, &new]);
    }

    #[test]
    fn other_manifests_have_no_profile_document() {
        let manifest = |text: &str| Manifest::new(OCI_MANIFEST.to_owned(), text.to_owned().into());
        assert_eq!(document_of(&manifest("{}")), None);
        let artifact = of(&profile("web"), &subject(), "").unwrap();
        let text = String::from_utf8(artifact.manifest.bytes.to_vec()).unwrap();
        assert_eq!(
            document_of(&manifest(&text.replace(MEDIA_TYPE, "text/plain"))),
            None
        );
        let huge = format!("\"size\":{}", MAX_PROFILE_BYTES + 1);
        let size = format!("\"size\":{}", artifact.blobs[1].0.size);
        assert_eq!(document_of(&manifest(&text.replace(&size, &huge))), None);
    }
}
