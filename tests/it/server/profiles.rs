//! Observations that nodes send, and profiles that they get.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use starlift::oci::{Digest, media_type};
use starlift::profile::{MAX_OBSERVATION_BYTES, MEDIA_TYPE, Stack, Workload};
use starlift::serve::Config;
use starlift::store::{self, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Answer, Stage};
use crate::support::bucket::Bucket;
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::fixture::{self, Fixture};
use crate::support::image::Image;
use crate::support::place::Place;

/// Files in the layers of a small image.
pub(crate) const FILES: [(u32, &str); 3] = [
    (0, "layer0/file1"),
    (1, "layer1/file0"),
    (1, "layer1/file7"),
];

pub(crate) fn quick(config: &mut Config) {
    config.profiles.merge_interval = Duration::from_millis(10);
}

/// Returns the layer set digest of a manifest.
pub(crate) fn stack_of(manifest: &Value) -> Stack {
    let digest = |layer: &Value| layer["digest"].as_str().unwrap().parse().unwrap();
    let layers: Vec<Digest> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(digest)
        .collect();
    Stack::of(&layers)
}

pub(crate) fn path_of(stack: &Stack) -> String {
    format!("/api/v1/profiles/{stack}")
}

pub(crate) fn seen(files: &[(u32, &str)]) -> Value {
    let files: Vec<_> = files
        .iter()
        .map(|(layer, path)| json!({"layer": layer, "path": path, "after_ms": 1}))
        .collect();
    json!({"version": 1, "files": files})
}

impl Stage {
    /// Pulls the image's manifest and returns its layer set digest.
    pub(crate) async fn pulled(&self) -> Stack {
        self.push_app();
        stack_of(&self.get("/v2/local/app/manifests/v1").await.json())
    }

    pub(crate) async fn tell(&self, stack: &Stack, document: impl Into<reqwest::Body>) -> Answer {
        self.tell_as([127, 0, 0, 1], &path_of(stack), document)
            .await
    }

    /// Sends an observation from a node with the given address.
    pub(crate) async fn tell_as(
        &self,
        node: [u8; 4],
        path: &str,
        document: impl Into<reqwest::Body>,
    ) -> Answer {
        let client = reqwest::Client::builder()
            .local_address(IpAddr::from(node))
            .build()
            .unwrap();
        let request = client.post(format!("http://{}{path}", self.server.address));
        let response = request
            .header("content-type", "application/json")
            .body(document)
            .send()
            .await
            .unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer {
            status,
            headers,
            body: response.bytes().await.unwrap(),
        }
    }

    /// Waits until the profile satisfies `holds`, and returns it.
    pub(crate) async fn profile_when(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually_some("the profile is as expected", async || {
            let answer = self.get(path).await;
            (answer.status == 200)
                .then(|| answer.json())
                .filter(|profile| holds(profile))
        })
        .await
    }
}

fn paths(profile: &Value) -> Vec<(u64, String)> {
    let file = |file: &Value| {
        (
            file["layer"].as_u64().unwrap(),
            file["path"].as_str().unwrap().to_owned(),
        )
    };
    profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(file)
        .collect()
}

#[tokio::test]
async fn nodes_get_profiles_of_the_files_that_other_nodes_read() {
    let stage = Stage::with(quick).await;
    let stack = stage.pulled().await;
    let path = path_of(&stack);
    let nothing = stage.get_and_head(&path, &[]).await;
    assert_eq!(
        (nothing.status, nothing.header("content-type")),
        (200, MEDIA_TYPE)
    );
    assert_eq!(nothing.json()["observers"], 0);

    let answer = stage.tell(&stack, seen(&FILES).to_string()).await;
    assert_eq!(
        (answer.status, &answer.json()["unknown_files"]),
        (202, &json!(0))
    );
    let profile = stage
        .profile_when(&path, |profile| profile["observers"] == 1)
        .await;
    let expected: Vec<_> = FILES
        .iter()
        .map(|(layer, path)| (u64::from(*layer), (*path).to_owned()))
        .collect();
    assert_eq!(paths(&profile), expected);
    assert_eq!(profile["files"][0]["sources"], json!(["agents"]));
    assert!(!profile.to_string().contains("127.0.0.1"));

    let again = stage.get(&path).await;
    let unchanged = stage
        .ask(
            Method::GET,
            &path,
            &[("if-none-match", again.header("etag"))],
        )
        .await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let other = stage.get(&format!("{path}?workload=batch")).await.json();
    assert_eq!(
        (&other["workload"], paths(&other)),
        (&json!("batch"), expected),
        "a new workload begins with the default profile"
    );
    let status = stage.get("/api/v1/status").await.json();
    assert_eq!(
        (
            &status["profiles"]["merges"],
            &status["profiles"]["waiting_images"]
        ),
        (&json!(1), &json!(0))
    );
    assert!(status["profiles"]["last_learned"].as_u64().unwrap() > 1_600_000_000);
}

