//! `starlift config`, the precedence of flags, environment and file, and the examples in `deploy/`.

use std::path::Path;

use starlift::config::Config;

use super::Desk;
use crate::support::place::Place;

#[tokio::test]
async fn flags_cover_the_environment_and_that_the_file() {
    let desk = Desk::new();
    std::fs::write(
        desk.path("starlift.toml"),
        "[store]\nlocation = \"a\"\n[serve]\nwait = \"3s\"\n",
    )
    .unwrap();
    let ran = desk
        .run_with(
            &["config", "--log", "json"],
            &[("STARLIFT_SERVE_WAIT", "5s")],
        )
        .await;
    let text = ran.text();
    for line in [
        "location = \"a\"  # starlift.toml",
        "wait = \"5s\"  # STARLIFT_SERVE_WAIT",
        "format = \"json\"  # --log",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(
        text.contains("listen = \"127.0.0.1:8080\"  # default"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_key_stops_the_start() {
    let desk = Desk::new();
    std::fs::write(
        desk.path("mine.toml"),
        "[serve]\nlisten = \"127.0.0.1:0\"\nwiat = \"3s\"\n",
    )
    .unwrap();
    let error = desk.run(&["serve", "--config", "mine.toml"]).await.error();
    assert!(
        error.contains("mine.toml") && error.contains("[serve]") && error.contains("wiat"),
        "{error}"
    );
    let error = desk
        .run_with(&["serve"], &[("STARLIFT_SERVE_WIAT", "3s")])
        .await
        .error();
    assert!(
        error.contains("STARLIFT_SERVE_WIAT") && error.contains("wiat"),
        "{error}"
    );
    let error = desk.run(&["serve", "--wait", "soon"]).await.error();
    assert!(error.contains("--wait"), "{error}");
    let error = desk
        .run(&["serve", "--config", "missing.toml"])
        .await
        .error();
    assert!(error.contains("missing.toml"), "{error}");
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let desk = Desk::new();
    let environment = [
        ("STARLIFT_UPSTREAM_HUB__PASSWORD", "hunter2"),
        ("STARLIFT_STORE_SECRET_ACCESS_KEY", "hunter2"),
    ];
    let text = desk.run_with(&["config"], &environment).await.text();
    assert!(
        !text.contains("hunter2") && text.contains("# STARLIFT_UPSTREAM_HUB__PASSWORD"),
        "{text}"
    );
}

#[tokio::test]
async fn the_reference_can_be_printed() {
    let text = Desk::new().run(&["config", "--reference"]).await.text();
    assert_eq!(
        text,
        std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md")
        )
        .unwrap()
    );
}

#[test]
fn the_example_is_valid() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let loaded = Config::load(Some(&deploy.join("starlift.toml")), [], Vec::new()).unwrap();
    loaded.config.serve.check().unwrap();
    loaded.config.convert.options().unwrap();
    assert_eq!(loaded.config.upstreams.upstream.len(), 1);
}

#[test]
fn the_snippets_for_containerd_are_toml() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in ["hosts.toml", "containerd.toml", "containerd-1.toml"] {
        let text = std::fs::read_to_string(deploy.join(name)).unwrap();
        assert!(!text.parse::<toml::Table>().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let Some(place) = Place::with(&["systemd-analyze"]) else {
        return;
    };
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in ["starlift.service", "starlift-agent.service"] {
        let text = std::fs::read_to_string(deploy.join(name)).unwrap();
        let command = "ExecStart=/usr/local/bin/starlift ";
        assert!(text.contains(command), "{name}");
        // Debian 12's systemd is older than this setting: it ignores it and prints a warning.
        let text = text.replace("FileDescriptorStorePreserve=yes", "");
        let unit = text.replace(
            command,
            &format!("ExecStart={} ", env!("CARGO_BIN_EXE_starlift")),
        );
        let unit = place.write(name, unit);
        let verified = place
            .command("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&unit)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let of_ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(of_ours.is_empty(), "{said}");
    }
}
