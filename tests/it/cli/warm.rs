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
