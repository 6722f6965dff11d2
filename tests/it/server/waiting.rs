//! No pull waits for a conversion longer than the limit.

use std::time::Duration;

use reqwest::Method;
use starlift::serve::OnMiss;

use super::{PATIENT, Stage};
use crate::support::registry::Gate;

const PATH: &str = "/v2/local/app/manifests/v1";

#[tokio::test]
async fn the_source_image_is_served_during_the_conversion_and_the_converted_image_after() {
    let stage = Stage::with(|config| config.wait = Duration::from_millis(20)).await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let early = stage.get_and_head(PATH, &[]).await;
    assert_eq!((early.status, early.body), (200, image.bytes.clone()));
    assert!(
        early.headers["warning"]
            .to_str()
            .unwrap()
            .starts_with("299 starlift ")
    );
    gate.reached(1).await;
    gate.open();
    let patient = stage.another(|config| config.wait = PATIENT).await;
    let converted = stage.ask_at(&patient, Method::GET, PATH, &[]).await;
    assert_ne!(converted.digest(), image.digest().to_string());
    let late = stage.get_and_head(PATH, &[]).await;
    assert_eq!(late.digest(), converted.digest());
    assert_eq!(late.header("warning"), "");
}

#[tokio::test]
async fn a_pull_whose_wait_is_over_looks_once_more_for_the_record() {
    let stage = Stage::with(|config| config.wait = Duration::from_millis(20)).await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage
        .registry
        .on("/manifests/")
        .method("GET")
        .times(1)
        .gate(&gate);
    let waiting = tokio::spawn(stage.request(Method::GET, PATH).send());
    gate.reached(1).await;
    let patient = stage.another(|config| config.wait = PATIENT).await;
    let converted = stage.ask_at(&patient, Method::GET, PATH, &[]).await;
    assert_ne!(converted.digest(), image.digest().to_string());
    gate.open();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(
        answer.headers()["docker-content-digest"],
        converted.digest()
    );
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_conversion() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let leaving = tokio::spawn(stage.request(Method::GET, PATH).send());
    gate.reached(1).await;
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    gate.open();
    let converted = stage.get(PATH).await;
    assert_ne!(converted.digest(), image.digest().to_string());
    for layer in image.layers() {
        let digest = starlift::oci::Digest::sha256_of(layer).to_string();
        assert_eq!(
            stage.registry.count("GET", &digest),
            1,
            "each layer is fetched once"
        );
    }
}

#[tokio::test]
async fn many_pulls_are_one_conversion() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let answers = futures::future::join_all((0..32).map(|_| stage.get(PATH))).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 200 && answer.digest() == answers[0].digest())
    );
    assert_ne!(answers[0].digest(), image.digest().to_string());
    assert_eq!(stage.registry.count("GET", "/manifests/"), 1);
    assert_eq!(stage.registry.count("GET", "/blobs/"), image.blobs.len());
}

#[tokio::test]
async fn a_failed_conversion_serves_the_source_image() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    stage.registry.on("/blobs/").wrong_bytes();
    let answer = stage.get(PATH).await;
    assert_eq!((answer.status, &answer.body), (200, &image.bytes));
    assert!(answer.header("warning").contains("failed"));
}

#[tokio::test]
async fn on_miss_can_send_clients_of_a_mirror_to_the_next_host() {
    let stage = Stage::with(|config| {
        config.wait = Duration::ZERO;
        config.on_miss = OnMiss::NotFound;
    })
    .await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    assert_eq!(stage.get("/v2/app/manifests/v1?ns=local").await.status, 404);
    assert_eq!(
        stage.get(PATH).await.body,
        image.bytes,
        "clients without other hosts get the source image"
    );
    gate.open();
}

#[tokio::test]
async fn pulling_a_source_digest_starts_its_conversion() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let path = format!("/v2/local/app/manifests/{}", image.digest());
    assert_eq!(stage.get(&path).await.body, image.bytes);
    gate.reached(1).await;
    gate.open();
}

#[tokio::test]
async fn a_silent_upstream_costs_a_bounded_time() {
    let stage = Stage::with(|config| {
        config.wait = Duration::from_millis(20);
        config.answer_within = Duration::from_millis(40);
    })
    .await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/").gate(&gate);
    for path in [
        PATH.to_owned(),
        format!("/v2/local/app/manifests/{}", image.digest()),
    ] {
        let answer = stage.get(&path).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "UNAVAILABLE"),
            "{path}"
        );
        assert_eq!(stage.head(&path).await.status, 504, "{path}");
    }
    gate.open();
}
