//! Reading follows a name: converted images, their parts and their profiles are served only under
//! names whose upstream has shown that it holds the image.

use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use starlift::oci::{Digest, media_type};
use starlift::store::{self, Store};

use super::profiles::{FILES, path_of, quick, seen, stack_of};
use super::{Answer, Stage};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Registry;

const PRIVATE: &str = "local/team-a/app";

/// The digests of a converted image.
struct Converted {
    source: String,
    manifest: String,
    document: Value,
}

impl Converted {
    fn of(image: &Image, answer: &Answer) -> Self {
        assert_eq!((answer.status, answer.header("warning")), (200, ""));
        let source = image.digest().to_string();
        assert_ne!(answer.digest(), source, "the image is converted");
        Self {
            source,
            manifest: answer.digest().to_owned(),
            document: answer.json(),
        }
    }

    fn layer(&self, number: usize) -> &str {
        self.document["layers"][number]["digest"].as_str().unwrap()
    }

    /// Returns the paths of everything that is made of the image, under a name and with a query.
    fn paths(&self, name: &str, query: &str) -> Vec<String> {
        let config = self.document["config"]["digest"].as_str().unwrap();
        let layers = self.document["layers"].as_array().unwrap();
        let layers = layers.iter().map(|layer| layer["digest"].as_str().unwrap());
        let blobs = layers
            .chain([config])
            .map(|blob| format!("/v2/{name}/blobs/{blob}{query}"));
        blobs
            .chain([format!("/v2/{name}/manifests/{}{query}", self.manifest)])
            .collect()
    }
}

impl Stage {
    /// Pushes the image to the repository of the first team, and pulls it.
    async fn private(&self, image: &Image) -> Converted {
        self.registry.push("team-a/app", "v1", image);
        let answer = self.get(&format!("/v2/{PRIVATE}/manifests/v1")).await;
        Converted::of(image, &answer)
    }

    /// Checks that nothing of the image is read under the name.
    async fn refuses(&self, image: &Converted, name: &str, query: &str) {
        for path in image.paths(name, query) {
            for (method, headers) in [
                (Method::GET, &[][..]),
                (Method::HEAD, &[]),
                (Method::GET, &[("range", "bytes=0-9")]),
                (Method::GET, &[("range", "bytes=-9")]),
                (Method::GET, &[("range", "bytes=0-1,5-9")]),
            ] {
                let answer = self.ask(method.clone(), &path, headers).await;
                assert!(
                    matches!(answer.status, 403 | 404),
                    "{method} {path}: {}",
                    answer.status
                );
                assert_eq!(answer.header("docker-content-digest"), "", "{path}");
            }
        }
        for digest in [&image.source, &image.manifest] {
            let path = format!("/v2/{name}/referrers/{digest}{query}");
            let listed = self.get(&path).await;
            assert!(
                listed.status != 200 || listed.json()["manifests"] == json!([]),
                "{path}: {:?}",
                listed.body
            );
        }
    }

    /// Checks that everything of the image is read under the name.
    async fn serves(&self, image: &Converted, name: &str) {
        for path in image.paths(name, "") {
            let answer = self.get(&path).await;
            assert_eq!(answer.status, 200, "{path}");
            assert!(path.contains(&Digest::sha256_of(&answer.body).to_string()));
            let part = self
                .ask(Method::GET, &path, &[("range", "bytes=3-9")])
                .await;
            if path.contains("/blobs/") {
                assert_eq!((part.status, &part.body[..]), (206, &answer.body[3..10]));
            }
        }
    }
}

#[tokio::test]
async fn what_a_repository_holds_is_read_under_its_name_only() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("open", &other)], |_| {}).await;
    let image = ImageBuilder::new(1).build();
    let converted = stage.private(&image).await;
    // The registry answers for each of its repositories; this one has none of the blobs.
    stage.registry.on("/v2/team-b/").answer(404, &[]);
    stage.registry.forget_requests();
    stage.serves(&converted, PRIVATE).await;
    assert_eq!(stage.registry.seen().len(), 0, "ranges cost no requests");
    let host = stage.registry.host();
    for (name, query) in [
        ("team-a/app", "?ns=local".to_owned()),
        ("team-a/app", format!("?ns={host}")),
    ] {
        for path in converted.paths(name, &query) {
            assert_eq!(stage.get(&path).await.status, 200, "{path}");
        }
    }
    for (name, query) in [
        ("local/team-b/app", ""),
        ("local/team-a/app/x", ""),
        ("local/team-a", ""),
        ("open/team-a/app", ""),
        ("open/x", ""),
        ("team-b/app", "?ns=local"),
        ("team-a/app", "?ns=open"),
        // The path's prefix wins over the namespace.
        ("open/team-a/app", "?ns=local"),
    ] {
        if name.starts_with("local/team-a") {
            stage.registry.on(&name["local".len()..]).answer(404, &[]);
        }
        stage.refuses(&converted, name, query).await;
        stage.registry.heal();
        stage.registry.on("/v2/team-b/").answer(404, &[]);
    }
}

