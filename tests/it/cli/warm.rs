//! `starlift warm` against `starlift serve`, both as processes.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::Desk;
use crate::support::image::ImageBuilder;
use crate::support::registry::Registry;

/// Starts a server for `registry` and waits for the line with its address.
async fn serve(desk: &Desk, registry: &Registry) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_starlift"))
        .args([
            "serve",
            "--log",
            "json",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "store",
        ])
        .args(["--upstream", &format!("local={}", registry.url())])
        .current_dir(desk.0.path())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = line["address"].as_str() {
            let address = format!("http://{address}");
            // Reads on, so that the server never blocks on its log.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (child, address);
        }
    }
    panic!("server not started");
}

#[tokio::test]
async fn the_exit_code_reports_whether_all_images_were_converted() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let (mut server, address) = serve(&desk, &registry).await;
    let jobs = desk
        .run(&[
            "warm",
            "--json",
            "--server",
            &address,
            "local/library/app:v1",
        ])
        .await
        .json();
    assert_eq!(jobs[0]["state"], "done");
    assert_ne!(jobs[0]["converted"], jobs[0]["source"]);
    let ran = desk
        .run(&[
            "warm",
            "--server",
            &address,
            "local/library/app:v1",
            "local/library/app:missing",
        ])
        .await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("local/library/app:missing  failed"), "{text}");
    assert!(
        desk.run(&["warm", "--server", &address, "NOT A REFERENCE"])
            .await
            .error()
            .contains("reference")
    );
    server.kill().await.unwrap();
    desk.run(&["warm", "--server", &address, "local/library/app:v1"])
        .await
        .error();
}

/// The API of a cluster with these pods, two a page, for requests with a token. `GET` only.
struct Cluster {
    url: String,
    /// The queries of the requests so far.
    asked: std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

/// The answer of a cluster to the page with this token.
type Page = fn(&str, &str) -> (u16, String);

impl Cluster {
    async fn start(token: &'static str, page: Page) -> Self {
        use axum::extract::Request;
        let asked = std::sync::Arc::<parking_lot::Mutex<Vec<String>>>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = std::sync::Arc::clone(&asked);
        let handler = async move |request: Request| {
            let uri = request.uri().clone();
            seen.lock().push(uri.to_string());
            let sent = request.headers().get("authorization");
            let wanted = format!("Bearer {token}");
            if sent.is_none_or(|sent| sent.as_bytes() != wanted.as_bytes()) {
                let status = r#"{"kind": "Status", "status": "Failure", "code": 401}"#.to_owned();
                return (axum::http::StatusCode::UNAUTHORIZED, status);
            }
            let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
            let next = query.into_owned().find(|(key, _)| key == "continue");
            let (status, body) = page(uri.path(), &next.map_or(String::new(), |(_, value)| value));
            (axum::http::StatusCode::from_u16(status).unwrap(), body)
        };
        let router = axum::Router::new().fallback(handler);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked, server }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn pods(images: &[&str], next: &str) -> (u16, String) {
    let pod = |image: &&str| {
        serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image}]},
        "status": {"phase": "Running"}})
    };
    let items: Vec<_> = images.iter().map(pod).collect();
    let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1",
        "metadata": {"resourceVersion": "1", "continue": next, "remainingItemCount": 1}, "items": items});
    (200, list.to_string())
}

/// Two pages. The token of the second one has letters that a query must escape.
fn two_pages(path: &str, token: &str) -> (u16, String) {
    match (path, token) {
        ("/api/v1/pods", "") => pods(
            &[
                "starlift.example/local/library/app:v1",
                "localhost:5000/other:1",
            ],
            "a+b/c=&x",
        ),
        ("/api/v1/pods", "a+b/c=&x") => pods(
            &["starlift.example:8443/local/library/app:v1", "NO IMAGE"],
            "",
        ),
        ("/api/v1/namespaces/web/pods", "") => pods(&["starlift.example/local/library/app:v1"], ""),
        _ => (404, String::new()),
    }
}

#[tokio::test]
async fn images_of_a_list_are_converted_and_refused_ones_are_reported() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    registry.push("library/app", "v2", &ImageBuilder::new(2).build());
    let (_server, address) = serve(&desk, &registry).await;
    std::fs::write(
        desk.path("images"),
        "# the team's\nlocal/library/app:v1  # twice\nlocal/library/app:v1\n\nlocal/library/app:v2\n",
    )
    .unwrap();
    let list = ["warm", "--json", "--server", &address, "--from", "images"];
    let jobs = desk.run(&list).await.json();
    assert_eq!(jobs.as_array().unwrap().len(), 2);
    assert!(
        jobs.as_array()
            .unwrap()
            .iter()
            .all(|job| job["state"] == "done")
    );
    std::fs::write(
        desk.path("images"),
        "local/library/app:v1\nno:such:reference\n",
    )
    .unwrap();
    let ran = desk.run(&list).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let jobs: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(
        (&jobs[0]["state"], &jobs[1]["state"]),
        (&"done".into(), &"refused".into())
    );
    std::fs::write(desk.path("images"), "two words\n").unwrap();
    assert!(desk.run(&list).await.error().contains("line 1"));
}

