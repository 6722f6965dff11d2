//! What hostile clients and upstreams cost a server.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use reqwest::{Client, Response};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use serde_json::json;
use starlift::oci::{Digest, media_type};
use starlift::profile::{MAX_OBSERVATION_BYTES, Stack};

use crate::support::eventually::eventually;
use crate::support::hostile::{self, DOCUMENT, Full, filled};
use crate::support::image::ImageBuilder;
use crate::support::place::Place;
use crate::support::registry::{Auth, Registry, TokenAuth};
use crate::support::starlift::Starlift;

const MIB: u64 = 1 << 20;
const PATIENT: Duration = Duration::from_secs(120);

/// A server process, its upstream `local`, and the memory that it had after its start.
struct Hostile {
    registry: Registry,
    server: Starlift,
    client: Client,
    before: u64,
    _place: Place,
}

impl Hostile {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(flags: &[&str]) -> Self {
        let place = Place::with(&["curl"]).unwrap();
        let registry = Registry::start().await;
        let upstream = format!("local={}", registry.url());
        let flags = [&["--upstream", &upstream], flags].concat();
        let server = Starlift::start(&place, &flags);
        let before = server.daemon.memory_now();
        // An error means that a provider is installed already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(PATIENT).build().unwrap();
        Self {
            registry,
            server,
            client,
            before,
            _place: place,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(self.server.url(path)).send().await.unwrap()
    }

    /// Sends these requests at once and reads their answers to the end.
    async fn get_all(&self, paths: impl Iterator<Item = String>) {
        let answers = paths.map(|path| async move { self.get(&path).await.bytes().await });
        drop(join_all(answers).await);
    }

    /// Sends a request and reads nothing of its answer.
    fn ask(&self, path: &str) -> TcpStream {
        ask(
            self.server.address,
            &format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
                self.server.address
            ),
        )
    }

    /// Asserts that the process never had more than this beyond what it has at rest.
    fn assert_peak_below(&self, mib: u64) {
        let peak = self.server.daemon.peak_memory().saturating_sub(self.before);
        println!("{} MiB of {mib}", peak / MIB);
        assert!(peak < mib * MIB, "{} MiB of {mib}", peak / MIB);
        assert!(
            self.server.daemon.memory_now() > 0,
            "the server is still there"
        );
    }
}

/// Sends `request` over a connection whose receive buffer is as small as possible, so that what is
/// not read stays in the server.
fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    connect(&socket, &address).unwrap();
    let mut connection = TcpStream::from(socket);
    connection.write_all(request.as_bytes()).unwrap();
    connection
}

