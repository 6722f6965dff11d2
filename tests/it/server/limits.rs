//! Limits on clients, and the shutdown of a server.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use reqwest::Method;
use serde_json::json;
use starlift::convert;
use starlift::oci::{Digest, media_type};
use starlift::profile::MAX_OBSERVATION_BYTES;
use starlift::store::{Store, layer_lease};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Stage;
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::registry::Gate;

#[tokio::test]
async fn one_request_too_many_is_503_with_a_retry_after() {
    let stage = Stage::with(|config| config.max_requests = 1).await;
    let digest = stage.registry.put_blob(vec![7; 1000]);
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let path = format!("/v2/local/app/blobs/{digest}");
    let first = tokio::spawn(stage.request(Method::GET, &path).send());
    gate.reached(1).await;
    let second = stage.get(&path).await;
    assert_eq!(
        (
            second.status,
            second.code().as_str(),
            second.header("retry-after")
        ),
        (503, "UNAVAILABLE", "1")
    );
    assert_eq!(
        stage.get("/healthz").await.status,
        200,
        "health has no limit"
    );
    gate.open();
    assert_eq!(
        first.await.unwrap().unwrap().bytes().await.unwrap().len(),
        1000
    );
    assert_eq!(stage.get(&path).await.status, 200);
}

#[tokio::test]
async fn source_manifests_that_do_not_fit_the_cache_are_fetched_again() {
    const MANIFESTS: usize = 40;
    let stage = Stage::with(|config| config.manifest_cache = ByteSize::kib(64)).await;
    let put = |number: usize| {
        let text = format!("{number}{}", "x".repeat(16_000));
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
            "manifests": [], "annotations": {"text": text}});
        stage
            .registry
            .put_manifest("app", media_type::OCI_INDEX, index.to_string())
    };
    let digests: Vec<Digest> = (0..MANIFESTS).map(put).collect();
    let path = |digest| format!("/v2/local/app/manifests/{digest}");
    let requests = || stage.registry.count("GET", "/manifests/sha256:");
    for _ in 0..2 {
        assert_eq!(stage.get(&path(&digests[0])).await.status, 200);
    }
    assert_eq!(requests(), 1, "one manifest fits");
    for digest in digests.iter().chain(&digests) {
        assert_eq!(stage.get(&path(digest)).await.status, 200);
    }
    let fetched_again = requests() - MANIFESTS;
    assert!(fetched_again >= MANIFESTS - 4, "{fetched_again}");
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_disconnected() {
    let stage = Stage::with(|config| config.header_timeout = Duration::from_millis(50)).await;
    let mut connection = TcpStream::connect(stage.server.address).await.unwrap();
    connection
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        .await
        .unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending_its_body() {
    let stage = Stage::with(|_| {}).await;
    let body = vec![b' '; MAX_OBSERVATION_BYTES + 1];
    let mut connection = TcpStream::connect(stage.server.address).await.unwrap();
    let head = format!(
        "POST /api/v1/profiles/{} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        Digest::sha256_of(b""),
        stage.server.address,
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.peek(&mut [0]).await.unwrap();
    connection.write_all(&body).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Nobody sends another request after such a body.
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let stage = Stage::new().await;
    let long = "x".repeat(200 << 10);
    let sent = stage
        .request(Method::GET, "/v2/")
        .header("x-long", long)
        .send()
        .await;
    assert!(sent.is_err() || sent.unwrap().status() == 431);
    assert_eq!(stage.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_running_answer_outlives_the_order_to_stop() {
    let mut stage = Stage::new().await;
    let digest = stage.registry.put_blob(vec![9; 300_000]);
    let gate = Gate::new();
    stage
        .registry
        .on("/blobs/")
        .method("GET")
        .gate_after(&gate, 1000);
    let response = stage
        .request(Method::GET, &format!("/v2/local/app/blobs/{digest}"))
        .send()
        .await
        .unwrap();
    gate.reached(1).await;
    stage.server.shutdown.cancel();
    gate.open();
    assert_eq!(response.bytes().await.unwrap().len(), 300_000);
    (&mut stage.server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn http_2_without_tls_is_spoken() {
    let stage = Stage::new().await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let answer = client
        .get(format!("http://{}/v2/", stage.server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.version()),
        (200, reqwest::Version::HTTP_2)
    );
}

/// More than the socket's buffers on both sides can hold.
const MORE_THAN_BUFFERS: usize = 32 << 20;

#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected() {
    let mut stage = Stage::with(|config| {
        config.write_timeout = Duration::from_millis(200);
        config.max_requests = 1;
    })
    .await;
    let digest = stage.registry.put_blob(vec![7; MORE_THAN_BUFFERS]);
    let path = format!("/v2/local/app/blobs/{digest}");
    let mut connection = TcpStream::connect(stage.server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    // The stopped client frees its place once its connection is closed.
    let stalled = clients_stalled();
    eventually_async("the client is seen to stall", async || {
        clients_stalled() > stalled
    })
    .await;
    stage.server.shutdown.cancel();
    (&mut stage.server.ended).await.unwrap().unwrap();
    let mut taken = Vec::new();
    let end = connection.read_to_end(&mut taken).await;
    assert!(
        end.is_err() || taken.len() < MORE_THAN_BUFFERS,
        "the whole body was received"
    );
}

#[tokio::test]
async fn a_slow_client_is_not_a_stalled_one() {
    let limit = Duration::from_secs(2);
    let stage = Stage::with(|config| config.write_timeout = limit).await;
    let digest = stage.registry.put_blob(vec![7; MORE_THAN_BUFFERS]);
    let path = format!("/v2/local/app/blobs/{digest}");
    let mut response = stage.request(Method::GET, &path).send().await.unwrap();
    let (mut taken, mut next_pause) = (0, 0);
    while let Some(bytes) = response.chunk().await.unwrap() {
        taken += bytes.len();
        if taken >= next_pause {
            // Slow on purpose: the eight pauses together are longer than the limit.
            tokio::time::sleep(limit / 7).await;
            next_pause += MORE_THAN_BUFFERS / 8;
        }
    }
    assert_eq!(taken, MORE_THAN_BUFFERS);
}

#[tokio::test]
async fn an_http_2_client_that_reads_nothing_is_disconnected() {
    let stage = Stage::with(|config| {
        config.write_timeout = Duration::from_millis(100);
        // A lower limit would close the connection for another reason.
        config.header_timeout = Duration::from_secs(3600);
    })
    .await;
    let mut connection = TcpStream::connect(stage.server.address).await.unwrap();
    // The preface and empty settings. The client never answers the pings that follow.
    connection
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut taken = Vec::new();
    connection.read_to_end(&mut taken).await.unwrap();
    assert!(!taken.is_empty());
}

fn clients_stalled() -> u64 {
    starlift::telemetry::metrics().clients_stalled.get()
}

#[tokio::test]
async fn an_answer_that_never_ends_is_cut_after_the_grace() {
    let mut stage = Stage::with(|config| config.shutdown_grace = Duration::from_millis(50)).await;
    let digest = stage.registry.put_blob(vec![9; 300_000]);
    let gate = Gate::new();
    stage
        .registry
        .on("/blobs/")
        .method("GET")
        .gate_after(&gate, 1000);
    let response = stage
        .request(Method::GET, &format!("/v2/local/app/blobs/{digest}"))
        .send()
        .await
        .unwrap();
    gate.reached(1).await;
    stage.server.shutdown.cancel();
    (&mut stage.server.ended).await.unwrap().unwrap();
    assert!(response.bytes().await.is_err(), "the gate was never opened");
}

/// Sends enough requests that any work which is not held back would have begun.
async fn settle(stage: &Stage) {
    for _ in 0..50 {
        assert_eq!(stage.get("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn no_more_layers_are_converted_at_once_than_configured() {
    let config = convert::Config {
        layers_at_once: NonZeroUsize::MIN,
        ..convert::Config::default()
    };
    let stage = Stage::converting(Store::in_memory(), &config, |_| {}).await;
    stage
        .registry
        .push("app", "v1", &ImageBuilder::new(1).layers(3).build());
    let gate = Gate::new();
    // The first blob is the configuration.
    stage
        .registry
        .on("/blobs/")
        .method("GET")
        .skip(1)
        .gate(&gate);
    let pull = tokio::spawn(
        stage
            .request(Method::GET, "/v2/local/app/manifests/v1")
            .send(),
    );
    gate.reached(1).await;
    settle(&stage).await;
    assert_eq!(stage.registry.count("GET", "/blobs/"), 2);
    gate.open();
    assert!(
        !pull
            .await
            .unwrap()
            .unwrap()
            .headers()
            .contains_key("warning")
    );
}

#[tokio::test]
async fn no_more_images_are_converted_at_once_than_configured() {
    let config = convert::Config {
        images_at_once: NonZeroUsize::MIN,
        ..convert::Config::default()
    };
    let stage = Stage::converting(Store::in_memory(), &config, |_| {}).await;
    let gate = Gate::new();
    stage.registry.on("/blobs/").method("GET").gate(&gate);
    let pulls: Vec<_> = (0..3)
        .map(|seed| {
            stage.registry.push(
                "app",
                &format!("v{seed}"),
                &ImageBuilder::new(seed).layers(1).build(),
            );
            tokio::spawn(
                stage
                    .request(Method::GET, &format!("/v2/local/app/manifests/v{seed}"))
                    .send(),
            )
        })
        .collect();
    gate.reached(1).await;
    settle(&stage).await;
    assert_eq!(stage.registry.count("GET", "/blobs/"), 1);
    gate.open();
    for pull in pulls {
        assert!(
            !pull
                .await
                .unwrap()
                .unwrap()
                .headers()
                .contains_key("warning")
        );
    }
}

#[tokio::test]
async fn a_lease_that_is_never_released_is_waited_for_as_long_as_configured() {
    let config = convert::Config {
        lease_wait: Duration::from_millis(50),
        ..convert::Config::default()
    };
    let stage = Stage::converting(Store::in_memory(), &config, |_| {}).await;
    let image = stage.push_app();
    for layer in image.layers() {
        let name = layer_lease(stage.converter.generation(), &Digest::sha256_of(layer));
        // The forgotten lease is renewed for as long as the test runs.
        std::mem::forget(stage.store.lease(&name).await.unwrap().unwrap());
    }
    let answer = stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!((answer.status, &answer.body), (200, &image.bytes));
    assert!(answer.headers.contains_key("warning"));
}
