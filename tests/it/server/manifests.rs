//! Answers to manifest requests once conversions are done.

use reqwest::Method;
use starlift::convert;
use starlift::oci::Digest;
use starlift::oci::media_type::{
    DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use starlift::store::Store;

use super::Stage;
use crate::support::image::{Image, ImageBuilder};

#[tokio::test]
async fn a_tag_gives_the_converted_image_and_its_digest_gives_the_same_bytes() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let by_tag = stage.get_and_head("/v2/local/app/manifests/v1", &[]).await;
    assert_eq!(by_tag.status, 200);
    assert_ne!(by_tag.digest(), image.digest().to_string());
    assert_eq!(by_tag.header("content-type"), OCI_MANIFEST);
    assert_eq!(by_tag.header("warning"), "");
    assert_eq!(by_tag.header("cache-control"), "no-cache");
    assert_eq!(
        by_tag.header("docker-distribution-api-version"),
        "registry/2.0"
    );
    let by_digest = stage
        .get_and_head(&format!("/v2/local/app/manifests/{}", by_tag.digest()), &[])
        .await;
    assert_eq!(by_digest.body, by_tag.body);
    assert!(by_digest.header("cache-control").contains("immutable"));
    let converted = by_tag.json();
    assert_eq!(
        converted["annotations"]["dev.starlift.source.digest"],
        image.digest().to_string()
    );
    for layer in converted["layers"].as_array().unwrap() {
        let blob = stage
            .get_and_head(
                &format!("/v2/local/app/blobs/{}", layer["digest"].as_str().unwrap()),
                &[],
            )
            .await;
        assert_eq!(blob.body.len() as u64, layer["size"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn a_source_digest_gives_the_source_bytes_before_and_after_conversion() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let path = format!("/v2/local/app/manifests/{}", image.digest());
    assert_eq!(stage.get_and_head(&path, &[]).await.body, image.bytes);
    assert_ne!(
        stage.get("/v2/local/app/manifests/v1").await.body,
        image.bytes
    );
    assert_eq!(stage.get_and_head(&path, &[]).await.body, image.bytes);
}

#[tokio::test]
async fn a_head_of_an_unknown_digest_does_not_convert() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    stage
        .head(&format!("/v2/local/app/manifests/{}", image.digest()))
        .await;
    assert_eq!(stage.registry.count("GET", ""), 0);
}

#[tokio::test]
async fn an_index_keeps_its_children_and_their_places() {
    let stage = Stage::new().await;
    let images = ["amd64", "arm64", "s390x"].map(|architecture| {
        (
            format!("linux/{architecture}"),
            ImageBuilder::new(3).architecture(architecture).build(),
        )
    });
    let index = Image::index(
        images
            .iter()
            .map(|(name, image)| (name.as_str(), image.clone()))
            .collect(),
        true,
    );
    stage.registry.push("app", "multi", &index);
    let answer = stage
        .get_and_head("/v2/local/app/manifests/multi", &[])
        .await;
    assert_eq!(answer.header("content-type"), OCI_INDEX);
    let (converted, original) = (answer.json(), index.document());
    let (converted, original) = (
        converted["manifests"].as_array().unwrap(),
        original["manifests"].as_array().unwrap(),
    );
    assert_eq!(converted.len(), original.len());
    for (place, (ours, theirs)) in converted.iter().zip(original).enumerate() {
        assert_eq!(ours["platform"], theirs["platform"]);
        let is_converted = place < 2;
        assert_eq!(
            ours["digest"] != theirs["digest"],
            is_converted,
            "{}",
            ours["platform"]
        );
        let child = stage
            .get(&format!(
                "/v2/local/app/manifests/{}",
                ours["digest"].as_str().unwrap()
            ))
            .await;
        assert_eq!(child.status, 200);
    }
}

#[tokio::test]
async fn the_type_follows_the_source_unless_the_client_takes_only_the_other() {
    let stage = Stage::new().await;
    stage
        .registry
        .push("app", "docker", &ImageBuilder::new(4).docker().build());
    let path = "/v2/local/app/manifests/docker";
    let both = format!("{OCI_MANIFEST}, {DOCKER_MANIFEST}");
    for accept in ["", "*/*", DOCKER_MANIFEST, both.as_str()] {
        let headers = if accept.is_empty() {
            vec![]
        } else {
            vec![("accept", accept)]
        };
        assert_eq!(
            stage
                .get_and_head(path, &headers)
                .await
                .header("content-type"),
            DOCKER_MANIFEST,
            "{accept}"
        );
    }
    let other = stage.get_and_head(path, &[("accept", OCI_MANIFEST)]).await;
    assert_eq!(other.header("content-type"), OCI_MANIFEST);
    assert!(!String::from_utf8_lossy(&other.body).contains("vnd.docker"));
    let by_digest = stage
        .get_and_head(&format!("/v2/local/app/manifests/{}", other.digest()), &[])
        .await;
    assert_eq!(by_digest.body, other.body);
    let source = stage.registry.manifest("app", "docker").unwrap().1;
    let record = stage
        .converter
        .lookup(&Digest::sha256_of(&source))
        .await
        .unwrap()
        .unwrap();
    assert!(
        record.objects.contains(&other.digest().parse().unwrap()),
        "the translation is kept as long as the converted image"
    );
}

#[tokio::test]
async fn docker_clients_get_the_source_of_an_image_converted_to_zstd() {
    let config = convert::Config {
        format: convert::Format::Zstdchunked,
        ..convert::Config::default()
    };
    let stage = Stage::converting(Store::in_memory(), &config, |_| {}).await;
    let docker = ImageBuilder::new(7).docker().build();
    stage.registry.push("app", "docker", &docker);
    let oci = ImageBuilder::new(8).build();
    let index = Image::index(vec![("linux/amd64", oci.clone())], false);
    stage.registry.push("app", "index", &index);
    let path = "/v2/local/app/manifests/docker";
    let converted = stage.get_and_head(path, &[("accept", OCI_MANIFEST)]).await;
    assert!(String::from_utf8_lossy(&converted.body).contains(OCI_LAYER_ZSTD));
    let original = stage
        .get_and_head(path, &[("accept", DOCKER_MANIFEST)])
        .await;
    assert_eq!((original.status, &original.body), (200, &docker.bytes));
    // If the source is not in Docker's types either, it is served as it is.
    let path = "/v2/local/app/manifests/index";
    assert!(String::from_utf8_lossy(&stage.get(path).await.body).contains("dev.starlift"));
    let both = format!("{DOCKER_MANIFEST}, {DOCKER_MANIFEST_LIST}");
    let original = stage.get_and_head(path, &[("accept", &both)]).await;
    assert_eq!(original.body, index.bytes);
}

#[tokio::test]
async fn accept_lines_are_merged() {
    let stage = Stage::new().await;
    stage.push_app();
    let lines = [
        ("accept", DOCKER_MANIFEST),
        ("accept", OCI_MANIFEST),
        ("accept", DOCKER_MANIFEST_LIST),
    ];
    let answer = stage
        .get_and_head("/v2/local/app/manifests/v1", &lines)
        .await;
    assert_eq!(answer.header("content-type"), OCI_MANIFEST);
}

#[tokio::test]
async fn a_client_without_indexes_gets_the_image_for_linux_amd64() {
    let stage = Stage::new().await;
    let image = ImageBuilder::new(5).build();
    let index = Image::index(
        vec![
            ("linux/arm64", ImageBuilder::new(6).build()),
            ("linux/amd64", image.clone()),
        ],
        false,
    );
    stage.registry.push("app", "multi", &index);
    let answer = stage
        .get_and_head("/v2/local/app/manifests/multi", &[("accept", OCI_MANIFEST)])
        .await;
    assert_eq!(answer.header("content-type"), OCI_MANIFEST);
    assert_eq!(
        answer.json()["annotations"]["dev.starlift.source.digest"],
        image.digest().to_string()
    );
}

#[tokio::test]
async fn an_artifact_passes_through() {
    let stage = Stage::new().await;
    let artifact = ImageBuilder::new(1)
        .build()
        .referrer("application/vnd.example.sbom");
    stage.registry.push("app", "sbom", &artifact);
    let answer = stage
        .get_and_head("/v2/local/app/manifests/sbom", &[])
        .await;
    assert_eq!(answer.body, artifact.bytes);
    assert_eq!(answer.header("warning"), "");
}

#[tokio::test]
async fn a_manifest_that_the_client_has_is_answered_with_304() {
    let stage = Stage::new().await;
    stage.push_app();
    let path = "/v2/local/app/manifests/v1";
    let etag = stage.get(path).await.header("etag").to_owned();
    let answer = stage
        .ask(Method::GET, path, &[("if-none-match", &etag)])
        .await;
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    assert_eq!(answer.header("etag"), etag);
    assert_eq!(
        stage
            .ask(Method::GET, path, &[("if-none-match", "\"other\"")])
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_client_without_indexes_gets_the_image_of_a_nested_index() {
    let stage = Stage::new().await;
    let image = ImageBuilder::new(5).build();
    let nested = Image::index(vec![("linux/amd64", image.clone())], true);
    stage.registry.push(
        "app",
        "multi",
        &Image::index(vec![("linux/amd64", nested)], false),
    );
    let answer = stage
        .get_and_head("/v2/local/app/manifests/multi", &[("accept", OCI_MANIFEST)])
        .await;
    assert_eq!(answer.header("content-type"), OCI_MANIFEST);
    assert_eq!(
        answer.json()["annotations"]["dev.starlift.source.digest"],
        image.digest().to_string()
    );
}

#[tokio::test]
async fn a_login_page_answered_with_200_is_no_manifest() {
    let stage = Stage::new().await;
    stage
        .registry
        .put_manifest("app", "text/html", "<!doctype html>sign in");
    let page = Digest::sha256_of(b"<!doctype html>sign in");
    stage.registry.tag("app", "v1", &page);
    for reference in ["v1", &page.to_string()] {
        assert_eq!(
            stage
                .get(&format!("/v2/local/app/manifests/{reference}"))
                .await
                .status,
            502,
            "{reference}"
        );
    }
    let image = stage.push_app();
    assert_ne!(
        stage.get("/v2/local/app/manifests/v1").await.status,
        502,
        "the page is not remembered"
    );
    drop(image);
}