#[tokio::test]
async fn images_of_the_pods_of_a_cluster_are_converted() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let (_server, address) = serve(&desk, &registry).await;
    let cluster = Cluster::start("pod-reader", two_pages).await;
    std::fs::write(desk.path("token"), "pod-reader\n").unwrap();
    let from = [
        "warm",
        "--json",
        "--server",
        &address,
        "--from-kubernetes",
        "--host",
        "starlift.example",
    ];
    let api = [
        "--kubernetes-api",
        &cluster.url,
        "--kubernetes-token",
        "token",
    ];
    let words = [&from[..], &api[..]].concat();
    let ran = desk.run(&words).await;
    assert_eq!(
        ran.code,
        Some(0),
        "an image that the server may not pull is no failure: {}",
        ran.stderr
    );
    assert!(ran.stderr.contains("NO IMAGE"), "{}", ran.stderr);
    let jobs = ran.json();
    let states: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            (
                job["reference"].as_str().unwrap(),
                job["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert!(
        states.contains(&("local/library/app:v1", "done")),
        "{states:?}"
    );
    assert_eq!(states.len(), 2, "{states:?}");
    assert_eq!(cluster.asked.lock().len(), 2);
    let some = desk
        .run(&[&words[..], &["--namespace", "web"]].concat())
        .await
        .json();
    assert_eq!(some.as_array().unwrap().len(), 1);
    assert!(
        cluster
            .asked
            .lock()
            .last()
            .unwrap()
            .starts_with("/api/v1/namespaces/web/pods?")
    );
    let hostile = desk
        .run(&[&words[..], &["--namespace", "../secrets"]].concat())
        .await;
    assert!(hostile.error().contains("no namespace"));
}

#[tokio::test]
async fn a_cluster_that_refuses_or_answers_nonsense_is_an_error_in_one_line() {
    let desk = Desk::new();
    std::fs::write(desk.path("token"), "pod-reader").unwrap();
    std::fs::write(desk.path("expired"), "expired").unwrap();
    let cases: [(&str, Page, &str); 6] = [
        ("expired", two_pages, "401"),
        (
            "token",
            |_, _| (403, "<script>".to_owned()),
            "the right to list pods",
        ),
        (
            "token",
            |_, _| (200, "<html>".to_owned()),
            "no list of pods",
        ),
        (
            "token",
            |_, _| (200, "[".repeat(100_000)),
            "no list of pods",
        ),
        (
            "token",
            |_, _| pods(&["a:1"], "again"),
            "the same page twice",
        ),
        ("token", |_, _| (410, String::new()), "the pages expire"),
    ];
    for (token, page, expected) in cases {
        let cluster = Cluster::start("pod-reader", page).await;
        let words = [
            "warm",
            "--from-kubernetes",
            "--kubernetes-api",
            &cluster.url,
            "--kubernetes-token",
            token,
        ];
        let error = desk.run(&words).await.error();
        assert!(
            error.contains(expected) && !error.contains("script"),
            "{expected}: {error}"
        );
    }
}

/// kubectl is not here; a program with its name answers `get --raw` from the same API.
#[tokio::test]
async fn outside_of_a_cluster_kubectl_is_asked() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::new();
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let (_server, address) = serve(&desk, &registry).await;
    let cluster = Cluster::start("pod-reader", two_pages).await;
    let kubectl = desk.path("kubectl");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $2 $3 $4\" = '--context prod get --raw' ] || exit 3\n\
         exec curl -sf -H 'Authorization: Bearer pod-reader' \"{}$5\"\n",
        cluster.url
    );
    std::fs::write(&kubectl, script).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        desk.0.path().display(),
        std::env::var("PATH").unwrap()
    );
    let from = [
        "warm",
        "--json",
        "--server",
        &address,
        "--from-kubernetes",
        "--host",
        "starlift.example",
    ];
    let words = [&from[..], &["--context", "prod"]].concat();
    let jobs = desk.run_with(&words, &[("PATH", &path)]).await.json();
    assert!(
        jobs.as_array()
            .unwrap()
            .iter()
            .any(|job| job["state"] == "done"),
        "{jobs}"
    );
    let other = [&from[..], &["--context", "other"]].concat();
    let ran = desk.run_with(&other, &[("PATH", &path)]).await;
    assert!(ran.error().contains("kubectl get --raw"));
}

#[tokio::test]
async fn a_repetition_converts_what_is_new_and_ends_without_a_failure() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    let (_server, address) = serve(&desk, &registry).await;
    std::fs::write(desk.path("images"), "local/library/app:v1\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
    let words = [
        "warm", "--server", &address, "--from", "images", "--every", "1s",
    ];
    let child = command
        .args(words)
        .current_dir(desk.0.path())
        .kill_on_drop(true);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    assert!(first.contains("failed"), "{first}");
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    while !lines.next_line().await.unwrap().unwrap().contains("done") {}
    let id = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    let stdin = desk.run(&["warm", "--from", "-", "--every", "1h"]).await;
    assert!(stdin.error().contains("--every needs a file"));
}
