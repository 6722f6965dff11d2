//! Converted images are signed if a key is configured, and their statements are listed among their
//! referrers.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::Value;
use starlift::convert;
use starlift::oci::Digest;
use starlift::oci::media_type::{DOCKER_MANIFEST, OCI_MANIFEST};
use starlift::provenance::{TrustedKeys, Verified, verify};
use starlift::store::{self, Store};

use super::Stage;
use crate::support::image::{Image, ImageBuilder};
use crate::support::keys::KeyFiles;

/// The type of the artifacts, as it is written in a query.
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1%2Bjson";
const MANIFEST: &str = "/v2/local/app/manifests/v1";

struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn key(&self, name: &str) -> KeyFiles {
        KeyFiles::new(self.0.path(), name)
    }
}

fn signing(key: &KeyFiles) -> convert::Config {
    convert::Config {
        signing_key: Some(key.private.clone()),
        ..convert::Config::default()
    }
}

async fn signed(store: Store, key: &KeyFiles) -> Stage {
    Stage::converting(store, &signing(key), |_| {}).await
}

impl Stage {
    /// Returns the artifacts with statements on a manifest, under a name.
    async fn statements(&self, digest: &str) -> Vec<String> {
        let path = format!("/v2/local/app/referrers/{digest}?artifactType={ENVELOPE}");
        let answer = self.get(&path).await;
        assert_eq!(answer.status, 200);
        let list = answer.json();
        let digest = |referrer: &Value| referrer["digest"].as_str().unwrap().to_owned();
        list["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(digest)
            .collect()
    }

    /// Returns the digest of an artifact's envelope.
    async fn envelope_of(&self, artifact: &str) -> String {
        let path = format!("/v2/local/app/manifests/{artifact}");
        let manifest = self.get(&path).await.json();
        manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// Returns the only statement on a manifest, verified.
    async fn verified(&self, digest: &str, keys: &TrustedKeys) -> Verified {
        let [artifact] = &*self.statements(digest).await else {
            panic!("not one statement on {digest}")
        };
        let envelope = self.envelope_of(artifact).await;
        let blob = self.get(&format!("/v2/local/app/blobs/{envelope}")).await;
        assert_eq!(blob.status, 200);
        verify(&blob.body, keys, &digest.parse().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn a_converted_image_has_a_signed_statement_among_its_referrers() {
    let keys = Keys::new();
    let key = keys.key("a");
    let stage = signed(Store::in_memory(), &key).await;
    let image = ImageBuilder::new(1).layers(2).docker().build();
    stage.registry.push("app", "v1", &image);
    for media_type in [DOCKER_MANIFEST, OCI_MANIFEST] {
        let answer = stage
            .ask(reqwest::Method::GET, MANIFEST, &[("accept", media_type)])
            .await;
        assert_eq!(answer.header("content-type"), media_type);
        let verified = stage.verified(answer.digest(), &key.trusted()).await;
        assert_eq!(verified.key.to_string(), key.id());
        let made = verified.provenance;
        assert_eq!(made.source, image.digest());
        assert!(made.generation.starts_with("g1-gzip"), "{made:?}");
        for layer in answer.json()["layers"].as_array().unwrap() {
            let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
            assert!(made.names(&digest), "{digest}");
        }
    }
}

#[tokio::test]
async fn an_index_and_each_of_its_images_have_a_statement() {
    let keys = Keys::new();
    let key = keys.key("a");
    let stage = signed(Store::in_memory(), &key).await;
    let (amd, arm) = (
        ImageBuilder::new(1).build(),
        ImageBuilder::new(2).architecture("arm64").build(),
    );
    let index = Image::index(
        vec![("linux/amd64", amd.clone()), ("linux/arm64", arm.clone())],
        false,
    );
    stage.registry.push("app", "v1", &index);
    let answer = stage.get(MANIFEST).await;
    let verified = stage.verified(answer.digest(), &key.trusted()).await;
    assert_eq!(verified.provenance.source, index.digest());
    for (child, source) in [(0, amd), (1, arm)] {
        let child = &answer.json()["manifests"][child]["digest"];
        let child = child.as_str().unwrap();
        let verified = stage.verified(child, &key.trusted()).await;
        assert_eq!(verified.provenance.source, source.digest());
    }
}

#[tokio::test]
async fn an_index_that_is_converted_in_part_for_now_is_signed_too() {
    let keys = Keys::new();
    let key = keys.key("a");
    let stage = signed(Store::in_memory(), &key).await;
    let (amd, arm) = (
        ImageBuilder::new(1).build(),
        ImageBuilder::new(2).architecture("arm64").build(),
    );
    let layer = format!("/blobs/{}", Digest::sha256_of(&arm.layers()[0]));
    stage.registry.on(&layer).answer(503, &[]);
    let index = Image::index(vec![("linux/amd64", amd), ("linux/arm64", arm)], false);
    stage.registry.push("app", "v1", &index);
    let answer = stage.get(MANIFEST).await;
    assert_ne!(answer.digest(), index.digest().to_string());
    stage.verified(answer.digest(), &key.trusted()).await;
    let child = answer.json()["manifests"][1]["digest"].clone();
    assert!(stage.statements(child.as_str().unwrap()).await.is_empty());
}

#[tokio::test]
async fn nothing_is_signed_without_a_key() {
    let stage = Stage::new().await;
    stage.push_app();
    let converted = stage.get(MANIFEST).await;
    assert!(stage.statements(converted.digest()).await.is_empty());
}

#[tokio::test]
async fn an_image_that_passes_through_is_not_signed_whatever_it_claims() {
    let keys = Keys::new();
    let first = signed(Store::in_memory(), &keys.key("a")).await;
    first.push_app();
    let converted = first.get(MANIFEST).await;
    // The other server's upstream has an image that is converted already.
    let other = signed(Store::in_memory(), &keys.key("b")).await;
    let document = converted.json();
    let layers = document["layers"].as_array().unwrap().iter();
    for blob in layers.chain([&document["config"]]) {
        let path = format!("/v2/local/app/blobs/{}", blob["digest"].as_str().unwrap());
        other.registry.put_blob(first.get(&path).await.body);
    }
    let media_type = converted.header("content-type");
    other
        .registry
        .put_manifest("app", media_type, converted.body.clone());
    let digest = converted.digest().parse().unwrap();
    other.registry.tag("app", "v1", &digest);
    let answer = other.get(MANIFEST).await;
    assert_eq!(answer.digest(), converted.digest(), "it passes through");
    assert!(document["annotations"]["dev.starlift.source.digest"].is_string());
    assert!(other.statements(answer.digest()).await.is_empty());
}

#[tokio::test]
async fn an_image_converted_before_is_signed_without_another_conversion() {
    let keys = Keys::new();
    let store = Store::in_memory();
    let before = Stage::over(store.clone(), |_| {}).await;
    let image = before.push_app();
    let converted = before.get(MANIFEST).await;
    assert!(before.statements(converted.digest()).await.is_empty());

    let (old, new) = (keys.key("old"), keys.key("new"));
    let stage = signed(store.clone(), &old).await;
    stage.registry.push("app", "v1", &image);
    assert_eq!(stage.get(MANIFEST).await.digest(), converted.digest());
    let verified = stage.verified(converted.digest(), &old.trusted()).await;
    assert_eq!(verified.provenance.source, image.digest());
    assert_eq!(
        stage.registry.count("GET", "/blobs/"),
        0,
        "no layer is read again"
    );
    let first = stage.statements(converted.digest()).await;
    assert_eq!(stage.statements(converted.digest()).await, first);

    // With the next key there are two statements, until all nodes trust the new key.
    let rotated = signed(store, &new).await;
    rotated.registry.push("app", "v1", &image);
    let both = rotated.statements(converted.digest()).await;
    assert_eq!((both.len(), &both[0]), (2, &first[0]));
    for (artifact, key) in [(&both[0], &old), (&both[1], &new)] {
        let envelope = rotated.envelope_of(artifact).await;
        let blob = rotated
            .get(&format!("/v2/local/app/blobs/{envelope}"))
            .await;
        let digest = converted.digest().parse().unwrap();
        verify(&blob.body, &key.trusted(), &digest).unwrap();
    }
}

#[tokio::test]
async fn replicas_with_one_key_and_different_stores_sign_the_same_artifact() {
    let keys = Keys::new();
    let key = keys.key("a");
    let mut artifacts = Vec::new();
    for _ in 0..2 {
        let stage = signed(Store::in_memory(), &key).await;
        stage.push_app();
        let converted = stage.get(MANIFEST).await;
        artifacts.extend(stage.statements(converted.digest()).await);
    }
    assert_eq!(artifacts.len(), 2);
    assert_eq!(artifacts[0], artifacts[1]);
}

#[tokio::test]
async fn a_statement_is_read_only_under_names_that_hold_its_image() {
    let keys = Keys::new();
    let stage = signed(Store::in_memory(), &keys.key("a")).await;
    stage.push_app();
    let converted = stage.get(MANIFEST).await;
    let [artifact] = &*stage.statements(converted.digest()).await else {
        panic!("one statement")
    };
    let envelope = stage.envelope_of(artifact).await;
    for path in [format!("manifests/{artifact}"), format!("blobs/{envelope}")] {
        let own = stage.get(&format!("/v2/local/app/{path}")).await;
        assert_eq!(own.status, 200, "{path}");
        let other = stage.get(&format!("/v2/local/other/{path}")).await;
        assert_eq!(other.status, 403, "{path}");
    }
    let other = format!("/v2/local/other/referrers/{}", converted.digest());
    let other = stage.get(&other).await;
    assert!(!other.body.is_empty() && !other.json().to_string().contains(artifact));
}

#[tokio::test]
async fn statements_are_listed_while_the_upstream_is_away() {
    let keys = Keys::new();
    let key = keys.key("a");
    let stage = signed(Store::in_memory(), &key).await;
    stage.push_app();
    let converted = stage.get(MANIFEST).await;
    stage.registry.on("/referrers/").answer(503, &[]);
    stage.registry.on("/manifests/sha256-").answer(503, &[]);
    stage.verified(converted.digest(), &key.trusted()).await;
    let path = format!("/v2/local/app/referrers/{}", converted.digest());
    let warning = stage.get(&path).await;
    assert!(warning.header("warning").contains("without the upstream"));
}

#[tokio::test]
async fn a_statement_that_was_lost_or_damaged_is_signed_again() {
    let keys = Keys::new();
    let key = keys.key("a");
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::over(Arc::clone(&memory), &store::Config::default());
    let stage = signed(store, &key).await;
    let image = stage.push_app();
    let converted = stage.get(MANIFEST).await;
    let first = stage.statements(converted.digest()).await;
    assert_eq!(first.len(), 1);
    let hex = converted.digest().strip_prefix("sha256:").unwrap();
    let record = object_store::path::Path::from(format!("records/statement/sha256/{hex}.json"));
    memory.head(&record).await.unwrap();
    for damage in [None, Some("{")] {
        match damage {
            None => memory.delete(&record).await.unwrap(),
            Some(text) => drop(memory.put(&record, text.into()).await.unwrap()),
        }
        let store = Store::over(Arc::clone(&memory), &store::Config::default());
        let again = signed(store.clone(), &key).await;
        again.registry.push("app", "v1", &image);
        let mut findings = Vec::new();
        let mut found = |finding: &store::Finding| findings.push(finding.key.to_string());
        let report = store.scrub(false, 0, &mut found).await.unwrap();
        assert_eq!(report.damaged, u64::from(damage.is_some()), "{findings:?}");
        assert_eq!(again.statements(converted.digest()).await, first);
    }
}
