//! Conversions ahead of a pull: notifications of registries, the list of the configuration, and
//! that pulls go first.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use starlift::convert;
use starlift::serve::{Config, NotificationConfig};
use starlift::store::Store;
use tempfile::TempDir;

use super::access::rule;
use super::{Answer, Stage};
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Gate;

const SECRET: &str = "a-secret-of-30-characters-or-so";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

/// A change of the configuration.
type Change<'a> = &'a dyn Fn(&mut Config);

/// Lets `registry` announce pushes to `local`.
fn announces(config: &mut Config, folder: &TempDir) {
    let secret_file = folder.path().join("secret");
    std::fs::write(&secret_file, format!("{SECRET}\n")).unwrap();
    config.notifications = vec![NotificationConfig {
        name: "registry".to_owned(),
        upstream: "local".to_owned(),
        secret_file,
        untagged: false,
    }];
}

async fn post(stage: &Stage, name: &str, authorization: &str, body: String) -> Answer {
    let request = stage
        .request(Method::POST, &format!("/api/v1/notifications/{name}"))
        .header("content-type", "application/json")
        .header("authorization", authorization)
        .body(body);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer {
        status,
        headers,
        body: response.bytes().await.unwrap(),
    }
}

async fn announce(stage: &Stage, events: &[Value]) -> Answer {
    let body = json!({ "events": events }).to_string();
    post(stage, "registry", &format!("Bearer {SECRET}"), body).await
}

/// An event of distribution.
fn event(action: &str, repository: &str, tag: Option<&str>, image: &Image) -> Value {
    json!({"id": "1", "action": action, "target": {"mediaType": OCI, "digest": image.digest().to_string(),
        "repository": repository, "tag": tag}})
}

fn pushed(repository: &str, tag: &str, image: &Image) -> Value {
    event("push", repository, Some(tag), image)
}

/// The jobs, once all have ended.
async fn ended(stage: &Stage, count: usize) -> Vec<Value> {
    eventually_some("all jobs have ended", async || {
        let jobs = stage.get("/api/v1/conversions").await.json();
        let jobs = jobs["conversions"].as_array().unwrap().clone();
        let all = jobs.len() == count && jobs.iter().all(|job| !job["ended"].is_null());
        all.then_some(jobs)
    })
    .await
}

#[tokio::test]
async fn an_announced_image_is_converted_before_the_pull() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::with(|config| announces(config, &folder)).await;
    let image = stage.push_app();
    let answer = announce(&stage, &[pushed("app", "v1", &image)]).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json()["events"]["started"], 1);
    let jobs = ended(&stage, 1).await;
    let digest = image.digest().to_string();
    assert_eq!(jobs[0]["reference"], format!("local/app:v1@{digest}"));
    assert_eq!(
        (&jobs[0]["state"], &jobs[0]["asked"]),
        (&json!("done"), &json!("notification"))
    );
    stage.registry.forget_requests();
    let pulled = stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(jobs[0]["converted"], pulled.digest());
    assert_ne!(pulled.digest(), digest);
    assert_eq!(stage.registry.count("GET", ""), 0);
}

#[tokio::test]
async fn events_that_are_no_pushes_of_tags_and_repeated_ones_start_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::with(|config| announces(config, &folder)).await;
    let image = stage.push_app();
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let events = [
        event("pull", "app", Some("v1"), &image),
        event("push", "app", None, &image),
        json!({"action": "push"}),
        pushed("app", "v1", &image),
        pushed("app", "v1", &image),
    ];
    let answer = announce(&stage, &events).await;
    let expected = json!({"started": 1, "running": 1, "refused": 0, "ignored": 2, "malformed": 1});
    assert_eq!((answer.status, &answer.json()["events"]), (202, &expected));
    let again = announce(&stage, &[pushed("app", "v1", &image)]).await;
    assert_eq!(again.json()["events"]["running"], 1);
    gate.open();
    ended(&stage, 1).await;
    let metrics = stage.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(
        text.contains("starlift_notification_events_total{outcome=\"started\"}"),
        "{text}"
    );
}

#[tokio::test]
async fn a_source_without_its_secret_starts_nothing_with_and_without_rules() {
    for is_ruled in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::with(|config| {
            announces(config, &folder);
            if is_ruled {
                config.access.rule = vec![rule(&["anyone"], &["pull", "warm", "admin"], &["**"])];
            }
        })
        .await;
        let image = stage.push_app();
        let body = json!({"events": [pushed("app", "v1", &image)]}).to_string();
        let secret = format!("Bearer {SECRET}");
        for (name, authorization) in [
            ("registry", "Bearer a-secret-of-30-characters-or-sO"),
            ("registry", ""),
            ("other", secret.as_str()),
        ] {
            let answer = post(&stage, name, authorization, body.clone()).await;
            assert_eq!(answer.status, 401, "{name} {authorization}");
            assert_eq!(
                answer.header("www-authenticate"),
                "",
                "no client asks a person for it"
            );
        }
        let jobs = stage.get("/api/v1/conversions").await.json();
        assert_eq!(jobs["conversions"], json!([]));
        assert_eq!(post(&stage, "registry", &secret, body).await.status, 202);
    }
}

