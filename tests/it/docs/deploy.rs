//! The examples in `deploy/` are accepted by the programs that read them.

use std::fs;
use std::path::PathBuf;

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
