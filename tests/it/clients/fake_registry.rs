//! Checks the fake registry with a real client, which pulls from it and pushes to it.

use std::path::Path;
use std::process::Stdio;

use starlift::oci::media_type;
use tokio::process::Command;

use crate::support::image::{Compression, Image, ImageBuilder};
use crate::support::registry::{Auth, Lacks, Registry, TokenAuth};

async fn skopeo(arguments: &[&str]) {
    let command = Command::new("skopeo")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = command.await.expect("skopeo is installed");
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn layout(directory: &Path, tag: &str) -> String {
    format!("oci:{}:{tag}", directory.display())
}

#[tokio::test]
async fn skopeo_pulls_and_pushes_every_kind_of_image() {
    let registry = Registry::start().await;
    let arm = ImageBuilder::new(2)
        .architecture("arm64")
        .compression(Compression::Zstd)
        .build();
    let amd = ImageBuilder::new(1).build();
    let index = Image::index(vec![("linux/amd64", amd), ("linux/arm64", arm)], true);
    let docker = ImageBuilder::new(3)
        .docker()
        .layers(3)
        .files(4)
        .max_file(100)
        .build();
    registry.push("library/index", "v1", &index);
    registry.push("library/docker", "v1", &docker);
    registry.push(
        "library/plain",
        "v1",
        &ImageBuilder::new(4).compression(Compression::Plain).build(),
    );
    for name in ["index", "docker", "plain"] {
        let source = format!("docker://{}/library/{name}:v1", registry.host());
        let target = format!("docker://{}/copies/{name}:v2", registry.host());
        let flags = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo(&[
            "copy",
            "--all",
            "--preserve-digests",
            flags[0],
            flags[1],
            &source,
            &target,
        ])
        .await;

        let (source, target) = (format!("library/{name}"), format!("copies/{name}"));
        assert_eq!(
            registry.manifest(&target, "v2"),
            registry.manifest(&source, "v1")
        );
    }
    assert_eq!(
        registry.manifest("copies/docker", "v2").unwrap().0,
        media_type::DOCKER_MANIFEST
    );
}

#[tokio::test]
async fn skopeo_takes_both_kinds_of_authentication() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(5).build());
    let source = format!("docker://{}/app:v1", registry.host());
    for auth in [
        Auth::Basic {
            user: "me",
            password: "secret",
        },
        Auth::Token(TokenAuth::user("me", "secret")),
    ] {
        registry.require(auth);
        let target = layout(directory.path(), "v1");
        skopeo(&[
            "copy",
            "--src-tls-verify=false",
            "--src-creds",
            "me:secret",
            &source,
            &target,
        ])
        .await;
    }
    assert!(registry.count("GET", "/token") > 0);
}

#[tokio::test]
async fn an_upload_by_patch_works_for_registries_that_accept_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(6).layers(1).build();
    let registry = Registry::start().await;
    registry.push("app", "v1", &image);
    let source = format!("docker://{}/app:v1", registry.host());
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &source,
        &layout(directory.path(), "v1"),
    ])
    .await;
    let other = Registry::start().await;
    other.lack(Lacks {
        monolithic_upload: true,
        ..Lacks::default()
    });
    let target = format!("docker://{}/app:v1", other.host());
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &layout(directory.path(), "v1"),
        &target,
    ])
    .await;
    assert!(image.layers().iter().all(|layer| {
        other
            .blob(&starlift::oci::Digest::sha256_of(layer))
            .is_some()
    }));
}
