//! The three ways to name an upstream over HTTP.

use super::Stage;
use crate::support::image::ImageBuilder;

#[tokio::test]
async fn prefix_namespace_and_header_name_the_same_image() {
    let stage = Stage::new().await;
    stage.push_app();
    let host = stage.registry.host();
    let by_prefix = stage.get("/v2/local/app/manifests/v1").await;
    let by_namespace = stage.get("/v2/app/manifests/v1?ns=local").await;
    let by_host = stage
        .get(&format!(
            "/v2/app/manifests/v1?ns={}",
            host.replace(':', "%3A")
        ))
        .await;
    let by_header = stage
        .ask(
            reqwest::Method::GET,
            "/v2/app/manifests/v1",
            &[("oci-namespace", "local")],
        )
        .await;
    let by_both = stage.get("/v2/local/app/manifests/v1?ns=local").await;
    for answer in [&by_prefix, &by_namespace, &by_host, &by_header, &by_both] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.digest(), by_prefix.digest());
    }
}

#[tokio::test]
async fn the_prefix_goes_before_the_namespace_and_that_before_the_header() {
    let stage = Stage::new().await;
    stage.push_app();
    let other = ImageBuilder::new(9).build();
    stage.registry.push("local/app", "v1", &other);
    let path = "/v2/local/app/manifests/v1?ns=unknown.invalid";
    let prefixed = stage
        .ask(
            reqwest::Method::GET,
            path,
            &[("oci-namespace", "unknown.invalid")],
        )
        .await;
    assert_eq!(prefixed.status, 200);
    let path = "/v2/app/manifests/v1?ns=local";
    let named = stage
        .ask(
            reqwest::Method::GET,
            path,
            &[("oci-namespace", "unknown.invalid")],
        )
        .await;
    assert_eq!(named.digest(), prefixed.digest());
}

#[tokio::test]
async fn a_namespace_is_looked_up_and_not_dialled() {
    let stage = Stage::new().await;
    for namespace in [
        "127.0.0.1:1",
        "169.254.169.254",
        "[::1]:80",
        "not%20a%20host",
        "a/b",
    ] {
        let answer = stage
            .get(&format!("/v2/app/manifests/v1?ns={namespace}"))
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "NAME_UNKNOWN"),
            "{namespace}"
        );
    }
    let by_name = stage.get("/v2/app/manifests/v1?ns=localhost").await;
    assert_eq!(
        (by_name.status, by_name.code().as_str()),
        (403, "DENIED"),
        "the rule applies to the address that the name resolves to"
    );
}
