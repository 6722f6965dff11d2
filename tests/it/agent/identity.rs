//! A node that reads, gets profiles and reports by its own identity at a server.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use crate::server::access::rule;
use crate::server::profiles::{path_of, quick, stack_of};
use crate::server::{Answer, Stage};
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::issuer::{Issuer, SigningKey};
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};

const AGENT: &str = "system:serviceaccount:starlift:agent";
const MIB: usize = 1 << 20;
/// The input/output error that readers of a file get.
const EIO: i32 = 5;

/// A server where the node's service account may pull and profile `local/app`.
async fn server(issuer: &Issuer) -> Stage {
    let stage = Stage::with(|config| {
        quick(config);
        config.access.issuer = vec![issuer.config()];
        config.access.remember = Duration::from_millis(100);
        let who = format!("user:{AGENT}");
        config.access.rule = vec![rule(&[&who], &["pull", "profiles"], &["local/app"])];
    });
    stage.await
}

async fn node(token_file: &Path) -> Node {
    let token_file = token_file.to_str().unwrap();
    Node::start(&[
        ON_DEMAND,
        ("PREFETCH", "false"),
        ("READ_TIMEOUT", "2s"),
        ("RECORD", "300ms"),
        ("PULL_IDENTITY__TOKEN_FILE", token_file),
        ("PULL_IDENTITY__SERVERS", "127.0.0.1"),
    ])
    .await
}

/// The labels of a layer of `local/app` at the server.
fn labels(stage: &Stage, target: &str, digest: &str, toc: &str) -> HashMap<String, String> {
    let reference = format!("{}/local/app:v1", stage.server.address);
    [
        ("containerd.io/snapshot.ref", target),
        ("containerd.io/snapshot/remote/stargz.reference", &reference),
        ("containerd.io/snapshot/remote/stargz.digest", digest),
        ("containerd.io/snapshot/stargz/toc.digest", toc),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

async fn ask(stage: &Stage, path: &str, token: &str) -> Answer {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str())];
    stage.ask(Method::GET, path, &headers).await
}

/// Reads a file in a thread that may block.
async fn content(path: &Path) -> Result<Vec<u8>, Option<i32>> {
    let path = path.to_owned();
    let content = tokio::task::spawn_blocking(move || read(&path))
        .await
        .unwrap();
    content.map_err(|error| error.raw_os_error())
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_end_when_the_nodes_right_is_withdrawn_and_fetched_data_stays() {
    let (key, next) = (SigningKey::ec("a"), SigningKey::ec("b"));
    let issuer = Issuer::start(&[&key]).await;
    let stage = server(&issuer).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let token = key.sign(&issuer.claims(AGENT));
    std::fs::write(&file, &token).unwrap();
    let node = node(&file).await;
    let layer = Layer::random(1, &[4 * MIB, 1000, 4 * MIB, 4 * MIB, MIB]);
    let (digest, toc) = (layer.digest.to_string(), layer.toc_digest.to_string());
    stage.registry.put_blob(layer.blob.clone());
    let labels = labels(&stage, "layer", &digest, &toc);
    assert!(
        node.prepare_on("layer", "", labels).await.unwrap(),
        "{}",
        node.agent.status()
    );
    let directory = node.directory("layer").await;
    let path = |name: &str| directory.join(name);
    assert!(content(&path("file0")).await.unwrap() == layer.files[0].1);

    issuer.publish(&[&next]);
    let blob = format!("/v2/local/app/blobs/{digest}");
    eventually_async("the server refuses the token", async || {
        ask(&stage, &blob, &token).await.status == 401
    })
    .await;
    assert_eq!(content(&path("file2")).await, Err(Some(EIO)));
    assert!(content(&path("file0")).await.unwrap() == layer.files[0].1);

    // The next read requests the bytes again, with the token that is there then.
    std::fs::write(&file, next.sign(&issuer.claims(AGENT))).unwrap();
    assert!(content(&path("file2")).await.unwrap() == layer.files[2].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reports_and_gets_profiles_by_its_identity_and_without_it_nothing() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    let stage = server(&issuer).await;
    stage.push_app();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let token = key.sign(&issuer.claims(AGENT));
    std::fs::write(&file, &token).unwrap();
    let manifest = ask(&stage, "/v2/local/app/manifests/v1", &token)
        .await
        .json();
    let profile = format!("{}?name=local/app", path_of(&stack_of(&manifest)));
    let node = node(&file).await;
    let layers = manifest["layers"].as_array().unwrap();
    let mut parent = String::new();
    for (place, layer) in layers.iter().enumerate() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let toc = text(&layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]);
        let target = format!("image-{place}");
        let labels = labels(&stage, &target, &text(&layer["digest"]), &toc);
        assert!(node.prepare_on(&target, &parent, labels).await.unwrap());
        parent = target;
    }
    let directories = node.begin_container("container", &parent).await;
    content(&directories[0].join("layer1/file0")).await.unwrap();
    let known = eventually_some("the node's observation counts", async || {
        let answer = ask(&stage, &profile, &token).await;
        (answer.status == 200)
            .then(|| answer.json())
            .filter(|profile| profile["observers"] == 1)
    });
    assert!(known.await.to_string().contains("layer1/file0"));
    assert_eq!(stage.get(&profile).await.status, 401);
}
