//! `starlift config`, and the precedence of flags, environment and file.

use std::path::Path;

use super::Desk;

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

#[tokio::test]
async fn a_server_for_others_without_named_upstreams_does_not_start() {
    let desk = Desk::new();
    let serve = ["serve", "--listen", "0.0.0.0:0"];
    let rule = "[{who = ['anyone'], may = ['pull'], images = ['docker.io/**']}]";
    let rule = ("STARLIFT_SERVE_ACCESS__RULE", rule);
    let ran = desk.run_with(&serve, &[rule]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("[pull] allow ="), "{}", ran.stderr);
    let ran = desk
        .run_with(&serve, &[("STARLIFT_PULL_ALLOW", "docker.io")])
        .await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("[[serve.access.rule]]"),
        "{}",
        ran.stderr
    );
}