#[tokio::test]
async fn rules_name_the_images_that_a_source_may_convert_and_each_decision_has_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let stage = Stage::with(|config| {
        announces(config, &folder);
        config.audit = Some(log.clone());
        config.access.rule = vec![
            rule(&["anyone"], &["pull", "admin"], &["**"]),
            rule(&["user:source:registry"], &["warm"], &["local/team/**"]),
        ];
    })
    .await;
    let image = ImageBuilder::new(1).build();
    stage.registry.push("team/app", "v1", &image);
    stage.registry.push("other/app", "v1", &image);
    let events = [
        pushed("team/app", "v1", &image),
        pushed("other/app", "v1", &image),
        pushed("../app", "v1", &image),
    ];
    let answer = announce(&stage, &events).await;
    let expected = json!({"started": 1, "running": 0, "refused": 1, "ignored": 0, "malformed": 1});
    assert_eq!((answer.status, &answer.json()["events"]), (202, &expected));
    let jobs = ended(&stage, 1).await;
    assert_eq!(jobs[0]["repository"], "team/app");
    let wrong = post(&stage, "registry", "Bearer wrong", "{}".to_owned()).await;
    assert_eq!(wrong.status, 401);
    let lines = eventually_some("the lines are written", async || {
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(!text.contains(SECRET), "{text}");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines: Vec<_> = lines
            .filter(|line| line["action"] == "warm" || line["action"] == "notify")
            .map(|line| {
                ["identity", "action", "repository", "decision", "by"]
                    .map(|key| line[key].as_str().unwrap_or_default().to_owned())
            })
            .collect();
        (lines.len() >= 4).then_some(lines)
    })
    .await;
    for expected in [
        [
            "user:source:registry",
            "warm",
            "team/app",
            "allowed",
            "rule",
        ],
        [
            "user:source:registry",
            "warm",
            "other/app",
            "refused",
            "denied",
        ],
        ["user:source:registry", "notify", "", "allowed", "rule"],
        ["unknown", "notify", "", "refused", "bad-credentials"],
    ] {
        assert!(
            lines.iter().any(|line| line == &expected),
            "{expected:?} in {lines:?}"
        );
    }
}

#[tokio::test]
async fn announcements_without_room_are_to_be_repeated_and_operators_have_room() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::with(|config| {
        announces(config, &folder);
        config.max_jobs = 2;
    })
    .await;
    let images = [1, 2, 3].map(|seed| ImageBuilder::new(seed).build());
    for (tag, image) in ["v1", "v2", "v3"].iter().zip(&images) {
        stage.registry.push("app", tag, image);
    }
    let gate = Gate::new();
    stage.registry.on("/blobs/").gate(&gate);
    let [first, second, _third] = &images;
    assert_eq!(
        announce(&stage, &[pushed("app", "v1", first)]).await.status,
        202
    );
    let full = announce(&stage, &[pushed("app", "v2", second)]).await;
    assert_eq!((full.status, full.header("retry-after")), (503, "1"));
    let operator = stage
        .request(Method::POST, "/api/v1/conversions")
        .header("content-type", "application/json")
        .body(r#"{"reference": "local/app:v3"}"#);
    assert_eq!(operator.send().await.unwrap().status(), 202);
    gate.open();
    ended(&stage, 2).await;
    assert_eq!(
        announce(&stage, &[pushed("app", "v2", second)])
            .await
            .status,
        202
    );
}

#[tokio::test]
async fn notifications_are_bounded_in_bytes_and_events() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::with(|config| announces(config, &folder)).await;
    let secret = format!("Bearer {SECRET}");
    let long = format!("{{\"events\": [{}]}}", " ".repeat(2 << 20));
    assert_eq!(post(&stage, "registry", &secret, long).await.status, 413);
    let many = format!("{{\"events\": [{}{{}}]}}", "{},".repeat(300));
    for body in [many, "not json".to_owned(), "{}".to_owned()] {
        let answer = post(&stage, "registry", &secret, body).await;
        assert_eq!(answer.status, 400, "{:?}", answer.body);
    }
    let answer = stage.get("/api/v1/notifications/registry").await;
    assert_eq!(answer.status, 405);
}

