//! Predictions run in a separate process: its output, its limits, and its end.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use starlift::oci::{Digest, media_type};
use starlift::predict::{Error, Limits, PredictionError, Predictor};
use starlift::profile::FileUse;
use starlift::store::ImageRecord;
use starlift::tocs::Tocs;

use super::bench::Bench;
use crate::support::eventually::eventually_async;
use crate::support::image::Image;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_starlift");
/// The message that the process sends once its limits are set.
const READY: &str = r#"printf '\000\000\000\036{"ready":{"is_filtered":true}}'"#;

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_slice())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// Returns an image with `times` copies of `layer`.
pub(crate) fn image(layer: Vec<u8>, times: usize, execution: &Value) -> Image {
    let layer = Bytes::from(layer);
    let diff_ids = vec![Digest::sha256_of(&layer).to_string(); times];
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": execution,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Bytes::from(config.to_string());
    let descriptor = |media_type: &str, bytes: &Bytes| json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes), "size": bytes.len()});
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, &config),
        "layers": vec![descriptor("application/vnd.oci.image.layer.v1.tar", &layer); times],
    });
    Image {
        media_type: media_type::OCI_MANIFEST.to_owned(),
        bytes: document.to_string().into(),
        blobs: vec![config, layer],
        children: Vec::new(),
    }
}

pub(crate) fn script(text: &str) -> Image {
    let files = [
        ("bin/sh", fs::read("/bin/true").unwrap()),
        ("entry", text.as_bytes().to_vec()),
    ];
    image(tar(&files), 1, &json!({"Entrypoint": ["/entry"]}))
}

/// Returns an image with a large tree, many times: reading its TOCs takes memory and time.
fn heavy() -> Image {
    let names: Vec<String> = (0..30_000)
        .map(|number| format!("directory/of/many/{number}"))
        .collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .map(|name| (name.as_str(), Vec::new()))
        .collect();
    image(tar(&files), 200, &json!({"Entrypoint": ["/entry"]}))
}

async fn predicted(image: &Image, predictor: Predictor) -> Result<Vec<FileUse>, Error> {
    let bench = Bench::new().await;
    let record: ImageRecord = bench.convert(image).await.unwrap();
    let tocs = Tocs::new(bench.store.clone());
    predictor.predicted_files(&tocs, &record).await
}

