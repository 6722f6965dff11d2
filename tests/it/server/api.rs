//! Health, metrics, the page, and conversions in advance of a pull.

use reqwest::Method;
use serde_json::Value;

use super::{Answer, Stage};
use crate::support::eventually::eventually_some;

async fn start(stage: &Stage, body: &'static str) -> Answer {
    let sent = stage
        .request(Method::POST, "/api/v1/conversions")
        .header("content-type", "application/json")
        .body(body);
    let response = sent.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer {
        status,
        headers,
        body: response.bytes().await.unwrap(),
    }
}

/// Waits until the conversion has ended, and returns it.
pub(super) async fn ended(stage: &Stage, location: &str) -> Value {
    eventually_some("the conversion has ended", async || {
        let job = stage.get(location).await.json()["conversion"].clone();
        (!job["ended"].is_null()).then_some(job)
    })
    .await
}

#[tokio::test]
async fn a_conversion_asked_for_is_done_before_the_pull() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let answer = start(&stage, r#"{"reference": "local/app:v1"}"#).await;
    assert_eq!(answer.status, 202);
    let job = ended(&stage, answer.header("location")).await;
    assert_eq!(
        (&job["state"], &job["source"]),
        (
            &Value::from("done"),
            &Value::from(image.digest().to_string())
        )
    );
    stage.registry.forget_requests();
    let pulled = stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(job["converted"], pulled.digest());
    assert_eq!(stage.registry.count("GET", ""), 0);
    let listed = stage.get("/api/v1/conversions").await.json();
    assert_eq!(listed["conversions"][0]["reference"], "local/app:v1");
    let status = stage.get("/api/v1/status").await.json();
    assert_eq!(
        status["conversions"][0]["source"],
        image.digest().to_string()
    );
}

#[tokio::test]
async fn a_conversion_of_an_unknown_image_fails_with_the_reason() {
    let stage = Stage::new().await;
    let answer = start(&stage, r#"{"reference": "local/app:v9"}"#).await;
    let job = ended(&stage, answer.header("location")).await;
    assert_eq!(job["state"], "failed");
    assert!(job["error"].as_str().unwrap().contains("does not have it"));
}

#[tokio::test]
async fn the_api_takes_nothing_but_its_json() {
    let stage = Stage::new().await;
    for body in [
        "",
        "[]",
        "{}",
        r#"{"reference": 1}"#,
        r#"{"reference": "A"}"#,
        r#"{"reference": "a", "b": 1}"#,
    ] {
        assert_eq!(start(&stage, body).await.status, 400, "{body}");
    }
    let text = stage
        .request(Method::POST, "/api/v1/conversions")
        .body(r#"{"reference": "a"}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(text.status(), 415);
    assert_eq!(stage.get("/api/v1/conversions/none").await.status, 404);
}

#[tokio::test]
async fn health_metrics_and_page_answer() {
    let stage = Stage::with(|config| config.hosts = vec!["images.example".to_owned()]).await;
    stage.push_app();
    stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(stage.get("/healthz").await.status, 200);
    assert_eq!(stage.get("/readyz").await.json()["ready"], true);
    let metrics = stage.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(
        metrics
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    assert!(
        text.contains(r#"starlift_manifests_total{answer="converted"}"#),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"));
    let page = stage
        .ask(Method::GET, "/", &[("host", "images.example:8080")])
        .await;
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(text.contains("images.example:8080/docker.io/library/nginx"));
    assert!(text.contains("local/app") && !text.contains("{{"), "{text}");
}