#[tokio::test]
async fn an_upstream_that_only_claims_a_private_image_gets_nothing_of_it() {
    let hostile = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("hostile", &hostile)], |_| {}).await;
    let image = ImageBuilder::new(2).build();
    let converted = stage.private(&image).await;
    let (tag, digest) = ("/v2/hostile/evil/manifests/", image.digest().to_string());

    // Its word that a tag has the digest.
    let claim = [
        ("docker-content-digest", digest.as_str()),
        ("content-type", image.media_type.as_str()),
        ("content-length", "500"),
    ];
    hostile
        .on("manifests/claimed")
        .method("HEAD")
        .answer(200, &claim);
    let answer = stage.get(&format!("{tag}claimed")).await;
    assert_eq!(answer.status, 404);
    stage.refuses(&converted, "hostile/evil", "").await;

    // The manifest, which is no secret, and blobs that it only has by its word.
    hostile.put_manifest("evil", &image.media_type, image.bytes.clone());
    hostile.tag("evil", "manifest", &image.digest());
    for blob in &image.blobs {
        let length = blob.len().to_string();
        let digest = Digest::sha256_of(blob).to_string();
        hostile
            .on(&format!("/blobs/{digest}"))
            .method("HEAD")
            .answer(200, &[("content-length", &length)]);
    }
    let answer = stage.get(&format!("{tag}manifest")).await;
    assert_eq!((answer.status, answer.digest()), (200, digest.as_str()));
    stage.refuses(&converted, "hostile/evil", "").await;

    // A manifest of its own, with the configuration and the names of the layers.
    let forged = image.changed(|document| document["annotations"] = json!({"forged": "yes"}));
    hostile.put_blob(image.blobs[0].clone());
    hostile.put_manifest("evil", &forged.media_type, forged.bytes.clone());
    hostile.tag("evil", "forged", &forged.digest());
    let answer = stage.get(&format!("{tag}forged")).await;
    let forged = forged.digest().to_string();
    assert_eq!((answer.status, answer.digest()), (200, forged.as_str()));
    stage.refuses(&converted, "hostile/evil", "").await;

    // An index with the private image as one of its children.
    let mut child = image.descriptor();
    child["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let own = ImageBuilder::new(3).build();
    let mut index = Image::index(vec![("linux/amd64", own)], false);
    index = index.changed(|document| document["manifests"].as_array_mut().unwrap().push(child));
    hostile.push("evil", "index", &index);
    let answer = stage.get(&format!("{tag}index")).await;
    assert_eq!(answer.status, 200);
    assert!(
        !answer
            .body
            .windows(71)
            .any(|text| text == converted.manifest.as_bytes())
    );
    stage.refuses(&converted, "hostile/evil", "").await;
    stage.serves(&converted, PRIVATE).await;
}

#[tokio::test]
async fn another_repository_of_the_upstream_shows_the_image_without_sending_it() {
    let stage = Stage::new().await;
    let image = ImageBuilder::new(4).build();
    let converted = stage.private(&image).await;
    stage.registry.push("team-b/app", "v1", &image);
    stage.registry.forget_requests();
    let answer = stage.get("/v2/local/team-b/app/manifests/v1").await;
    assert_eq!(answer.digest(), converted.manifest);
    stage.serves(&converted, "local/team-b/app").await;
    for layer in image.layers() {
        let path = format!("/v2/team-b/app/blobs/{}", Digest::sha256_of(layer));
        assert_eq!(stage.registry.count("GET", &path), 0, "{path}");
        assert_eq!(stage.registry.count("HEAD", &path), 1, "{path}");
    }
}

#[tokio::test]
async fn another_upstream_shows_the_image_by_its_bytes_and_it_is_not_converted_again() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("other", &other)], |_| {}).await;
    let image = ImageBuilder::new(5).build();
    let converted = stage.private(&image).await;
    other.push("copy", "v1", &image);
    let answers =
        futures::future::join_all((0..4).map(|_| stage.get("/v2/other/copy/manifests/v1")));
    for answer in answers.await {
        assert_eq!(answer.digest(), converted.manifest);
    }
    stage.serves(&converted, "other/copy").await;
    for layer in image.layers() {
        let path = format!("/v2/copy/blobs/{}", Digest::sha256_of(layer));
        assert_eq!(other.count("GET", &path), 1, "{path}");
    }
    // Wrong bytes prove nothing.
    let liar = ImageBuilder::new(6).build();
    let private = stage.private(&liar).await;
    other.push("liar", "v1", &liar);
    let layer = Digest::sha256_of(&liar.layers()[0]);
    other.put_wrong_blob(&layer, liar.layers()[1].clone());
    let answer = stage.get("/v2/other/liar/manifests/v1").await;
    assert_eq!(answer.digest(), liar.digest().to_string());
    stage.refuses_stored(&private, "other/liar").await;
}

