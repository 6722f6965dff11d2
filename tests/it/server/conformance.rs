//! The questions that the OCI conformance suite asks a registry that only reads, by the sections of
//! the distribution specification 1.1. The upstream holds an image of each kind that the suite
//! pushes.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use starlift::oci::Digest;
use starlift::oci::media_type::{OCI_INDEX, OCI_MANIFEST};

use super::{Answer, Stage};
use crate::support::image::{Compression, Image, ImageBuilder};

/// The codes of the section "Error Codes".
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];
const ARTIFACT: &str = "application/vnd.example.artifact";
const OTHER_ARTIFACT: &str = "application/vnd.example.other";

fn manifest(reference: &str) -> String {
    format!("/v2/local/app/manifests/{reference}")
}

fn blob(digest: &str) -> String {
    format!("/v2/local/app/blobs/{digest}")
}

fn image(seed: u64) -> Image {
    ImageBuilder::new(seed).build()
}

fn index_of(images: [Image; 2]) -> Image {
    let platforms = ["linux/amd64", "linux/arm64"];
    Image::index(platforms.into_iter().zip(images).collect(), false)
}

/// Returns a manifest without image configuration. Its only blob is the empty document.
fn artifact(subject: &Image) -> Image {
    subject
        .referrer(ARTIFACT)
        .changed(|manifest| drop(manifest.as_object_mut().unwrap().remove("subject")))
}

/// Returns an image whose manifest has nearly the 4 MiB that a registry must take.
fn with_a_large_manifest() -> Image {
    let value = "A".repeat(10_000);
    let annotations = (0..390).map(|number| (format!("large-{number}"), json!(value)));
    let annotations: serde_json::Map<_, _> = annotations.collect();
    image(20).changed(|manifest| manifest["annotations"] = annotations.into())
}

/// Returns an image one of whose layers is only at another address.
fn with_a_foreign_layer() -> Image {
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": Digest::sha256_of(b"elsewhere").to_string(),
        "size": 123_456,
        "urls": ["https://store.example.test/layer"],
    });
    image(21).changed(|manifest| manifest["layers"][1] = layer)
}

/// Returns an image whose configuration is also in its descriptor.
fn with_a_data_field() -> Image {
    use base64::Engine as _;
    let image = image(22);
    let data = base64::engine::general_purpose::STANDARD.encode(&image.blobs[0]);
    image.changed(|manifest| manifest["config"]["data"] = data.into())
}

/// Returns the kinds of image that the suite pushes, each with its tag.
fn kinds() -> Vec<(&'static str, Image)> {
    let subject = image(1);
    let missing = image(99);
    let nested = [
        index_of([image(2), image(3)]),
        index_of([image(4), image(5)]),
    ];
    vec![
        ("image", subject.clone()),
        (
            "uncompressed",
            ImageBuilder::new(6).compression(Compression::Plain).build(),
        ),
        ("large-manifest", with_a_large_manifest()),
        ("index", index_of([image(7), image(8)])),
        ("index-of-indexes", index_of(nested)),
        ("empty-index", Image::index(Vec::new(), false)),
        ("artifact", artifact(&subject)),
        (
            "artifact-index",
            index_of([artifact(&image(9)), artifact(&image(10))])
                .changed(|index| index["artifactType"] = ARTIFACT.into()),
        ),
        ("artifact-with-subject", subject.referrer(ARTIFACT)),
        (
            "index-with-subject",
            index_of([image(11), image(12)]).changed(|index| {
                index["artifactType"] = OTHER_ARTIFACT.into();
                index["subject"] = subject.descriptor();
            }),
        ),
        ("missing-subject", missing.referrer(ARTIFACT)),
        ("data-field", with_a_data_field()),
        ("foreign-layer", with_a_foreign_layer()),
        (
            "custom-field",
            image(23).changed(|manifest| manifest["org.example.custom"] = "value".into()),
        ),
        ("no-layers", ImageBuilder::new(24).layers(0).build()),
    ]
}

/// Returns a server whose upstream has all [`kinds`].
async fn stage() -> Stage {
    let stage = Stage::new().await;
    for (tag, image) in kinds() {
        stage.registry.push("app", tag, &image);
    }
    stage
}

/// Asks for a manifest as clients do that know all types.
async fn get_manifest(stage: &Stage, reference: &str) -> Answer {
    let accept = format!("{OCI_MANIFEST}, {OCI_INDEX}");
    stage
        .get_and_head(&manifest(reference), &[("accept", accept.as_str())])
        .await
}

/// Checks that an answer is the content that its digest and `descriptor` promise.
fn assert_is(answer: &Answer, descriptor: &Value) {
    let digest = Digest::sha256_of(&answer.body).to_string();
    assert_eq!(
        (answer.status, answer.digest()),
        (200, digest.as_str()),
        "{descriptor}"
    );
    assert_eq!(descriptor["digest"], digest);
    assert_eq!(descriptor["size"], answer.body.len(), "{descriptor}");
}

