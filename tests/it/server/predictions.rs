//! An image that kills its predictor is tried once, and not again after a restart.

use std::fs;
use std::path::Path;

use reqwest::Method;
use starlift::convert::{Config, Converter};
use starlift::predict::{Limits, Predictor};
use starlift::store::Store;

use super::profiles::{path_of, quick, stack_of};
use super::{Stage, try_start};
use crate::convert::predictions::{fake, script};
use crate::support::eventually::eventually_async;

/// A predictor that counts its starts in a file of the folder, and is killed by its first request.
fn deadly(folder: &Path) -> Predictor {
    let ready = r#"printf '\000\000\000\036{"ready":{"is_filtered":true}}'"#;
    let body = format!(
        "echo x >>{}\n{ready}\nread line\nkill -9 $$",
        folder.join("starts").display()
    );
    let body = body.replace("read line", "dd bs=1 count=4 of=/dev/null 2>/dev/null");
    Predictor::in_processes(fake(folder, &body), Limits::default())
}

fn starts(folder: &Path) -> usize {
    fs::read_to_string(folder.join("starts")).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn an_image_that_kills_its_predictor_is_not_tried_again_after_a_restart() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::in_memory());
    let converter = Converter::new(&Config::default(), store.clone()).unwrap();
    let predictor = deadly(folder.path());
    let stage = Stage::predicting(store.clone(), converter, predictor, quick).await;
    let image = script("#!/bin/sh\n");
    let config = image.document()["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    stage.registry.push("app", "v1", &image);
    let stack = stack_of(&stage.get("/v2/local/app/manifests/v1").await.json());
    let by = format!("{}-p1", stage.converter.generation().0);
    eventually_async("the prediction is given up", async || {
        !store.knowledge(&config).await.unwrap().may_be_tried(&by)
    })
    .await;
    assert_eq!(starts(folder.path()), 1);

    let restarted = try_start(
        quick,
        &store,
        &stage.upstreams,
        &stage.converter,
        deadly(folder.path()),
    )
    .await
    .unwrap();
    let manifest = stage
        .ask_at(&restarted, Method::GET, "/v2/local/app/manifests/v1", &[])
        .await;
    assert_eq!(stack_of(&manifest.json()), stack);
    // The request for a profile waits for the prediction.
    let profile = stage
        .ask_at(&restarted, Method::GET, &path_of(&stack), &[])
        .await;
    assert_eq!(
        (profile.status, profile.json()["files"].clone()),
        (200, serde_json::json!([]))
    );
    assert_eq!(starts(folder.path()), 1);
}
