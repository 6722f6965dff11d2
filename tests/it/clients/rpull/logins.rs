//! The user and the address that `rpull` uses for a registry.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use super::{Node, STARLIFT, outcomes, place, refusal};
use crate::support::image::ImageBuilder;
use crate::support::registry::{Auth, Registry, TokenAuth};

async fn registry(auth: Option<Auth>) -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    if let Some(auth) = auth {
        registry.require(auth);
    }
    let name = format!("{}/app:v1", registry.host());
    (registry, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flags_set_the_user() {
    let Some(place) = place(&[]) else { return };
    let (registry, name) = registry(Some(Auth::Basic {
        user: "me",
        password: "se:cret",
    }))
    .await;
    let node = Node::start(&place);
    for words in [
        name.clone(),
        format!("--user me:wrong {name}"),
        format!("--user other:se:cret {name}"),
    ] {
        let message = node.refusal(&words);
        assert!(
            message.contains("credentials") && !message.contains("se:cret"),
            "{message}"
        );
    }
    node.assert_empty();
    assert_eq!(
        outcomes(&node.pull(&format!("--user me:se:cret {name}"))),
        ["unpacked"; 2]
    );

    registry.require(Auth::Token(TokenAuth::identity("refresh")));
    node.pull(&format!("--refresh refresh {name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_through_a_pipe() {
    let Some(place) = place(&[]) else { return };
    let (_registry, name) = registry(Some(Auth::Token(TokenAuth::user("me", "secret")))).await;
    let node = Node::start(&place);
    let pull = |line: &[u8]| {
        let mut command = node.command(&format!("-u me {name}"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(line).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(refusal(&pull(b"\n")).contains("no password was given"));
    let output = pull(b"secret\n");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_typed_is_not_shown() {
    let Some(place) = place(&["script"]) else {
        return;
    };
    let (_registry, name) = registry(Some(Auth::Basic {
        user: "me",
        password: "secret",
    }))
    .await;
    let node = Node::start(&place);
    let line = format!(
        "{STARLIFT} rpull --address {} -u me {name}",
        node.containerd.socket.display()
    );
    let mut command = place.command("script");
    command
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    while !shown.ends_with(b"password of me:") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        shown.extend(byte);
    }
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"secret\n")
        .unwrap();
    output.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(child.wait().unwrap().success(), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_hosts_says_where_the_registry_is() {
    let Some(place) = place(&[]) else { return };
    let (registry, _) = registry(None).await;
    let hosts = format!("server = \"{}\"\n", registry.url());
    place.write("certs.d/registry.example/hosts.toml", hosts);
    let node = Node::start(&place);
    let pulled = node.pull("--hosts-dir certs.d registry.example/app:v1");
    assert_eq!(pulled["reference"], "registry.example/app:v1");
    assert!(
        node.ctr("content ls")
            .contains("containerd.io/distribution.source.registry.example=app")
    );
}