#[tokio::test]
async fn workloads_are_learned_apart() {
    let stage = Stage::with(quick).await;
    let stack = stage.pulled().await;
    let path = path_of(&stack);
    for (workload, file) in [("web", FILES[0]), ("batch", FILES[1])] {
        let answer = stage
            .tell_as(
                [127, 0, 0, 1],
                &format!("{path}?workload={workload}"),
                seen(&[file]).to_string(),
            )
            .await;
        assert_eq!(answer.status, 202);
    }
    for (workload, file) in [("web", FILES[0]), ("batch", FILES[1])] {
        let path = format!("{path}?workload={workload}");
        let profile = stage
            .profile_when(&path, |profile| profile["observers"] == 1)
            .await;
        assert_eq!(
            paths(&profile),
            [(u64::from(file.0), file.1.to_owned())],
            "{workload}"
        );
    }
}

#[tokio::test]
async fn every_answer_names_the_server() {
    let stage = Stage::new().await;
    for path in [
        "/v2/",
        "/v2/local/none/manifests/v1",
        "/healthz",
        "/nothing",
    ] {
        assert!(
            stage
                .get(path)
                .await
                .header("server")
                .starts_with("starlift/"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn observations_that_do_not_fit_the_image_are_rejected_with_the_reason() {
    let stage = Stage::with(quick).await;
    let stack = stage.pulled().await;
    let path = path_of(&stack);
    let good = seen(&FILES).to_string();
    let unknown = path_of(&Stack::of(&[Digest::sha256_of(b"another")]));
    for (method, path, status) in [
        (Method::GET, unknown.as_str(), 404),
        (Method::POST, &unknown, 404),
        (Method::GET, "/api/v1/profiles/sha256:0", 400),
        (Method::POST, "/api/v1/profiles/sha256:0", 400),
        (Method::GET, &format!("{path}?workload=A"), 400),
        (Method::POST, &format!("{path}?workload="), 400),
    ] {
        let answer = if method == Method::GET {
            stage.get(path).await
        } else {
            stage.tell_as([127, 0, 0, 1], path, good.clone()).await
        };
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!answer.code().is_empty());
    }

    let forged = [(0, "layer0/file1"), (0, "none"), (1, "none either")];
    let directory = [(0, "layer0"), (1, "layer1"), (0, "layer0/file1")];
    for (document, reason) in [
        (String::new(), "JSON"),
        ("[]".to_owned(), "JSON"),
        ("[".repeat(100_000), "JSON"),
        (seen(&[]).to_string(), "no files"),
        (seen(&[(2, "layer0/file1")]).to_string(), "layer 2"),
        (seen(&[(0, "../../etc/shadow")]).to_string(), "not a path"),
        (seen(&forged).to_string(), "2 of its 3 files"),
        (seen(&directory).to_string(), "2 of its 3 files"),
    ] {
        let answer = stage.tell(&stack, document).await;
        assert_eq!(answer.status, 400, "{reason}");
        let said = answer.json()["errors"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(said.contains(reason), "{said}");
    }
    let too_long = vec![b' '; MAX_OBSERVATION_BYTES + 1];
    assert_eq!(stage.tell(&stack, too_long.clone()).await.status, 413);
    let pieces = futures::stream::iter(
        too_long
            .chunks(100_000)
            .map(|piece| Ok::<_, String>(piece.to_vec()))
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        stage
            .tell(&stack, reqwest::Body::wrap_stream(pieces))
            .await
            .status,
        413
    );
    let text = stage
        .request(Method::POST, &path)
        .body(good)
        .send()
        .await
        .unwrap();
    assert_eq!(text.status(), 415);

    let half = [FILES[0], FILES[1], (0, "none")];
    let answer = stage.tell(&stack, seen(&half).to_string()).await;
    assert_eq!(
        (answer.status, &answer.json()["unknown_files"]),
        (202, &json!(1))
    );
    let profile = stage
        .profile_when(&path, |profile| profile["observers"] == 1)
        .await;
    assert_eq!(paths(&profile).len(), 2, "{profile}");
}

#[tokio::test]
async fn bytes_that_a_file_does_not_have_are_left_out() {
    let stage = Stage::with(quick).await;
    let stack = stage.pulled().await;
    let extents = json!([[0, 1], [1u64 << 40, 1u64 << 41]]);
    let files = json!([{"layer": 0, "path": "layer0/file1", "extents": extents}]);
    assert_eq!(
        stage
            .tell(&stack, json!({"version": 1, "files": files}).to_string())
            .await
            .status,
        202
    );
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["observers"] == 1)
        .await;
    assert_eq!(profile["files"][0]["extents"], json!([[0, 1]]));
}

#[tokio::test]
async fn a_node_that_lies_and_repeats_itself_is_outvoted() {
    let stage = Stage::with(quick).await;
    let stack = stage.pulled().await;
    let path = path_of(&stack);
    for node in [1, 2] {
        assert_eq!(
            stage
                .tell_as([127, 0, 0, node], &path, seen(&FILES).to_string())
                .await
                .status,
            202
        );
    }
    stage
        .profile_when(&path, |profile| profile["observers"] == 2)
        .await;
    let lie: Vec<String> = (2..10).map(|file| format!("layer0/file{file}")).collect();
    let lie: Vec<(u32, &str)> = lie.iter().map(|path| (0, path.as_str())).collect();
    for _ in 0..40 {
        assert_eq!(
            stage
                .tell_as([127, 0, 0, 9], &path, seen(&lie).to_string())
                .await
                .status,
            202
        );
    }
    let profile = stage
        .profile_when(&path, |profile| profile["observers"] == 3)
        .await;
    let expected: Vec<_> = FILES
        .iter()
        .map(|(layer, path)| (u64::from(*layer), (*path).to_owned()))
        .collect();
    assert_eq!(paths(&profile), expected);
}

#[tokio::test]
async fn a_trusted_proxys_header_distinguishes_nodes() {
    let stage = Stage::with(|config| {
        quick(config);
        config.client_header = Some("x-forwarded-for".to_owned());
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let stack = stage.pulled().await;
    for node in ["10.0.0.1", "10.0.0.2", "spoofed, 10.0.0.2"] {
        let request = stage
            .request(Method::POST, &path_of(&stack))
            .header("x-forwarded-for", node);
        let sent = request
            .header("content-type", "application/json")
            .body(seen(&FILES).to_string())
            .send()
            .await;
        assert_eq!(sent.unwrap().status(), 202);
    }
    let is_merged = |profile: &Value| profile["observers"].as_u64().unwrap() >= 2;
    assert_eq!(
        stage.profile_when(&path_of(&stack), is_merged).await["observers"],
        2
    );
}

#[tokio::test]
async fn a_slow_sender_delays_only_other_senders_and_not_for_long() {
    let stage = Stage::with(|config| {
        quick(config);
        config.profiles.max_senders = 1;
        config.header_timeout = Duration::from_millis(500);
    })
    .await;
    let stack = stage.pulled().await;
    let path = path_of(&stack);
    let mut slow = TcpStream::connect(stage.server.address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    eventually_async("a report is refused", async || {
        let answer = stage.tell(&stack, seen(&FILES).to_string()).await;
        answer.status == 503
    })
    .await;
    assert_eq!(stage.get(&path).await.status, 200);
    assert_eq!(stage.get("/v2/local/app/manifests/v1").await.status, 200);
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(
        stage.tell(&stack, seen(&FILES).to_string()).await.status,
        202
    );
}

#[tokio::test]
async fn accepted_observations_are_stored_before_a_server_stops() {
    let mut stage =
        Stage::with(|config| config.profiles.merge_interval = Duration::from_secs(3600)).await;
    let stack = stage.pulled().await;
    assert_eq!(
        stage.tell(&stack, seen(&FILES).to_string()).await.status,
        202
    );
    let image = stage.store.stack(&stack).await.unwrap().unwrap().config;
    assert!(stage.store.knowledge(&image).await.unwrap().is_empty());
    stage.server.shutdown.cancel();
    (&mut stage.server.ended).await.unwrap().unwrap();
    let known = stage.store.knowledge(&image).await.unwrap();
    assert_eq!(known.profile(&Workload::default()).files.len(), FILES.len());
}

#[tokio::test]
async fn with_profiles_off_none_is_sent_and_no_observation_is_accepted() {
    let stage = Stage::with(|config| config.profiles.enabled = false).await;
    let stack = stage.pulled().await;
    assert_eq!(stage.get(&path_of(&stack)).await.status, 404);
    assert_eq!(
        stage.tell(&stack, seen(&FILES).to_string()).await.status,
        404
    );
}

#[tokio::test]
async fn thousands_of_unknown_stacks_leave_nothing() {
    let bucket = Bucket::new();
    let stage = Stage::over(
        Store::over(Arc::new(bucket.clone()), &store::Config::default()),
        quick,
    )
    .await;
    let stack = stage.pulled().await;
    // The predicted profile is complete once this request is answered.
    stage.get(&path_of(&stack)).await;
    let before = bucket.paths().await.len();
    let document = seen(&FILES).to_string();
    for number in 0..2000u32 {
        let stack = Stack::of(&[Digest::sha256_of(&number.to_le_bytes())]);
        let request = stage
            .request(Method::POST, &path_of(&stack))
            .header("content-type", "application/json");
        assert_eq!(
            request
                .body(document.clone())
                .send()
                .await
                .unwrap()
                .status(),
            404
        );
    }
    assert_eq!(bucket.paths().await.len(), before);
    assert_eq!(
        stage.get("/api/v1/status").await.json()["profiles"]["waiting_images"],
        0
    );
}

/// Pushes the converted image to a registry that serves it as it is, and returns it.
async fn republish(stage: &Stage) -> Image {
    stage.push_app();
    let manifest = stage.get("/v2/local/app/manifests/v1").await;
    let document = manifest.json();
    let mut blobs = Vec::new();
    for blob in std::iter::once(&document["config"]).chain(document["layers"].as_array().unwrap()) {
        let path = format!("/v2/local/app/blobs/{}", blob["digest"].as_str().unwrap());
        blobs.push(stage.get(&path).await.body);
    }
    let media_type = manifest.header("content-type").to_owned();
    let image = Image {
        media_type,
        bytes: manifest.body,
        blobs,
        children: Vec::new(),
    };
    stage.registry.push("lazy", "v1", &image);
    image
}

#[tokio::test]
async fn an_image_that_is_lazy_already_is_learned_too() {
    let maker = Stage::new().await;
    let image = republish(&maker).await;
    let stage = Stage::with(quick).await;
    stage.registry.push("lazy", "v1", &image);
    let served = stage.get("/v2/local/lazy/manifests/v1").await;
    assert_eq!(
        served.digest(),
        image.digest().to_string(),
        "the image passes through"
    );
    let stack = stack_of(&served.json());
    assert_eq!(
        stage.tell(&stack, seen(&FILES).to_string()).await.status,
        202
    );
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["observers"] == 1)
        .await;
    assert_eq!(paths(&profile).len(), FILES.len());
    assert_eq!(
        profile["image"],
        json!(stack),
        "the layers were not checked against the configuration"
    );
}

#[tokio::test]
async fn a_manifest_that_names_another_image_neither_reads_nor_changes_its_profile() {
    let stage = Stage::with(quick).await;
    let victim = stage.pulled().await;
    assert_eq!(
        stage.tell(&victim, seen(&FILES).to_string()).await.status,
        202
    );
    stage
        .profile_when(&path_of(&victim), |profile| profile["observers"] == 1)
        .await;
    let image = stage.push_app();
    // Both claims: by the configuration, and by the annotation that names the source image.
    let claims = [
        ("his", json!({})),
        (
            "his-too",
            json!({"dev.starlift.source.digest": image.digest()}),
        ),
    ];
    for (tag, annotations) in claims {
        let layer = json!({
            "mediaType": media_type::OCI_LAYER_GZIP, "digest": Digest::sha256_of(tag.as_bytes()), "size": 10,
            "annotations": {"containerd.io/snapshot/stargz/toc.digest": Digest::sha256_of(b"toc")},
        });
        let document = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "annotations": annotations,
            "config": image.document()["config"], "layers": [layer],
        });
        let digest =
            stage
                .registry
                .put_manifest("app", media_type::OCI_MANIFEST, document.to_string());
        stage.registry.tag("app", tag, &digest);
        let served = stage.get(&format!("/v2/local/app/manifests/{tag}")).await;
        assert_eq!(served.status, 200);
        let his = stack_of(&served.json());
        let profile = stage.profile_when(&path_of(&his), |_| true).await;
        assert_eq!(profile["files"], json!([]), "{annotations}");
        let answer = stage
            .tell(&his, seen(&[(0, "no/such/file")]).to_string())
            .await;
        assert_eq!(answer.status, 202);
        stage
            .profile_when(&path_of(&his), |profile| profile["observers"] == 1)
            .await;
    }
    let profile = stage.get(&path_of(&victim)).await.json();
    assert_eq!(
        (&profile["observers"], paths(&profile).len()),
        (&json!(1), FILES.len())
    );
    assert!(!profile.to_string().contains("no/such"));
}

#[tokio::test]
async fn an_image_converted_before_stacks_were_kept_is_learned_too() {
    let bucket = Bucket::new();
    let stage = Stage::over(
        Store::over(Arc::new(bucket.clone()), &store::Config::default()),
        quick,
    )
    .await;
    let stack = stage.pulled().await;
    let record = format!("records/stack/sha256/{}.json", stack.0.hex());
    assert!(bucket.paths().await.contains(&record));
    bucket.delete(&record.clone().into()).await.unwrap();
    let later = stage.another(quick).await;
    let manifest = stage
        .ask_at(&later, Method::GET, "/v2/local/app/manifests/v1", &[])
        .await;
    assert_eq!(stack_of(&manifest.json()), stack);
    eventually_async("the record is stored", async || {
        let path = path_of(&stack);
        let profile = stage.ask_at(&later, Method::GET, &path, &[]).await;
        profile.status == 200
    })
    .await;
    let image = stage.push_app();
    let profile = stage
        .ask_at(&later, Method::GET, &path_of(&stack), &[])
        .await
        .json();
    assert_eq!(profile["image"], image.document()["config"]["digest"]);
}

#[tokio::test]
async fn an_image_that_never_started_gets_a_predicted_profile() {
    if Place::with(fixture::TOOLS).is_none() {
        return;
    }
    let stage = Stage::with(quick).await;
    let layout = Fixture::get("app").layout();
    stage.registry.push_layout("app", "v1", &layout);
    let stack = stack_of(&stage.get("/v2/local/app/manifests/v1").await.json());
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["files"] != json!([]))
        .await;
    assert_eq!(
        (&profile["observers"], &profile["files"][0]["sources"]),
        (&json!(0), &json!(["static"]))
    );
    assert!(
        paths(&profile).contains(&(0, "bin/busybox".to_owned())),
        "{profile}"
    );

    let answer = stage
        .tell(
            &stack,
            seen(&[(0, "etc/hostname"), (0, "bin/busybox")]).to_string(),
        )
        .await;
    assert_eq!(answer.status, 202);
    let profile = stage
        .profile_when(&path_of(&stack), |profile| profile["observers"] == 1)
        .await;
    assert!(
        profile["files"]
            .as_array()
            .unwrap()
            .iter()
            .all(|file| file["sources"] == json!(["agents"])),
        "{profile}"
    );
}