impl Stage {
    /// Checks that no stored object of the image is read under the name.
    async fn refuses_stored(&self, image: &Converted, name: &str) {
        for path in image.paths(name, "") {
            let answer = self.get(&path).await;
            assert!(matches!(answer.status, 403 | 404), "{path}");
        }
    }
}

#[tokio::test]
async fn an_index_is_shown_with_all_its_images_or_not_at_all() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("other", &other)], |_| {}).await;
    let amd = ImageBuilder::new(7).build();
    let arm = ImageBuilder::new(8).architecture("arm64").build();
    let index = Image::index(vec![("linux/amd64", amd), ("linux/arm64", arm)], false);
    stage.registry.push("app", "v1", &index);
    let first = stage.get("/v2/local/app/manifests/v1").await;
    assert_ne!(first.digest(), index.digest().to_string());
    let child = |answer: &Answer| {
        answer.json()["manifests"][1]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let arm = child(&first);
    other.push("copy", "v1", &index);
    let gone = Digest::sha256_of(&index.children[1].layers()[1]).to_string();
    other.on(&gone).answer(404, &[]);
    let answer = stage.get("/v2/other/copy/manifests/v1").await;
    assert_eq!(answer.status, 200);
    assert_ne!(child(&answer), arm);
    let path = format!("/v2/other/copy/manifests/{arm}");
    assert_eq!(stage.get(&path).await.status, 403);
}

#[tokio::test]
async fn a_store_without_links_shows_its_images_again_at_the_next_pull() {
    let objects = Arc::new(InMemory::new());
    let open = || Store::over(Arc::<InMemory>::clone(&objects), &store::Config::default());
    let stage = Stage::over(open(), |_| {}).await;
    let image = ImageBuilder::new(9).build();
    let converted = stage.private(&image).await;
    let prefix = "links".into();
    let links: Vec<_> = objects.list(Some(&prefix)).try_collect().await.unwrap();
    // For each layer its source and its converted layer, and the documents.
    assert!(links.len() > image.layers().len() * 2, "{}", links.len());
    for link in links {
        objects.delete(&link.location).await.unwrap();
    }
    let again = Stage::over(open(), |_| {}).await;
    let blob = format!("/v2/{PRIVATE}/blobs/{}", converted.layer(0));
    assert_eq!(again.get(&blob).await.status, 403);
    again.private(&image).await;
    again.serves(&converted, PRIVATE).await;
}

#[tokio::test]
async fn a_profile_is_read_and_changed_under_a_name_that_holds_the_image() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("open", &other)], quick).await;
    let image = ImageBuilder::new(1).build();
    let converted = stage.private(&image).await;
    let stack = path_of(&stack_of(&converted.document));
    let named = |name: &str| format!("{stack}?name={name}");
    let observation = || seen(&FILES).to_string();
    for name in ["open/team-a/app", "local/team-b/app", "team-a/app&ns=open"] {
        assert_eq!(stage.get(&named(name)).await.status, 404, "{name}");
        let told = stage
            .tell_as([127, 0, 0, 1], &named(name), observation())
            .await;
        assert_eq!(told.status, 404, "{name}");
    }
    assert_eq!(stage.get(&named("Not/A/Name")).await.status, 400);
    for name in [PRIVATE, "team-a/app&ns=local"] {
        let told = stage
            .tell_as([127, 0, 0, 1], &named(name), observation())
            .await;
        assert_eq!(told.status, 202, "{name}");
        stage
            .profile_when(&named(name), |profile| {
                profile["files"].as_array().unwrap().len() == FILES.len()
            })
            .await;
    }
    let referrers = format!("/v2/{PRIVATE}/referrers/{}", converted.manifest);
    let listed = stage.get(&referrers).await.json();
    let profile = listed["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = |name: &str| format!("/v2/{name}/manifests/{profile}");
    let artifact = stage.get(&path(PRIVATE)).await;
    assert_eq!(
        (artifact.status, artifact.header("content-type")),
        (200, media_type::OCI_MANIFEST)
    );
    let document = artifact.json()["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let blob = |name: &str| format!("/v2/{name}/blobs/{document}");
    assert_eq!(stage.get(&blob(PRIVATE)).await.status, 200);
    for path in [path("open/team-a/app"), blob("open/team-a/app")] {
        assert_eq!(stage.get(&path).await.status, 403, "{path}");
    }
}