/// Sections "Pulling manifests" and "Pulling blobs": pulls all that a manifest names. Returns the
/// number of answers.
async fn pull_all(stage: &Stage, tag: &str) -> usize {
    let list = |document: &Value, key: &str| document[key].as_array().cloned().unwrap_or_default();
    let first = get_manifest(stage, tag).await;
    let mut manifests = vec![json!({"digest": first.digest(), "size": first.body.len()})];
    let mut answers = 0;
    while let Some(descriptor) = manifests.pop() {
        let answer = get_manifest(stage, descriptor["digest"].as_str().unwrap()).await;
        assert_is(&answer, &descriptor);
        let document = answer.json();
        assert_eq!(answer.header("content-type"), document["mediaType"]);
        manifests.extend(list(&document, "manifests"));
        let config = document.get("config").cloned();
        let blobs = list(&document, "layers").into_iter().chain(config);
        for descriptor in blobs.filter(|blob| blob["urls"].is_null()) {
            let path = blob(descriptor["digest"].as_str().unwrap());
            assert_is(&stage.get_and_head(&path, &[]).await, &descriptor);
            answers += 1;
        }
        answers += 1;
    }
    answers
}

/// Section "Determining Support", end-1.
#[tokio::test]
async fn determining_support() {
    assert_eq!(Stage::new().await.get("/v2/").await.status, 200);
}

/// Sections "Pulling manifests" and "Pulling blobs", end-2 and end-3: a tag, everything that it
/// names, and the pushed bytes under the digest that they were pushed with.
#[tokio::test]
async fn manifests_of_every_kind_are_pulled_with_all_that_they_name() {
    let stage = stage().await;
    for (tag, image) in kinds() {
        let answers = pull_all(&stage, tag).await;
        let is_empty = tag == "empty-index";
        assert!(is_empty || answers > 1, "{tag}: {answers}");
        let pushed = get_manifest(&stage, &image.digest().to_string()).await;
        assert_eq!((pushed.status, &pushed.body), (200, &image.bytes), "{tag}");
        assert_eq!(pushed.header("content-type"), image.media_type, "{tag}");
    }
}

/// Section "Pulling blobs": the range requests of RFC 9110.
#[tokio::test]
async fn blobs_are_pulled_in_ranges() {
    let stage = stage().await;
    let source = image(1);
    let layer = &source.layers()[0];
    let path = blob(&Digest::sha256_of(layer).to_string());
    let range = async |value| stage.ask(Method::GET, &path, &[("range", value)]).await;
    let part = range("bytes=2-9").await;
    assert_eq!((part.status, part.body), (206, layer.slice(2..10)));
    let content_range = format!("bytes 2-9/{}", layer.len());
    assert_eq!(part.headers["content-range"], content_range);
    assert_eq!(range("bytes=999999999-").await.status, 416);
}

/// Sections "Pulling manifests", "Pulling blobs" and "Checking if content exists in the registry":
/// absent content is 404, with GET and with HEAD.
#[tokio::test]
async fn absent_content_does_not_exist() {
    let stage = stage().await;
    let digest = Digest::sha256_of(b"absent").to_string();
    for (path, code) in [
        (manifest("absent"), "MANIFEST_UNKNOWN"),
        (manifest(&digest), "MANIFEST_UNKNOWN"),
        (blob(&digest), "BLOB_UNKNOWN"),
    ] {
        let answer = stage.get(&path).await;
        assert_eq!((answer.status, answer.code()), (404, code.to_owned()));
        assert_eq!(stage.head(&path).await.status, 404, "{path}");
    }
}

/// Follows the links of a list of tags, and returns its pages.
async fn pages(stage: &Stage, first: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = stage.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.json()["name"], "local/app");
        pages.push(serde_json::from_value(answer.json()["tags"].clone()).unwrap());
        let link = answer.header("link").strip_prefix('<');
        next = link.map(|link| link.split_once(">; rel=\"next\"").unwrap().0.to_owned());
    }
    pages
}

/// Section "Listing Tags", end-8a and end-8b: `n`, `last`, and the header `Link`.
#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    let stage = stage().await;
    let tags: BTreeSet<_> = kinds().into_iter().map(|(tag, _)| tag.to_owned()).collect();
    let tags: Vec<_> = tags.into_iter().collect();
    assert_eq!(
        pages(&stage, "/v2/local/app/tags/list").await,
        std::slice::from_ref(&tags)
    );
    for n in [1, 4, tags.len(), tags.len() + 1] {
        let pages = pages(&stage, &format!("/v2/local/app/tags/list?n={n}")).await;
        assert_eq!(pages, tags.chunks(n).map(<[_]>::to_vec).collect::<Vec<_>>());
    }
    let last = &tags[5];
    let after = pages(&stage, &format!("/v2/local/app/tags/list?n=3&last={last}")).await;
    assert_eq!(after[0], tags[6..9]);
    assert_eq!(after.concat(), tags[6..]);
}

