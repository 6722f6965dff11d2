//! Profiles as referrers of images: those that the server learned, and those recorded by hand in
//! the upstream.

use serde_json::{Value, json};
use starlift::oci::{Artifact, Manifest};
use starlift::profile::{Extents, FileUse, Knowledge, MEDIA_TYPE, Profile, Workload, artifact};

use super::Stage;
use super::profiles::{FILES, path_of, quick, seen, stack_of};
use crate::support::image::{Image, ImageBuilder};

const MANIFEST: &str = "/v2/local/app/manifests/v1";

fn of_type<'a>(list: &'a Value, artifact_type: &str) -> Vec<&'a Value> {
    let all = list["manifests"].as_array().unwrap().iter();
    all.filter(|referrer| referrer["artifactType"] == artifact_type)
        .collect()
}

#[tokio::test]
async fn a_learned_profile_refers_to_the_converted_and_to_the_source_image() {
    let stage = Stage::with(quick).await;
    let image = stage.push_app();
    let converted = stage.get(MANIFEST).await;
    let list = |digest: String| async move { format!("/v2/local/app/referrers/{digest}") };
    let of_converted = list(converted.digest().to_owned()).await;
    assert!(
        of_type(&stage.get(&of_converted).await.json(), MEDIA_TYPE).is_empty(),
        "no profile yet"
    );

    let stack = stack_of(&converted.json());
    stage.tell(&stack, seen(&FILES).to_string()).await;
    let known = stage
        .profile_when(&path_of(&stack), |profile| profile["observers"] == 1)
        .await;
    stage
        .get(&format!("/v2/local/app/manifests/{}", image.digest()))
        .await;
    for subject in [converted.digest().to_owned(), image.digest().to_string()] {
        let referrers = stage.get(&list(subject.clone()).await).await.json();
        let [listed] = *of_type(&referrers, MEDIA_TYPE) else {
            panic!("{referrers}")
        };
        assert_eq!(
            listed["annotations"]["dev.starlift.profile.workload"],
            "default"
        );
        let manifest = stage
            .get(&format!(
                "/v2/local/app/manifests/{}",
                listed["digest"].as_str().unwrap()
            ))
            .await;
        assert_eq!(
            (manifest.status, &manifest.json()["subject"]["digest"]),
            (200, &json!(subject))
        );
        let document = manifest.json()["layers"][0]["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            stage
                .get(&format!("/v2/local/app/blobs/{document}"))
                .await
                .json(),
            known
        );
    }
}

/// Returns an artifact that refers to the image, with a record of the given files.
fn recorded(image: &Image, files: &[(u32, &str)]) -> Artifact {
    let manifest = Manifest::new(image.media_type.clone(), image.bytes.clone());
    let config = image.document()["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let mut knowledge = Knowledge::new(config);
    let file = |(layer, path): &(u32, &str)| FileUse {
        layer: *layer,
        path: (*path).to_owned(),
        extents: Extents::default(),
        after: std::time::Duration::ZERO,
    };
    knowledge.record(files.iter().map(file).collect());
    let profile: Profile = knowledge.profile(&Workload::default());
    artifact::of(&profile, &manifest.descriptor(), "2026-11-01T00:00:00Z").unwrap()
}

fn attach(stage: &Stage, artifact: Artifact) {
    for (_, bytes) in artifact.blobs {
        stage.registry.put_blob(bytes);
    }
    let Manifest {
        media_type, bytes, ..
    } = artifact.manifest;
    stage.registry.put_manifest("app", &media_type, bytes);
}

#[tokio::test]
async fn a_profile_recorded_by_hand_is_imported_from_the_upstream() {
    let stage = Stage::with(|config| {
        quick(config);
        config.profiles.recorded = true;
    })
    .await;
    let image = stage.push_app();
    attach(&stage, recorded(&image, &[FILES[2], FILES[0]]));
    let stack = stack_of(&stage.get(MANIFEST).await.json());
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["files"] != json!([]))
        .await;
    let paths: Vec<_> = profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| &file["path"])
        .collect();
    assert_eq!(paths, [FILES[2].1, FILES[0].1]);
    assert_eq!(profile["files"][0]["sources"], json!(["by-hand"]));
    stage.tell(&stack, seen(&FILES).to_string()).await;
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["observers"] == 1)
        .await;
    let paths: Vec<_> = profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| &file["path"])
        .collect();
    assert_eq!(
        paths,
        [FILES[2].1, FILES[0].1, FILES[1].1],
        "learned files follow"
    );
}

#[tokio::test]
async fn a_spoiled_record_and_an_upstream_without_referrers_hurt_nothing() {
    let stage = Stage::with(|config| config.profiles.recorded = true).await;
    let image = ImageBuilder::new(1).build();
    stage.registry.push("app", "v1", &image);
    let mut artifact = recorded(&image, &FILES);
    // The manifest names garbage instead of the document, with a matching digest and size.
    let text = String::from_utf8(artifact.manifest.bytes.to_vec()).unwrap();
    let (descriptor, _) = artifact.blobs[1].clone();
    let garbage = stage
        .registry
        .put_blob(vec![b'x'; usize::try_from(descriptor.size).unwrap()]);
    let text = text.replace(&descriptor.digest.to_string(), &garbage.to_string());
    artifact.manifest = Manifest::new(artifact.manifest.media_type, text.into());
    attach(&stage, artifact);
    let stack = stack_of(&stage.get(MANIFEST).await.json());
    let profile = stage.profile_when(&path_of(&stack), |_| true).await;
    assert_eq!(profile["files"], json!([]));
    assert_eq!(stage.get(MANIFEST).await.status, 200);
}
