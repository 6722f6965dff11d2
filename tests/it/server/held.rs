//! The memory that a server takes for the largest client requests, measured from outside.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;

use crate::support::place::{Place, fetch};
use crate::support::registry::Registry;
use crate::support::starlift::Starlift;

/// The number of simultaneous clients.
const CLIENTS: usize = 100;
/// The limit for the whole process: budgets of 256 MiB and 64 MiB, a cache of 64 MiB, buffers of
/// the clients, and the rest of the server.
const LIMIT: u64 = 700 << 20;

/// Sends a request and reads only the first bytes of its answer.
fn ask(server: &Starlift, request: &str) -> TcpStream {
    let mut connection = TcpStream::connect(server.address).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 12];
    connection.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 "), "{first:?}");
    connection
}

/// Returns a unique document near the limit of 4 MiB, which passes through.
fn large_manifest(number: usize) -> Vec<u8> {
    let empty = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.large",
        "config": empty,
        "layers": [empty],
        "annotations": { "number": number.to_string(), "text": "x".repeat((4 << 20) - 1000) },
    });
    serde_json::to_vec(&manifest).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_hold_a_bounded_amount_of_memory() {
    let registry = Registry::start().await;
    for number in 0..CLIENTS {
        let digest = registry.put_manifest(
            "app",
            "application/vnd.oci.image.manifest.v1+json",
            large_manifest(number),
        );
        registry.tag("app", &format!("v{number}"), &digest);
    }
    let blob = registry.put_blob(vec![7; 32 << 20]);
    let upstream = format!("local={}", registry.url());
    let measured = tokio::task::spawn_blocking(move || {
        let place = Place::with(&[]).unwrap();
        let server = Starlift::start(&place, &["--upstream", &upstream]);
        let host = server.address;
        let mut held = Vec::new();
        for number in 0..CLIENTS {
            let request =
                format!("GET /v2/local/app/manifests/v{number} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            held.push(ask(&server, &request));
        }
        let parts: Vec<_> = (0..1000)
            .map(|at| format!("{}-{}", at * 33_000, at * 33_000 + 32_000))
            .collect();
        let parts = parts.join(",");
        for _ in 0..CLIENTS {
            let request = format!(
                "GET /v2/local/app/blobs/{blob} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={parts}\r\n\r\n"
            );
            held.push(ask(&server, &request));
        }
        assert!(fetch(&server.url("/healthz")).is_some());
        let peak = server.daemon.peak_memory();
        drop(held);
        peak
    });
    let peak = measured.await.unwrap();
    assert!(peak < LIMIT, "{} MiB", peak >> 20);
}
