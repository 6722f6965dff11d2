//! `starlift agent doctor` on a node with one fault each. containerd's part is in `clients`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::place::Place;
use crate::support::registry::{Auth, Registry, TokenAuth};

/// Returns the checks of this name, as `state: finding`.
fn checks(doctor: &mut Command, what: &str) -> Vec<String> {
    let output = doctor.output().unwrap();
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let all = all.as_array().unwrap().iter();
    let named = all.filter(|check| check["what"] == what);
    named
        .map(|check| {
            let text = |key: &str| check[key].as_str().unwrap();
            assert_eq!(
                check["state"] == "good",
                check["mend"].is_null(),
                "every finding has its mend: {check}"
            );
            format!("{}: {}", text("state"), text("told"))
        })
        .collect()
}

/// Returns the doctor of a node whose agent has this root, and whose hosts are in `certs.d`.
fn doctor(place: &Place, root: &Path) -> Command {
    with_program(place, env!("CARGO_BIN_EXE_starlift"), &[], root)
}

fn with_program(place: &Place, program: &str, arguments: &[&str], root: &Path) -> Command {
    let mut command = place.command(program);
    command
        .args(arguments)
        .args(["agent", "doctor", "--json", "--root"])
        .arg(root)
        .env("STARLIFT_PULL_CERTS_DIR", place.dir("certs.d"));
    command
}

fn assert_one(checks: &[String], part: &str) {
    assert!(
        matches!(checks, [check] if check.contains(part)),
        "{part}: {checks:?}"
    );
}

#[test]
fn a_file_system_that_takes_no_overlay_is_bad_and_one_in_memory_is_fair() {
    let place = Place::with(&["mount"]).unwrap();
    let [lower, upper, work, over, memory, disk] =
        ["lower", "upper", "work", "over", "memory", "disk"].map(|name| place.dir(name));
    let over_text = over.display();
    place.run(&format!(
        "mount -t overlay overlay -olowerdir={},upperdir={},workdir={} {over_text}",
        lower.display(),
        upper.display(),
        work.display()
    ));
    place.run(&format!("mount -t tmpfs tmpfs {}", memory.display()));
    let of = |root: &Path| checks(&mut doctor(&place, root), "file system");
    assert_one(&of(&over.join("agent")), "bad: overlay, which takes no");
    assert_one(&of(&memory), "fair: tmpfs");
    // The directory of the workspace may be on any file system on which the tests run.
    assert_one(&of(&disk), "takes the overlay of containers");
    for folder in [&over, &memory, &disk] {
        let left = std::fs::read_dir(folder).unwrap().count();
        assert_eq!(left, 0, "{}", folder.display());
    }
    place.run(&format!("umount {over_text}"));
    place.run(&format!("umount {}", memory.display()));
}

/// Writes a `hosts.toml` with one mirror for a registry that nothing listens for.
fn write_hosts(place: &Place, mirror: &str) {
    let text = format!("server = \"http://127.0.0.1:1\"\n[host.\"{mirror}\"]\n");
    place.write("certs.d/images.example/hosts.toml", text);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_out_of_reach_or_refuse_are_named() {
    let place = Place::with(&[]).unwrap();
    let root = place.dir("agent");
    let of = |what: &str| checks(&mut doctor(&place, &root), what);
    assert_one(&of("servers"), "good: none is named");

    let registry = Registry::start().await;
    write_hosts(&place, &registry.url());
    let found = of("servers");
    let [reached, unreached] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert!(
        reached.contains(&format!("good: {}", registry.host())),
        "{reached}"
    );
    assert!(reached.contains("without credentials"), "{reached}");
    assert!(
        unreached.starts_with("fair: 127.0.0.1:1 for images.example"),
        "the registry itself may be behind its mirror: {unreached}"
    );
    assert_one(&of("clock"), "good");

    // "node:secret".
    let login = r#"{"auths": {"HOST": {"auth": "bm9kZTpzZWNyZXQ="}}}"#;
    let login = login.replace("HOST", &registry.host());
    let (user, password) = ("node", "secret");
    for auth in [
        Auth::Basic { user, password },
        Auth::Token(TokenAuth::user(user, password)),
    ] {
        registry.require(auth);
        place.write("home/.docker/config.json", "{}");
        assert_one(&of("credentials"), "refuses this machine");
        place.write("home/.docker/config.json", &login);
        assert!(of("credentials").is_empty());
        assert!(of("servers")[0].contains("with this machine's credentials"));
    }
    registry.require(Auth::Token(TokenAuth::anonymous()));
    place.write("home/.docker/config.json", "{}");
    assert!(of("servers")[0].contains("anonymously"));

    write_hosts(&place, "http://127.0.0.1:2");
    let bad = of("servers");
    assert!(
        bad.len() == 2 && bad.iter().all(|check| check.starts_with("bad: 127.0.0.1:")),
        "{bad:?}"
    );
    place.write("certs.d/images.example/hosts.toml", "server = 7\n");
    assert_one(&of("hosts.toml"), "bad: images.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_bad() {
    let Some(place) = Place::with(&["faketime"]) else {
        return;
    };
    let root = place.dir("agent");
    let registry = Registry::start().await;
    write_hosts(&place, &registry.url());
    for (shift, finding) in [("+2h", "ahead of"), ("-2h", "behind")] {
        let arguments = ["-f", shift, env!("CARGO_BIN_EXE_starlift")];
        let mut doctor = with_program(&place, "faketime", &arguments, &root);
        let found = checks(&mut doctor, "clock");
        assert_one(&found, finding);
        assert!(found[0].starts_with("bad: "), "{found:?}");
    }
}
