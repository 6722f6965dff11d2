//! The audit log: a line for each decision, and no secret in any.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use starlift::serve::Config;
use starlift::store::Store;
use tempfile::TempDir;

use super::Stage;
use super::access::{A, B, basic, of_team, own_users_with, passes_through, token};
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::image::ImageBuilder;
use crate::support::registry::Auth;

/// Logs into a file of the folder.
fn logs_into(config: &mut Config, dir: &TempDir) -> PathBuf {
    let path = dir.path().join("audit.jsonl");
    config.audit = Some(path.clone());
    path
}

/// The lines of the log once there are `count` of them.
async fn lines(path: &Path, count: usize) -> Vec<Value> {
    eventually_some("the lines are written", async || {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (lines.len() >= count).then_some(lines)
    })
    .await
}

/// The fields of a line that the test is about.
fn parts(line: &Value) -> [&str; 6] {
    ["identity", "action", "repository", "decision", "by", "kind"]
        .map(|key| line[key].as_str().unwrap_or_default())
}

#[tokio::test]
async fn every_way_to_be_known_is_logged_without_its_secret() {
    let log = tempfile::tempdir().unwrap();
    let mut path = PathBuf::new();
    let (stage, _dir) = own_users_with(|config| path = logs_into(config, &log)).await;
    let private = "/v2/local/team/x/app/manifests/v1";
    let machine = "Bearer 0123456789-0123456789".to_owned();
    let carol = basic("carol", "carol-secret");
    let (issued, _) = token(&stage, private, Some(&carol)).await;
    let form = "grant_type=password&username=carol&password=carol-secret";
    let request = stage
        .request(Method::POST, "/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let mistyped = basic("carol-secret", "carol-secret");
    let wrong = basic("carol", "wrong-secret");
    for authorization in [&carol, &issued, &machine, &mistyped, &wrong] {
        let headers = [("authorization", authorization.as_str())];
        stage.ask(Method::GET, private, &headers).await;
    }
    let lines = lines(&path, 8).await;
    let seen: Vec<_> = lines.iter().map(parts).collect();
    let name = "team/x/app";
    let manifest = "pull-manifest";
    for expected in [
        [
            "anonymous",
            manifest,
            name,
            "refused",
            "no-credentials",
            "anonymous",
        ],
        ["user:carol", "login", "", "allowed", "rule", "user"],
        ["user:carol", manifest, name, "allowed", "rule", "user"],
        ["user:ci", manifest, name, "refused", "rule", "user"],
        [
            "unknown",
            manifest,
            name,
            "refused",
            "bad-credentials",
            "unknown",
        ],
    ] {
        assert!(seen.contains(&expected), "{expected:?} in {seen:#?}");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in [
        "carol-secret",
        "wrong-secret",
        "0123456789-0123456789",
        &STANDARD.encode("carol:carol-secret"),
        issued.strip_prefix("Bearer ").unwrap(),
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    for line in &lines {
        let time = line["time"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(line["address"], "127.0.0.1");
        for (key, is_right) in [
            ("request", line["request"].is_string()),
            ("method", line["method"].is_string()),
            ("status", line["status"].is_u64()),
            ("bytes", line["bytes"].is_u64()),
        ] {
            assert!(is_right, "{key} of {line}");
        }
    }
}

#[tokio::test]
async fn clients_of_an_upstream_are_named_once_it_has_accepted_them() {
    let log = tempfile::tempdir().unwrap();
    let mut path = PathBuf::new();
    let stage = Stage::beside(Store::in_memory(), &[], |config| {
        passes_through(config);
        path = logs_into(config, &log);
    })
    .await;
    let image = ImageBuilder::new(1).build();
    stage.registry.push("team-a/app", "v1", &image);
    stage.registry.require(Auth::Teams(vec![A, B]));
    let (own, other) = (of_team(&A), of_team(&B));
    let ask = async |authorization: &str, id: &str| {
        let headers = [("authorization", authorization), ("x-request-id", id)];
        let path = "/v2/local/team-a/app/manifests/v1";
        stage.ask(Method::GET, path, &headers).await
    };
    let answer = ask(&own, "of-a").await;
    assert_eq!(ask(&other, "of-b").await.status, 403);
    assert_eq!(
        ask("Bearer opaque-token-of-somebody", "token").await.status,
        403
    );
    let lines = lines(&path, 3).await;
    assert_eq!(
        parts(&lines[0]),
        [
            "upstream:alice",
            "pull-manifest",
            "team-a/app",
            "allowed",
            "upstream",
            "upstream"
        ]
    );
    assert_eq!(lines[0]["digest"], answer.digest());
    assert_eq!(lines[0]["reference"], "v1");
    assert_eq!(lines[0]["request"], "of-a");
    assert_eq!(lines[0]["bytes"], answer.body.len());
    for line in &lines[1..] {
        assert_eq!(line["identity"], "upstream", "{line}");
        assert_eq!(
            (&line["decision"], &line["by"]),
            (&json!("refused"), &json!("rule"))
        );
    }
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["alice-secret", "bob-secret", "opaque-token", &own[6..]] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_lazy_client_has_one_line_for_a_layer_and_each_manifest_has_one() {
    let log = tempfile::tempdir().unwrap();
    let mut path = PathBuf::new();
    let stage = Stage::with(|config| path = logs_into(config, &log)).await;
    stage.push_app();
    let manifest = stage.get("/v2/local/app/manifests/v1").await;
    let document = manifest.json();
    let layer = document["layers"][0]["digest"].as_str().unwrap();
    let blob = format!("/v2/local/app/blobs/{layer}");
    for _ in 0..20 {
        let headers = [("range", "bytes=5-9")];
        assert_eq!(stage.ask(Method::GET, &blob, &headers).await.status, 206);
    }
    for _ in 0..2 {
        stage.get("/v2/local/app/manifests/v1").await;
    }
    stage.get("/v2/local/other/manifests/v1").await;
    let lines = lines(&path, 5).await;
    let count = |action: &str| lines.iter().filter(|line| line["action"] == action).count();
    assert_eq!(count("pull-manifest"), 4);
    assert_eq!(count("pull-blob"), 1);
    let of_blob = lines
        .iter()
        .find(|line| line["action"] == "pull-blob")
        .unwrap();
    assert_eq!(
        (&of_blob["digest"], &of_blob["bytes"]),
        (&json!(layer), &json!(5))
    );
    assert_eq!(lines[4]["status"], 404, "{}", lines[4]);
}

#[tokio::test]
async fn refusals_that_no_rule_makes_are_logged_with_their_reason() {
    let log = tempfile::tempdir().unwrap();
    let mut path = PathBuf::new();
    let stage = Stage::with(|config| {
        path = logs_into(config, &log);
        config.budgets.address.requests = std::num::NonZeroU32::new(1);
        config.budgets.address.burst = std::num::NonZeroU32::new(2);
    })
    .await;
    stage.push_app();
    let page = [("origin", "http://evil.example")];
    stage.ask(Method::GET, "/api/v1/status", &page).await;
    eventually_async("the budget is used up", async || {
        stage.get("/v2/local/app/tags/list").await.status == 429
    })
    .await;
    for _ in 0..5 {
        stage.get("/v2/local/app/manifests/v1").await;
    }
    let lines = lines(&path, 3).await;
    let by = |reason: &str| lines.iter().filter(|line| line["by"] == reason).count();
    assert_eq!(by("cross-site"), 1, "{lines:#?}");
    assert_eq!(by("budget-address-requests"), 1, "{lines:#?}");
}

#[tokio::test]
async fn a_full_disk_loses_lines_and_fails_no_pull() {
    let dropped = || {
        let metrics = starlift::telemetry::metrics();
        let lines = metrics.audit_lines.get_or_create(&[("outcome", "dropped")]);
        lines.get()
    };
    let stage = Stage::with(|config| config.audit = Some("/dev/full".into())).await;
    stage.push_app();
    for _ in 0..3 {
        assert_eq!(stage.get("/v2/local/app/manifests/v1").await.status, 200);
    }
    eventually_async("the lines are counted", async || dropped() == 3).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_stops_the_start() {
    let started = Stage::try_another(|config| config.audit = Some("/nowhere/audit".into())).await;
    let error = started.unwrap_err().to_string();
    assert!(
        error.contains("/nowhere/audit") && error.contains("serve.audit"),
        "{error}"
    );
}

#[tokio::test]
async fn the_log_is_opened_again_on_sighup() {
    let log = tempfile::tempdir().unwrap();
    let mut path = PathBuf::new();
    let stage = Stage::with(|config| path = logs_into(config, &log)).await;
    stage.push_app();
    stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(lines(&path, 1).await.len(), 1);
    std::fs::rename(&path, log.path().join("rotated")).unwrap();
    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::HUP).unwrap();
    eventually_async("the file is there again", async || path.exists()).await;
    stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!(lines(&path, 1).await.len(), 1);
}