#[tokio::test]
async fn a_server_with_an_unusable_source_or_list_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short");
    std::fs::write(&short, "short\n").unwrap();
    let cases: [(&str, Change<'_>); 5] = [
        ("cannot be read", &|config| {
            announces(config, &folder);
            config.notifications[0].secret_file = PathBuf::from("/nowhere");
        }),
        ("no secret of 20 characters", &|config| {
            announces(config, &folder);
            config.notifications[0].secret_file = short.clone();
        }),
        ("name twice", &|config| {
            announces(config, &folder);
            let again = config.notifications[0].clone();
            config.notifications.push(again);
        }),
        ("no reference", &|config| {
            config.warm.images = vec!["A B".to_owned()];
        }),
        ("serve.warm.interval", &|config| {
            config.warm.interval = Duration::ZERO;
        }),
    ];
    for (text, change) in cases {
        let error = Stage::try_another(|config| change(config))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
}

#[tokio::test]
async fn listed_images_are_converted_at_the_start_and_again_when_their_tag_moves() {
    let stage = Stage::new().await;
    let (first, second) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    stage.registry.push("app", "v1", &first);
    let server = stage
        .another(|config| {
            config.warm.images = vec!["local/app:v1".to_owned(), "local/app:missing".to_owned()];
            config.warm.interval = Duration::from_millis(50);
        })
        .await;
    let is_done = async |image: &Image| {
        let source = image.digest().to_string();
        eventually_async("the image is converted", async || {
            let jobs = stage
                .ask_at(&server, Method::GET, "/api/v1/conversions", &[])
                .await
                .json();
            let jobs = jobs["conversions"].as_array().unwrap().clone();
            jobs.iter().any(|job| {
                job["state"] == "done" && job["source"] == source && job["asked"] == "list"
            })
        })
        .await;
    };
    is_done(&first).await;
    stage.registry.push("app", "v1", &second);
    is_done(&second).await;
}

/// Pulls a tag of `local/app`, and returns whether the answer is the converted image.
async fn is_converted(stage: &Stage, tag: &str, image: &Image) -> bool {
    let answer = stage.get(&format!("/v2/local/app/manifests/{tag}")).await;
    assert_eq!(answer.status, 200);
    answer.digest() != image.digest().to_string()
}

#[tokio::test]
async fn images_that_clients_wait_for_go_before_those_that_were_requested_ahead() {
    let convert = convert::Config {
        images_at_once: NonZeroUsize::MIN,
        layers_at_once: NonZeroUsize::MIN,
        ..convert::Config::default()
    };
    // Long enough for a conversion to begin, or to wait for its turn.
    let stage = Stage::converting(Store::in_memory(), &convert, |config| {
        config.wait = Duration::from_millis(300);
    })
    .await;
    let tags = ["running", "early", "awaited", "live"];
    let images = [1, 2, 3, 4].map(|seed| ImageBuilder::new(seed).build());
    for (tag, image) in tags.iter().zip(&images) {
        stage.registry.push("app", tag, image);
    }
    let config_of = |at: usize| {
        images[at].document()["config"]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let gate = Gate::new();
    stage.registry.on(&config_of(0)).gate(&gate);
    for tag in &tags[..3] {
        let request = stage
            .request(Method::POST, "/api/v1/conversions")
            .header("content-type", "application/json")
            .body(json!({"reference": format!("local/app:{tag}")}).to_string());
        assert_eq!(request.send().await.unwrap().status(), 202);
        // The first one has the only place; each other one is waiting before the next comes.
        match *tag {
            "running" => gate.reached(1).await,
            tag => {
                eventually_async("it waits", async || {
                    let status = stage.get("/api/v1/status").await.json();
                    let running = status["conversions"].as_array().unwrap().len();
                    running == tags.iter().position(|other| *other == tag).unwrap() + 1
                })
                .await;
            }
        }
    }
    assert!(!is_converted(&stage, "awaited", &images[2]).await);
    assert!(!is_converted(&stage, "live", &images[3]).await);
    gate.open();
    ended(&stage, 3).await;
    eventually_async("the pulled image is converted", async || {
        is_converted(&stage, "live", &images[3]).await
    })
    .await;
    let seen = stage.registry.seen();
    let first = |at: usize| {
        let config = config_of(at);
        seen.iter()
            .position(|seen| seen.path_and_query.contains(&config))
            .unwrap()
    };
    assert!(
        first(2) < first(1),
        "a client waits for one of those that were requested ahead"
    );
    assert!(
        first(3) < first(1),
        "a client waits for an image that nobody requested ahead"
    );
}
