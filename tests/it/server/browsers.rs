//! Foreign web pages and foreign host names get no usable answers.

use reqwest::Method;
use serde_json::Value;
use starlift::store::Store;

use super::{Answer, Stage};

const IMAGE_TAG: [(&str, &str); 4] = [
    ("accept", "image/avif,image/webp,*/*;q=0.8"),
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-mode", "no-cors"),
    ("sec-fetch-dest", "image"),
];

fn is_sandboxed(answer: &Answer) -> bool {
    let policy = answer.header("content-security-policy");
    answer.header("x-content-type-options") == "nosniff"
        && policy.contains("default-src 'none'")
        && policy
            .split(';')
            .any(|directive| directive.trim() == "sandbox")
}

async fn conversions(stage: &Stage) -> Value {
    stage.get("/api/v1/status").await.json()["conversions"].clone()
}

#[tokio::test]
async fn no_answer_but_the_page_is_one_to_a_browser() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let blob = stage
        .registry
        .put_blob(b"<html><script>alert(1)</script>".to_vec());
    let paths = [
        "/v2/".to_owned(),
        "/v2/local/app/manifests/v1".to_owned(),
        "/v2/local/app/manifests/v9".to_owned(),
        format!("/v2/local/app/manifests/{}", image.digest()),
        format!("/v2/local/app/blobs/{blob}"),
        format!("/v2/local/app/referrers/{}", image.digest()),
        "/v2/local/app/tags/list".to_owned(),
        "/api/v1/status".to_owned(),
        "/api/v1/conversions".to_owned(),
        "/metrics".to_owned(),
        "/healthz".to_owned(),
        "/nothing".to_owned(),
    ];
    for path in paths {
        let answer = stage.get(&path).await;
        assert!(is_sandboxed(&answer), "{path}: {:?}", answer.headers);
        assert!(!answer.header("content-type").contains("html"), "{path}");
    }
    let page = stage.get("/").await;
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("default-src 'none'") && policy.contains("style-src 'sha256-"),
        "{policy}"
    );
    assert!(
        !policy.contains("unsafe") && !policy.contains("script"),
        "{policy}"
    );
    assert_eq!(page.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn a_document_of_an_unknown_type_is_octets_or_none() {
    let stage = Stage::new().await;
    let html = b"<html><script>fetch('/api/v1/status')</script></html>";
    for media_type in [
        "text/html; charset=utf-8",
        "image/svg+xml",
        "application/xhtml+xml",
    ] {
        let digest = stage
            .registry
            .put_manifest("app", media_type, html.to_vec());
        stage.registry.tag("app", "odd", &digest);
        for reference in ["odd", &digest.to_string()] {
            let answer = stage
                .get(&format!("/v2/local/app/manifests/{reference}"))
                .await;
            let content_type = answer.header("content-type");
            let is_harmless =
                content_type == "application/octet-stream" || content_type == "application/json";
            assert!(is_harmless, "{media_type} became {content_type}");
            assert!(is_sandboxed(&answer));
        }
    }
}

#[tokio::test]
async fn an_image_tag_on_a_foreign_page_converts_nothing() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    for reference in ["v1", &image.digest().to_string()] {
        let path = format!("/v2/local/app/manifests/{reference}");
        assert_eq!(stage.ask(Method::GET, &path, &IMAGE_TAG).await.status, 403);
        // An old browser that sends no more than its language gets the source image.
        let answer = stage
            .ask(Method::GET, &path, &[("accept-language", "en")])
            .await;
        assert_eq!(
            (answer.status, answer.digest()),
            (200, image.digest().to_string().as_str())
        );
    }
    assert_eq!(conversions(&stage).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn requests_for_foreign_host_names_are_rejected() {
    let stage = Stage::new().await;
    stage.push_app();
    let rebound = ("host", "rebind.evil.example");
    for path in [
        "/",
        "/api/v1/status",
        "/api/v1/conversions",
        "/metrics",
        "/v2/local/app/manifests/v1",
    ] {
        let answer = stage.ask(Method::GET, path, &[rebound]).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (421, "DENIED"),
            "{path}"
        );
    }
    let post = [
        rebound,
        ("origin", "http://rebind.evil.example"),
        ("content-type", "application/json"),
    ];
    assert_eq!(
        stage
            .ask(Method::POST, "/api/v1/conversions", &post)
            .await
            .status,
        421
    );
    assert_eq!(
        stage
            .ask(Method::GET, "/", &[("host", "\"><script>")])
            .await
            .status,
        400
    );
    assert_eq!(
        stage.ask(Method::GET, "/healthz", &[rebound]).await.status,
        200
    );
    assert_eq!(conversions(&stage).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_foreign_page_has_no_effect() {
    let stage = Stage::new().await;
    stage.push_app();
    let json = ("content-type", "application/json");
    let origins = [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ];
    for mark in origins {
        let answer = stage
            .ask(Method::POST, "/api/v1/conversions", &[json, mark])
            .await;
        assert_eq!(answer.status, 403, "{mark:?}");
    }
    let preflight = [
        ("origin", "http://evil.example"),
        ("access-control-request-method", "POST"),
    ];
    let answer = stage
        .ask(Method::OPTIONS, "/api/v1/conversions", &preflight)
        .await;
    assert!(
        answer.status >= 400
            && answer
                .headers
                .keys()
                .all(|name| !name.as_str().starts_with("access-control"))
    );
}

#[tokio::test]
async fn error_messages_are_sentences_without_internal_details() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().join("the-secret-store").display().to_string();
    let config = starlift::store::Config {
        location: location.clone(),
        ..Default::default()
    };
    let stage = Stage::over(Store::open(&config).await.unwrap(), |_| {}).await;
    stage.push_app();
    for part in ["layers", "images"] {
        let _absent = std::fs::remove_dir_all(folder.path().join("the-secret-store").join(part));
        std::fs::write(
            folder.path().join("the-secret-store").join(part),
            "not a folder",
        )
        .unwrap();
    }
    for reference in [
        "local/app:v1",
        "local/app:v9",
        "localhost/x:1",
        "missing.invalid/x:1",
    ] {
        let body = format!(r#"{{"reference": "{reference}"}}"#);
        let sent = stage
            .request(Method::POST, "/api/v1/conversions")
            .header("content-type", "application/json");
        let job: Value = sent.body(body).send().await.unwrap().json().await.unwrap();
        let job = super::api::ended(
            &stage,
            &format!(
                "/api/v1/conversions/{}",
                job["conversion"]["id"].as_str().unwrap()
            ),
        )
        .await;
        assert_eq!(job["state"], "failed", "{reference}: {job}");
        assert!(
            job["error"].as_str().is_some_and(|error| !error.is_empty()),
            "{job}"
        );
    }
    for path in [
        "/api/v1/status",
        "/api/v1/conversions",
        "/",
        "/v2/local/app/manifests/v1",
    ] {
        let text = String::from_utf8_lossy(&stage.get(path).await.body).into_owned();
        for inside in [
            "secret-store",
            "127.0.0.1:",
            "private",
            "No such file",
            "os error",
        ] {
            let is_own = path == "/" && inside == "127.0.0.1:";
            assert!(
                is_own || !text.contains(inside),
                "{path} names {inside}: {text}"
            );
        }
    }
}