/// Returns the referrers of a digest, after checking the form of the answer.
async fn referrers(stage: &Stage, digest: &str, query: &str) -> (Vec<Value>, Answer) {
    let path = format!("/v2/local/app/referrers/{digest}{query}");
    let answer = stage.get(&path).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, OCI_INDEX)
    );
    let index = answer.json();
    assert_eq!(index["schemaVersion"], 2);
    assert_eq!(index["mediaType"], OCI_INDEX);
    (index["manifests"].as_array().unwrap().clone(), answer)
}

fn digests(descriptors: &[Value]) -> BTreeSet<String> {
    let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    descriptors.iter().map(digest).collect()
}

/// Section "Listing Referrers", end-12a and end-12b: manifests and indexes with a subject, the
/// filter, a subject that is absent, and a digest that nothing refers to.
#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let stage = stage().await;
    let pushed: std::collections::HashMap<_, _> = kinds().into_iter().collect();
    let digest_of = |tag: &str| pushed[tag].digest().to_string();
    let (subject, artifact, index) = (
        digest_of("image"),
        digest_of("artifact-with-subject"),
        digest_of("index-with-subject"),
    );
    let (all, answer) = referrers(&stage, &subject, "").await;
    assert_eq!(digests(&all), [artifact.clone(), index.clone()].into());
    assert_eq!(answer.header("oci-filters-applied"), "");
    for descriptor in &all {
        let manifest = get_manifest(&stage, descriptor["digest"].as_str().unwrap()).await;
        assert_is(&manifest, descriptor);
        assert_eq!(descriptor["artifactType"], manifest.json()["artifactType"]);
    }
    for (artifact_type, found) in [(ARTIFACT, artifact), (OTHER_ARTIFACT, index)] {
        let query = format!("?artifactType={artifact_type}");
        let (filtered, answer) = referrers(&stage, &subject, &query).await;
        assert_eq!(digests(&filtered), [found].into());
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    }
    let (of_absent, _) = referrers(&stage, &image(99).digest().to_string(), "").await;
    assert_eq!(digests(&of_absent), [digest_of("missing-subject")].into());
    let unknown = Digest::sha256_of(b"nothing refers to this").to_string();
    assert!(referrers(&stage, &unknown, "").await.0.is_empty());
}

/// Section "Error Codes": the form of the body, and the code.
#[tokio::test]
async fn errors_have_a_code_of_the_specification() {
    let stage = stage().await;
    let digest = Digest::sha256_of(b"absent");
    for (path, statuses) in [
        (manifest("absent"), &[404][..]),
        (manifest("sha256:totallywrong"), &[400, 404]),
        (blob("sha256:totallywrong"), &[400, 404]),
        (blob(&digest.to_string()), &[404]),
        ("/v2/local/app/referrers/totallywrong".to_owned(), &[400]),
        (format!("/v2/local/APP/blobs/{digest}"), &[400, 404]),
    ] {
        let answer = stage.get(&path).await;
        assert!(
            statuses.contains(&answer.status),
            "{path}: {}",
            answer.status
        );
        assert_eq!(answer.header("content-type"), "application/json");
        let errors = answer.json()["errors"].as_array().unwrap().clone();
        assert_eq!(errors.len(), 1, "{path}");
        assert!(CODES.contains(&errors[0]["code"].as_str().unwrap()));
        assert!(errors[0]["message"].is_string(), "{path}");
    }
}

/// Section "Endpoints", end-4 to end-11 and end-13: pushing and deleting are unsupported.
#[tokio::test]
async fn pushing_and_deleting_are_unsupported() {
    let stage = stage().await;
    let digest = Digest::sha256_of(b"absent").to_string();
    for (method, path) in [
        (Method::POST, "/v2/local/app/blobs/uploads/".to_owned()),
        (
            Method::POST,
            format!("/v2/local/app/blobs/uploads/?digest={digest}"),
        ),
        (
            Method::POST,
            format!("/v2/local/app/blobs/uploads/?mount={digest}&from=local/other"),
        ),
        (Method::PATCH, "/v2/local/app/blobs/uploads/1".to_owned()),
        (
            Method::PUT,
            format!("/v2/local/app/blobs/uploads/1?digest={digest}"),
        ),
        (Method::GET, "/v2/local/app/blobs/uploads/1".to_owned()),
        (Method::PUT, manifest("image")),
        (Method::DELETE, manifest("image")),
        (Method::DELETE, blob(&digest)),
    ] {
        let answer = stage.ask(method.clone(), &path, &[]).await;
        assert_eq!(answer.code(), "UNSUPPORTED", "{method} {path}");
        assert!([404, 405].contains(&answer.status), "{method} {path}");
    }
    assert_eq!(pull_all(&stage, "image").await, 4, "nothing has changed");
}
