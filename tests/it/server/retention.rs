//! How long objects of answered images stay readable.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use starlift::oci::media_type::{DOCKER_LAYER_GZIP, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST};
use starlift::store::{self, Retention, Store};

use super::{Answer, Stage};
use crate::support::eventually::eventually_async;
use crate::support::image::{Image, ImageBuilder};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    /// Returns a newly started server over the folder, with an empty registry.
    async fn server(&self) -> Stage {
        let location = self.dir.path().display().to_string();
        let retention = Retention {
            max_age: Some(30 * DAY),
            ..Retention::default()
        };
        let config = store::Config {
            location,
            retention,
            ..store::Config::default()
        };
        Stage::over(Store::open(&config).await.unwrap(), |_| {}).await
    }

    fn files(&self, top: &str) -> Vec<PathBuf> {
        fn below(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    below(&path, files)
                } else {
                    files.push(path)
                }
            }
        }
        let mut files = Vec::new();
        below(&self.dir.path().join(top), &mut files);
        files
    }

    /// Makes every file forty days older.
    fn age(&self) {
        for path in self.files("") {
            // A file that is being written in the background has its last name a moment later.
            let Ok(file) = std::fs::File::open(path) else {
                continue;
            };
            file.set_modified(SystemTime::now() - 40 * DAY).unwrap();
        }
    }

    /// Waits until a use is recorded, which happens in the background.
    async fn noted(&self) {
        let is_young = |path: PathBuf| {
            path.metadata()
                .is_ok_and(|seen| seen.modified().unwrap() > SystemTime::now() - DAY)
        };
        eventually_async("a use is recorded", async || {
            self.files("used").into_iter().any(is_young)
        })
        .await;
    }
}

/// Reads every object that a manifest names, directly or indirectly.
async fn read_all(stage: &Stage, digest: &str) -> Vec<Value> {
    let (mut manifests, mut descriptors) = (vec![digest.to_owned()], Vec::new());
    while let Some(digest) = manifests.pop() {
        let manifest = stage
            .get_and_head(&format!("/v2/local/app/manifests/{digest}"), &[])
            .await;
        assert_eq!((manifest.status, manifest.digest()), (200, &*digest));
        let document = manifest.json();
        for child in document["manifests"].as_array().into_iter().flatten() {
            manifests.push(child["digest"].as_str().unwrap().to_owned());
            descriptors.push(child.clone());
        }
        for blob in document["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(document.get("config"))
        {
            let answer = stage
                .get(&format!(
                    "/v2/local/app/blobs/{}",
                    blob["digest"].as_str().unwrap()
                ))
                .await;
            assert_eq!(
                (answer.status, answer.body.len() as u64),
                (200, blob["size"].as_u64().unwrap())
            );
            descriptors.push(blob.clone());
        }
    }
    descriptors
}

async fn docker_client(stage: &Stage, tag: &str, types: &[&str]) -> Answer {
    stage
        .get_and_head(
            &format!("/v2/local/app/manifests/{tag}"),
            &[("accept", &types.join(","))],
        )
        .await
}

/// A client that accepts only Docker's types keeps using the translated digests of an OCI image.
#[tokio::test]
async fn a_translated_digest_is_kept_with_all_it_names_while_it_is_in_use() {
    let folder = Folder {
        dir: tempfile::tempdir().unwrap(),
    };
    let stage = folder.server().await;
    let image = ImageBuilder::new(1).build();
    stage.registry.push(
        "app",
        "multi",
        &Image::index(vec![("linux/amd64", image)], false),
    );
    let list = docker_client(&stage, "multi", &[DOCKER_MANIFEST_LIST, DOCKER_MANIFEST]).await;
    assert_eq!(list.header("content-type"), DOCKER_MANIFEST_LIST);
    let image = docker_client(&stage, "multi", &[DOCKER_MANIFEST]).await;
    assert_eq!(list.json()["manifests"][0]["digest"], image.digest());
    let named = read_all(&stage, list.digest()).await;
    assert!(
        named
            .iter()
            .any(|descriptor| descriptor["mediaType"] == DOCKER_LAYER_GZIP)
    );

    folder.age();
    let stage = folder.server().await;
    assert_eq!(
        stage
            .get(&format!("/v2/local/app/manifests/{}", image.digest()))
            .await
            .status,
        200
    );
    folder.noted().await;
    let report = stage.store.sweep(SystemTime::now()).await.unwrap();
    // The image's own record goes; the record of the index names all its objects.
    assert_eq!((report.busy, report.objects), (false, 0));
    let stage = folder.server().await;
    assert_eq!(read_all(&stage, list.digest()).await, named);

    folder.age();
    let stage = folder.server().await;
    stage.store.sweep(SystemTime::now()).await.unwrap();
    for digest in [list.digest(), image.digest()] {
        assert_eq!(
            stage
                .get(&format!("/v2/local/app/manifests/{digest}"))
                .await
                .status,
            404,
            "the image is deleted"
        );
    }
}
