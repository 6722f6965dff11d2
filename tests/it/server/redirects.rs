//! Blobs from the bucket: 307 to a signed URL, if configured.

use reqwest::Method;
use starlift::oci::Digest;
use starlift::store::Store;

use super::Stage;
use crate::support::s3::S3;

async fn stage(bucket: &S3) -> Stage {
    let store = Store::open(&bucket.config("fleet")).await.unwrap();
    Stage::over(store, |config| config.redirect = true).await
}

#[tokio::test]
async fn a_layer_is_redirected_to_a_signed_url() {
    let bucket = S3::start().await;
    let stage = stage(&bucket).await;
    stage.push_app();
    let converted = stage.get("/v2/local/app/manifests/v1").await.json();
    for descriptor in converted["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&converted["config"]])
    {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = format!("/v2/local/app/blobs/{digest}");
        let answer = stage.get(&path).await;
        assert_eq!(
            (answer.status, answer.digest(), answer.body.len()),
            (307, digest, 0)
        );
        let url = answer.header("location");
        assert!(
            url.starts_with(&bucket.endpoint) && url.contains("X-Amz-Signature="),
            "{url}"
        );
        // Clients send the same headers, without credentials for the server.
        let bytes = reqwest::get(url).await.unwrap().bytes().await.unwrap();
        assert_eq!(Digest::sha256_of(&bytes).to_string(), digest);
        let part = reqwest::Client::new()
            .get(url)
            .header("range", "bytes=3-9")
            .send()
            .await
            .unwrap();
        assert_eq!(part.status(), 206);
        assert_eq!(part.bytes().await.unwrap(), bytes.slice(3..10));
        let head = stage.head(&path).await;
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, bytes.len().to_string().as_str())
        );
    }
}

#[tokio::test]
async fn blobs_that_the_bucket_lacks_are_not_redirected() {
    let bucket = S3::start().await;
    let stage = stage(&bucket).await;
    let image = stage.push_app();
    let layer = &image.layers()[0];
    let path = format!("/v2/local/app/blobs/{}", Digest::sha256_of(layer));
    let answer = stage.ask(Method::GET, &path, &[]).await;
    assert_eq!((answer.status, &answer.body), (200, layer));
    let manifest = stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(manifest.status, 200, "manifests are never redirected");
}

#[tokio::test]
async fn no_signed_url_is_given_for_a_layer_that_the_client_may_not_read() {
    let bucket = S3::start().await;
    let stage = stage(&bucket).await;
    stage.push_app();
    let converted = stage.get("/v2/local/app/manifests/v1").await.json();
    let layer = converted["layers"][0]["digest"].as_str().unwrap();
    let own = stage.get(&format!("/v2/local/app/blobs/{layer}")).await;
    assert_eq!(own.status, 307);
    // The upstream has never shown that this repository holds the layer.
    for headers in [&[][..], &[("range", "bytes=0-9")]] {
        let path = format!("/v2/local/other/blobs/{layer}");
        let answer = stage.ask(Method::GET, &path, headers).await;
        assert!(matches!(answer.status, 403 | 404), "{}", answer.status);
        assert_eq!(answer.header("location"), "");
    }
}

#[tokio::test]
async fn a_signed_url_is_for_one_object_and_for_reading() {
    let bucket = S3::start().await;
    let stage = stage(&bucket).await;
    stage.push_app();
    let converted = stage.get("/v2/local/app/manifests/v1").await.json();
    let layer = converted["layers"][0]["digest"].as_str().unwrap();
    let answer = stage.get(&format!("/v2/local/app/blobs/{layer}")).await;
    let url = reqwest::Url::parse(answer.header("location")).unwrap();
    let query: std::collections::HashMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(query["X-Amz-Expires"], "900");
    assert_eq!(
        query["X-Amz-SignedHeaders"], "host",
        "clients may add a range, and nothing else counts"
    );
    assert!(!url.as_str().contains("secret"), "{url}");
    assert!(
        bucket.object(&url.path()["/images/".len()..]).is_some(),
        "{url}"
    );
    assert_eq!(
        answer.header("cache-control"),
        "",
        "nobody keeps the redirect"
    );
}