/// Waits until the server has answered as many requests as it could: until its memory, which is
/// measured here, has not grown for a second.
fn until_it_rests(server: &Starlift) {
    let (mut last, mut calm) = (0, 0);
    eventually("the server rests", || {
        let now = server.daemon.memory_now();
        calm = if now > last { 0 } else { calm + 1 };
        last = last.max(now);
        calm >= 50
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_manifests_by_digest_cost_the_cache_and_the_budgets() {
    let hostile = Hostile::start().await;
    let mut digests = Vec::new();
    for manifest in hostile::artifacts(64) {
        let registry = &hostile.registry;
        digests.push(registry.put_manifest("app", media_type::OCI_MANIFEST, manifest));
    }
    let hostile = &hostile;
    stream::iter(digests)
        .for_each_concurrent(4, |digest| async move {
            let path = format!("/v2/local/app/manifests/{digest}");
            drop(hostile.get(&path).await.bytes().await);
        })
        .await;
    // The cache of 64 MiB, conversions that wait with their manifests, and the answers.
    hostile.assert_peak_below(64 + 128 + 48);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_the_most_children_costs_its_weight() {
    let hostile = Hostile::start_with(&["--wait", "1s"]).await;
    for number in 0..4 {
        let index = hostile::wide_index(number * 100_000);
        let digest = hostile
            .registry
            .put_manifest("app", media_type::OCI_INDEX, index);
        hostile.registry.tag("app", &format!("v{number}"), &digest);
    }
    hostile
        .get_all((0..4).map(|number| format!("/v2/local/app/manifests/v{number}")))
        .await;
    hostile.assert_peak_below(256);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_of_many_values_cost_their_weight() {
    let hostile = Hostile::start_with(&["--wait", "5s"]).await;
    for number in 0..8 {
        let image = ImageBuilder::new(number).layers(1).files(1).build();
        let image = hostile::with_wide_configuration(&image);
        hostile.registry.push("app", &format!("v{number}"), &image);
    }
    hostile
        .get_all((0..8).map(|number| format!("/v2/local/app/manifests/v{number}")))
        .await;
    assert!(hostile.registry.count("GET", "/blobs/") >= 8);
    hostile.assert_peak_below(256);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_the_most_tags_cost_little_while_nobody_reads_them() {
    let hostile = Hostile::start().await;
    // In order, so that a page can be passed on, and out of order, so that all pages are gathered.
    for (repository, is_sorted) in [("sorted", true), ("mixed", false)] {
        let page = filled(
            DOCUMENT,
            r#"{"name":"app","tags":["#,
            "]}",
            |number, text| {
                let number = if is_sorted { number } else { 0xf_ffff - number };
                write!(text, "\"{number:05x}\"").unwrap();
            },
        );
        let link = format!("</v2/{repository}/tags/list?next=x>; rel=\"next\"");
        hostile
            .registry
            .on(&format!("/{repository}"))
            .reply(200, &[("link", &link)], page);
    }
    let mut held = Vec::new();
    for number in 0..24 {
        for repository in ["sorted", "mixed"] {
            held.push(hostile.ask(&format!("/v2/local/{repository}{number}/tags/list")));
        }
    }
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(320);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_the_most_referrers_cost_little_while_nobody_reads_them() {
    let hostile = Hostile::start().await;
    let start = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#,
        media_type::OCI_INDEX
    );
    let page = filled(DOCUMENT, &start, "]}", |number, text| {
        let digest = Digest::sha256_of(&number.to_le_bytes());
        let start = format!(
            r#"{{"mediaType":"a","digest":"{digest}","size":1,"artifactType":"b","annotations":{{"#
        );
        *text = filled(60_000, &start, "}}", |number, text| {
            write!(text, r#""{number:x}":"""#).unwrap();
        });
    });
    let headers = [
        ("content-type", media_type::OCI_INDEX),
        ("link", "</v2/app/referrers/next>; rel=\"next\""),
    ];
    hostile
        .registry
        .on("/referrers/")
        .reply(200, &headers, page);
    let held: Vec<_> = (0..48_u32)
        .map(|number| {
            let digest = Digest::sha256_of(&number.to_le_bytes());
            hostile.ask(&format!("/v2/local/app/referrers/{digest}"))
        })
        .collect();
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(400);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_tokens_of_many_repositories_cost_their_cache() {
    let hostile = Hostile::start().await;
    hostile
        .registry
        .require(Auth::Token(TokenAuth::anonymous()));
    let token = "t".repeat(31 << 10);
    let answer = json!({"token": token, "access_token": token, "refresh_token": token});
    hostile
        .registry
        .on("/token")
        .reply(200, &[], answer.to_string());
    let hostile = &hostile;
    stream::iter(0..1500)
        .for_each_concurrent(32, |number| async move {
            let path = format!("/v2/local/repository{number}/tags/list");
            drop(hostile.get(&path).await);
        })
        .await;
    assert!(hostile.registry.count("GET", "/token") >= 1500);
    hostile.assert_peak_below(128);
}

/// Returns the layer set digest of the tag `v1`.
async fn stack(hostile: &Hostile) -> Stack {
    let answer = hostile.get("/v2/local/app/manifests/v1").await;
    let manifest: serde_json::Value = answer.json().await.unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let digests: Vec<Digest> = layers
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().parse().unwrap())
        .collect();
    Stack::of(&digests)
}

async fn post(hostile: &Hostile, path: &str, document: String) -> u16 {
    let request = hostile
        .client
        .post(hostile.server.url(path))
        .header("content-type", "application/json")
        .body(document);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_observations_of_many_senders_cost_their_weight() {
    let hostile = Hostile::start_with(&["--wait", "25s"]).await;
    let image = ImageBuilder::new(1).layers(1).build();
    hostile.registry.push("app", "v1", &image);
    let path = format!("/api/v1/profiles/{}", stack(&hostile).await);
    let start = r#"{"version":1,"files":[{"layer":0,"path":"layer0/file1","extents":["#;
    let parts = filled(MAX_OBSERVATION_BYTES, start, "]}]}", |_, text| {
        text.push_str("[0,1]");
    });
    let files = filled(
        MAX_OBSERVATION_BYTES,
        r#"{"version":1,"files":["#,
        "]}",
        |number, text| {
            write!(text, r#"{{"layer":0,"path":"{number:0100}"}}"#).unwrap();
        },
    );
    let posts = (0..64).map(|number| {
        let document = if number % 2 == 0 { &parts } else { &files };
        post(&hostile, &path, document.clone())
    });
    let statuses = join_all(posts).await;
    assert!(statuses.contains(&202), "{statuses:?}");
    hostile.assert_peak_below(256);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_notifications_cost_their_weight() {
    let folder = tempfile::tempdir().unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    let (file, config) = (folder.path().join("secret"), folder.path().join("config"));
    std::fs::write(&file, secret).unwrap();
    let source = format!(
        "[[serve.notifications]]\nname = \"a\"\nupstream = \"local\"\nsecret_file = {file:?}\n"
    );
    std::fs::write(&config, source).unwrap();
    let hostile = Hostile::start_with(&["--config", config.to_str().unwrap()]).await;
    let url = hostile.server.url("/api/v1/notifications/a");
    let full = |start: &str, piece: &str| {
        let mut text = start.to_owned();
        while text.len() + piece.len() < 1 << 20 {
            text.push_str(piece);
        }
        text
    };
    let bodies = [
        full("{\"events\":[{}", ",{}"),
        full("{\"events\":[", "["),
        full(
            "{\"type\":\"PUSH_ARTIFACT\",\"event_data\":{\"resources\":[{}",
            ",{\"tag\":\"a\"}",
        ),
        full(
            "{\"specversion\":\"1.0\",\"type\":\"image.pushed\",\"data\":{\"a\":[1",
            ",1",
        ),
    ];
    let posts = (0..128).map(|number| {
        let request = hostile.client.post(&url).bearer_auth(secret);
        request.body(bodies[number % bodies.len()].clone()).send()
    });
    let answers = join_all(posts).await;
    let statuses: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap().status().as_u16())
        .collect();
    assert!(
        statuses.iter().all(|status| [400, 503].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&400), "{statuses:?}");
    hostile.assert_peak_below(150);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_profiles_cost_little_while_nobody_reads_them() {
    const FILES: usize = 16_000;
    let hostile = Hostile::start_with(&["--wait", "25s"]).await;
    let image = ImageBuilder::new(1)
        .layers(1)
        .files(FILES)
        .max_file(1)
        .build();
    hostile.registry.push("app", "v1", &image);
    let path = format!("/api/v1/profiles/{}", stack(&hostile).await);
    let files: Vec<_> = (0..FILES)
        .map(|number| {
            json!({"layer": 0, "path": format!("layer0/file{number}"), "after_ms": number,
            "extents": [[0, 1], [2, 3], [4, 5], [6, 7]]})
        })
        .collect();
    let document = json!({"version": 1, "files": files}).to_string();
    assert_eq!(post(&hostile, &path, document).await, 202);
    eventually("the observation is merged", || {
        let mut curl = std::process::Command::new("curl");
        let output = curl.args(["-sf", &hostile.server.url(&path)]).output();
        output.unwrap().stdout.len() > 1 << 20
    });
    let held: Vec<_> = (0..512).map(|_| hostile.ask(&path)).collect();
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(400);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_references_to_convert_cost_their_places() {
    let hostile = Hostile::start().await;
    let hostile = &hostile;
    stream::iter(0..2000)
        .for_each_concurrent(32, |number| async move {
            let name = format!("local/{}{number:05}", "x".repeat(200));
            let reference = format!("{name}:{}", "t".repeat(128));
            let body = json!({"reference": reference}).to_string();
            post(hostile, "/api/v1/conversions", body).await;
        })
        .await;
    let paths = ["/api/v1/conversions", "/api/v1/status", "/metrics", "/"];
    let held: Vec<_> = paths
        .iter()
        .cycle()
        .take(200)
        .map(|path| hostile.ask(path))
        .collect();
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(200);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_never_end_cost_their_buffers() {
    let hostile = Hostile::start().await;
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(60_000));
    let held: Vec<_> = (0..1000)
        .map(|_| ask(hostile.server.address, &head))
        .collect();
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(200);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_claim_a_toc_of_the_greatest_size_cost_their_weight() {
    let hostile = Hostile::start_with(&["--wait", "25s"]).await;
    for (tag, full) in [("v1", Full::Attributes), ("v2", Full::Chunks)] {
        let layer = hostile::largest_toc(full);
        let mut image = ImageBuilder::new(1).layers(1).build();
        let mut document = image.document();
        document["layers"][0]["digest"] = layer.digest.to_string().into();
        document["layers"][0]["size"] = layer.blob.len().into();
        document["layers"][0]["annotations"] = json!({
            "containerd.io/snapshot/stargz/toc.digest": layer.toc_digest.to_string(),
        });
        image.bytes = document.to_string().into();
        image.blobs[1] = layer.blob;
        hostile.registry.push("app", tag, &image);
    }
    hostile
        .get_all((0..4).map(|number| format!("/v2/local/app/manifests/v{}", number % 2 + 1)))
        .await;
    until_it_rests(&hostile.server);
    hostile.assert_peak_below(512);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_very_many_entries_costs_its_toc() {
    // A quarter of the most: a debug build would take minutes for all of them.
    const ENTRIES: usize = 250_000;
    let hostile = Hostile::start_with(&["--wait", "25s"]).await;
    let image = ImageBuilder::new(1).build();
    let image = image.with_layer(&hostile::tar_of(ENTRIES));
    hostile.registry.push("app", "v1", &image);
    hostile.get("/v2/local/app/manifests/v1").await;
    hostile.server.converted("local/app", "v1");
    // The memory of conversions, and some 300 bytes for each entry.
    hostile.assert_peak_below(128 + 72);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_very_many_files_cost_their_toc_once() {
    const ENTRIES: usize = 100_000;
    let hostile = Hostile::start_with(&["--wait", "25s"]).await;
    let image = ImageBuilder::new(1).build();
    let image = image.with_layer(&hostile::tar_of(ENTRIES));
    hostile.registry.push("app", "v1", &image);
    hostile.get("/v2/local/app/manifests/v1").await;
    let converted = hostile.server.converted("local/app", "v1");
    let layer = converted["layers"][0]["digest"].as_str().unwrap();
    let page = format!("/images/{}", image.digest());
    let folder = format!("{page}/layers/{layer}");
    let text = hostile.get(&folder).await.text().await.unwrap();
    assert!(text.contains("of 100\u{202f}001"), "{text}");
    let pages = (0..200).map(|number| match number % 3 {
        0 => "/images".to_owned(),
        1 => page.clone(),
        _ => format!("{folder}?from={}", number * 400),
    });
    let held: Vec<_> = pages.map(|page| hostile.ask(&page)).collect();
    until_it_rests(&hostile.server);
    // The memory of the conversion, some 300 bytes for each entry of a few TOCs, and the answers. One
    // TOC for each of the 66 requests would take 2 GiB.
    hostile.assert_peak_below(128 + 256);
    drop(held);
}
