//! The examples in `deploy/` are accepted by the programs that read them.

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;
use starlift::config::Config;

use super::sources::top;
use crate::support::place::Place;

fn deploy(name: &str) -> PathBuf {
    top().join("deploy").join(name)
}

#[test]
fn the_example_is_valid() {
    let loaded = Config::load(Some(&deploy("starlift.toml")), [], Vec::new()).unwrap();
    loaded.config.serve.check().unwrap();
    loaded.config.convert.options().unwrap();
    assert_eq!(loaded.config.upstreams.upstream.len(), 1);
    assert_eq!(loaded.config.serve.access.rule.len(), 2);
    assert!(!loaded.is_default(&["pull", "allow"]));
}

#[test]
fn the_snippets_for_containerd_are_toml() {
    for name in ["hosts.toml", "containerd.toml", "containerd-1.toml"] {
        let text = fs::read_to_string(deploy(name)).unwrap();
        assert!(!text.parse::<toml::Table>().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let Some(place) = Place::with(&["systemd-analyze"]) else {
        return;
    };
    for name in ["starlift.service", "starlift-agent.service"] {
        let text = fs::read_to_string(deploy(name)).unwrap();
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

#[test]
fn systemd_takes_the_unit_of_a_user() {
    let Some(place) = Place::with(&["systemd-analyze"]) else {
        return;
    };
    let name = "starlift-agent-rootless.service";
    let text = fs::read_to_string(deploy(name)).unwrap();
    assert!(text.contains(" /usr/local/bin/starlift agent\n"), "{text}");
    let unit = place.write(name, text);
    let verified = place
        .command("systemd-analyze")
        .args(["--user", "verify", "--man=no"])
        .arg(&unit)
        .env("XDG_RUNTIME_DIR", place.dir("run"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
    assert!(verified.status.success() && of_ours.is_empty(), "{said}");
}

#[test]
fn compose_takes_its_file_and_the_program_the_configurations_of_the_demonstrations() {
    for demonstration in ["compose", "kind"] {
        let file = deploy(demonstration).join("starlift.toml");
        let listen = (
            "STARLIFT_SERVE_LISTEN".to_owned(),
            "0.0.0.0:8080".to_owned(),
        );
        let loaded = Config::load(Some(&file), [listen], Vec::new()).unwrap();
        // Beyond loopback a server starts only with rules.
        loaded.config.serve.check().unwrap();
        assert!(!loaded.is_default(&["pull", "allow"]), "{demonstration}");
    }
    let Some(place) = Place::with(&["docker-compose"]) else {
        return;
    };
    let file = deploy("compose/compose.yaml");
    let compose = |arguments: &str| {
        place.run(&format!(
            "docker-compose -f {} config {arguments}",
            file.display()
        ))
    };
    let services = compose("--services");
    let mut services: Vec<&str> = services.lines().collect();
    services.sort_unstable();
    assert_eq!(services, ["node", "registry", "server"]);
    let volumes = compose("--volumes");
    assert_eq!(volumes.lines().count(), 4, "{volumes}");
    let text = fs::read_to_string(&file).unwrap();
    let broken = place.write(
        "compose.yaml",
        text.replace("privileged: true", "privileged: 7"),
    );
    let mut refused = place.command("docker-compose");
    refused.arg("-f").arg(broken).args(["config", "--quiet"]);
    assert!(!refused.output().unwrap().status.success());
}

/// Decodes a cluster with kind's own types.
fn kind(place: &Place, cluster: &str) -> Output {
    let file = place.write("cluster.yaml", cluster);
    let mut decoder = place.command("kind-config");
    decoder.stdin(Stdio::from(fs::File::open(file).unwrap()));
    decoder.output().unwrap()
}

#[test]
fn kind_takes_its_cluster() {
    let Some(place) = Place::with_clients(&["kind-config"], &[]) else {
        return;
    };
    let text = fs::read_to_string(deploy("kind/cluster.yaml")).unwrap();
    let decoded = kind(&place, &text);
    assert!(decoded.status.success(), "{decoded:?}");
    let cluster: Value = serde_json::from_slice(&decoded.stdout).unwrap();
    let mounts = &cluster["nodes"][0]["extraMounts"];
    assert_eq!(mounts[0]["containerPath"], "/usr/local/bin/starlift");
    let broken = kind(&place, &text.replace("extraMounts", "extraMount"));
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(said.contains("extraMount"), "{said}");
}
