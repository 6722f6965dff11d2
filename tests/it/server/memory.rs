//! The memory cost of hostile documents, measured as the peak of a server process.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use starlift::oci::{Digest, media_type};

use crate::support::eventually::eventually;
use crate::support::image::{Image, ImageBuilder};
use crate::support::place::Place;
use crate::support::registry::{Gate, Registry};
use crate::support::starlift::Starlift;

/// A size close to the limit for manifests.
const LARGE: usize = 4_000_000;
/// The limit for four manifests of 4 MiB: their bytes, in two caches, and one or two parsed trees
/// at a time. Kept as parsed trees, they would take more than twice as much.
const MOST: u64 = 256 << 20;

fn wide(seed: u64, value: &str) -> Image {
    let image = ImageBuilder::new(seed).layers(1).files(1).build();
    let mut text = image.document().to_string();
    text.pop();
    let values = vec![value; LARGE / (value.len() + 1)].join(",");
    Image {
        bytes: format!("{text},\"x\":[{values}]}}").into(),
        ..image
    }
}

/// Pulls `tag` and reads only the beginning of the answer.
fn pull(server: &Starlift, tag: &str) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(server.address)?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        connection,
        "GET /v2/local/app/manifests/{tag} HTTP/1.1\r\nHost: {}\r\n\r\n",
        server.address
    )?;
    std::io::Read::read(&mut connection, &mut [0; 1]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_many_values_cost_little_while_they_wait() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let registry = Registry::start().await;
    let gate = Gate::new();
    registry.on("/blobs/").gate(&gate);
    for (number, value) in (0..).zip(["0", "{}", "\"\"", "[]"]) {
        registry.push("app", &number.to_string(), &wide(number, value));
    }
    let upstream = format!("local={}", registry.url());
    let server = Starlift::start(&place, &["--upstream", &upstream]);
    let before = server.daemon.memory_now();
    for tag in 0..4 {
        pull(&server, &tag.to_string()).unwrap();
    }
    let peak = server.daemon.peak_memory() - before;
    assert!(peak < MOST, "{} MiB", peak >> 20);
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_many_large_children_costs_little() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let registry = Registry::start().await;
    let gate = Gate::new();
    registry.on("/blobs/").gate(&gate);
    let child = |number: u64| {
        let image = ImageBuilder::new(number).layers(1).files(1).build();
        let mut document = image.document();
        document["annotations"] = json!({"p": "p".repeat(1 << 20)});
        Image {
            bytes: document.to_string().into(),
            ..image
        }
    };
    let index = Image::index(
        (0..16)
            .map(|number| ("linux/amd64", child(number)))
            .collect(),
        false,
    );
    let digest: Digest = registry.push("app", "index", &index);
    assert_eq!(
        registry.manifest("app", &digest.to_string()).unwrap().0,
        media_type::OCI_INDEX
    );
    let server = Starlift::start(
        &place,
        &[
            "--upstream",
            &format!("local={}", registry.url()),
            "--wait",
            "100ms",
        ],
    );
    let before = server.daemon.memory_now();
    pull(&server, "index").unwrap();
    // Four children are in progress and wait for their configurations.
    eventually("children are fetched", || {
        registry.count("GET", "/blobs/") >= 4
    });
    let peak = server.daemon.peak_memory() - before;
    assert!(peak < MOST / 4, "{} MiB", peak >> 20);
    assert!(
        registry.count("GET", "/manifests/sha256") <= 6,
        "{}",
        registry.count("GET", "/manifests/sha256")
    );
    gate.open();
}
