//! Failures as clients see them.

use reqwest::Method;
use starlift::oci::Digest;

use super::Stage;

#[tokio::test]
async fn unknown_manifests_and_blobs_are_404_with_their_code() {
    let stage = Stage::new().await;
    stage.push_app();
    let digest = Digest::sha256_of(b"nobody has this");
    let cases = [
        ("/v2/local/app/manifests/v2".to_owned(), "MANIFEST_UNKNOWN"),
        (
            "/v2/local/app/manifests/.INVALID_MANIFEST_NAME".to_owned(),
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("/v2/local/app/manifests/{digest}"),
            "MANIFEST_UNKNOWN",
        ),
        (format!("/v2/local/app/blobs/{digest}"), "BLOB_UNKNOWN"),
        (
            "/v2/local/nothing/manifests/v1".to_owned(),
            "MANIFEST_UNKNOWN",
        ),
    ];
    for (path, code) in cases {
        let answer = stage.get(&path).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, code),
            "{path}"
        );
        assert_eq!(stage.head(&path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn malformed_requests_are_rejected_with_their_code() {
    let stage = Stage::new().await;
    let cases = [
        ("/v2/local/app/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/local/app/manifests/sha256:xyz", 400, "DIGEST_INVALID"),
        ("/v2/local/app/referrers/latest", 400, "DIGEST_INVALID"),
        ("/v2/local/APP/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/local/a%2F%2Fapp/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/local/app/manifests/%ff", 400, "NAME_INVALID"),
        ("/v2/_catalog", 405, "UNSUPPORTED"),
        ("/v2/local/app/blobs/uploads/", 405, "UNSUPPORTED"),
        ("/v2/nothing", 404, "UNSUPPORTED"),
        ("/nothing", 404, "UNSUPPORTED"),
    ];
    for (path, status, code) in cases {
        let answer = stage.get(path).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{path}"
        );
    }
}

#[tokio::test]
async fn writing_is_refused() {
    let stage = Stage::new().await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = stage.ask(method, "/v2/local/app/manifests/v1", &[]).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (405, "UNSUPPORTED")
        );
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
}

#[tokio::test]
async fn the_ping_answers_all_clients() {
    let stage = Stage::new().await;
    for path in ["/v2/", "/v2"] {
        let answer = stage.get_and_head(path, &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            "registry/2.0"
        );
    }
}

#[tokio::test]
async fn upstream_failures_are_mapped_on_purpose() {
    for (upstream, direct, mirror) in [
        (401, 403, 403),
        (403, 403, 403),
        (404, 404, 404),
        (429, 429, 503),
        (500, 502, 502),
    ] {
        let stage = Stage::new().await;
        stage.push_app();
        stage
            .registry
            .on("/manifests/")
            .answer(upstream, &[("retry-after", "0")]);
        let answer = stage.get("/v2/local/app/manifests/v1").await;
        assert_eq!(answer.status, direct, "{upstream}");
        assert_eq!(
            answer.header("www-authenticate"),
            "",
            "no client is asked for credentials that cannot be forwarded"
        );
        let answer = stage.get("/v2/app/manifests/v1?ns=local").await;
        assert_eq!(answer.status, mirror, "{upstream} for a mirror");
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let stage = Stage::new().await;
    let own = stage.get("/v2/").await.header("x-request-id").to_owned();
    assert_eq!(own.len(), 16);
    let kept = stage
        .ask(
            Method::GET,
            "/v2/nothing",
            &[("x-request-id", "from-outside.1")],
        )
        .await;
    assert_eq!(kept.header("x-request-id"), "from-outside.1");
    let replaced = stage
        .ask(Method::GET, "/v2/", &[("x-request-id", "a b")])
        .await;
    assert_eq!(replaced.header("x-request-id").len(), 16);
}