async fn failure(image: &Image, predictor: Predictor) -> PredictionError {
    match predicted(image, predictor).await {
        Err(Error::Prediction(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

fn limits() -> Limits {
    Limits::default()
}

/// Limits with much time, for processes that must end by another limit, on a busy machine.
fn patient() -> Limits {
    Limits {
        time: Duration::from_secs(600),
        ..limits()
    }
}

/// Writes a program that replaces the predictor.
pub(crate) fn fake(folder: &Path, body: &str) -> PathBuf {
    let path = folder.join("fake");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_process_predicts_the_same_files_as_a_thread() {
    let image = script("#!/bin/sh\nA=$A$A\nexec sh\n");
    let by_thread = predicted(&image, Predictor::default()).await.unwrap();
    let by_process = predicted(&image, Predictor::in_processes(EXECUTABLE, limits()))
        .await
        .unwrap();
    assert_eq!(by_process, by_thread);
    let paths: Vec<_> = by_process.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["entry", "bin/sh"]);
}

#[tokio::test]
async fn a_process_dies_at_its_limit_of_memory() {
    let few = Limits {
        memory: 40 << 20,
        ..patient()
    };
    let failure = failure(&heavy(), Predictor::in_processes(EXECUTABLE, few)).await;
    // If the allocation beyond the limit fails, the process reports that and ends by itself.
    let is_over = match &failure {
        PredictionError::Died(_) => true,
        PredictionError::Refused(reason) => reason.contains("out of memory"),
        _ => false,
    };
    assert!(is_over, "{failure:?}");
}

#[tokio::test]
async fn a_process_dies_at_its_limit_of_processor_time() {
    let short = Limits {
        memory: 4 << 30,
        processor: Duration::from_secs(1),
        ..patient()
    };
    let failure = failure(&heavy(), Predictor::in_processes(EXECUTABLE, short)).await;
    assert!(
        matches!(failure, PredictionError::Died(status) if status.to_string().contains("signal")),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_process_that_is_silent_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let image = script("#!/bin/sh\n");
    let pid = folder.path().join("pid");
    let body = format!("echo $$ >{}\n{READY}\nwhile :; do :; done", pid.display());
    let soon = Limits {
        time: Duration::from_secs(1),
        ..limits()
    };
    let failure = failure(
        &image,
        Predictor::in_processes(fake(folder.path(), &body), soon),
    )
    .await;
    assert!(matches!(failure, PredictionError::TooLong), "{failure:?}");
    let process = PathBuf::from("/proc").join(fs::read_to_string(pid).unwrap().trim());
    eventually_async("the process is gone", async || {
        !process.join("exe").exists()
    })
    .await;
}

#[tokio::test]
async fn a_process_that_says_nonsense_or_ends_is_no_prediction() {
    let image = script("#!/bin/sh\n");
    let beyond = r#"{"done":{"files":[{"layer":7,"path":"a","after_ms":0}],"ended":null}}"#;
    let by_chance = r#"{"done":{"files":[],"ended":"time"}}"#;
    let blob = r#"{"read":[{"blob":{"layer":0},"start":5,"end":99999999999}]}"#;
    let said = |text: &str| {
        format!(
            "{READY}; printf '\\000\\000\\000\\{:03o}{text}'; read line",
            text.len()
        )
    };
    for (body, wanted) in [
        (format!("{READY}; exit 3"), "Died"),
        (format!("{READY}; kill -9 $$"), "Died"),
        ("exit 3".to_owned(), "NotStarted"),
        (
            format!("{READY}; printf '\\377\\377\\377\\377'; read line"),
            "Nonsense",
        ),
        (format!("{READY}; {READY}; read line"), "Nonsense"),
        (said("x"), "Nonsense"),
        (said(beyond), "Nonsense"),
        (said(by_chance), "TooLong"),
        (said(blob), "Nonsense"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let failure = failure(
            &image,
            Predictor::in_processes(fake(folder.path(), &body), limits()),
        )
        .await;
        assert!(
            format!("{failure:?}").starts_with(wanted),
            "{body}: {failure:?}"
        );
    }
    let failure = failure(&image, Predictor::in_processes("/nowhere", limits())).await;
    assert!(
        matches!(failure, PredictionError::NotStarted(_)),
        "{failure:?}"
    );
}

/// Returns the value of a line in a file of /proc.
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

#[test]
fn a_process_may_use_little_and_reach_nothing() {
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["predict", "--memory", "99000000", "--processor", "7"])
        .env_clear();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 34];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    assert_eq!(&ready[4..], br#"{"ready":{"is_filtered":true}}"#);
    let proc = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let (status, limits) = (proc("status"), proc("limits"));
    assert_eq!(
        (line(&status, "NoNewPrivs:"), line(&status, "Seccomp:")),
        ("1", "2")
    );
    assert_eq!(line(&status, "Threads:"), "1");
    for (name, limit) in [
        ("Max cpu time", "7"),
        ("Max data size", "99000000"),
        ("Max file size", "0"),
        ("Max core file size", "0"),
        ("Max processes", "0"),
        ("Max open files", "3"),
    ] {
        let values: Vec<&str> = line(&limits, name).split_whitespace().collect();
        assert_eq!(values[..2], [limit, limit], "{name}");
    }
    assert_eq!(proc("oom_score_adj").trim(), "1000");
    // Files that the parent has open are closed in the child.
    assert_eq!(
        fs::read_dir(format!("/proc/{}/fd", child.id()))
            .unwrap()
            .count(),
        3
    );
    // The process ends with its parent.
    drop(child.stdin.take());
    assert!(!child.wait().unwrap().success());
}
