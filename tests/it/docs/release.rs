//! `.ci/release` packs an executable that is built already.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use super::sources::top;
use crate::support::place::Place;

const TOOLS: &[&str] = &[
    "cargo", "rustc", "jq", "dpkg-deb", "openssl", "gzip", "bash",
];

/// Packs a small executable that runs the real one, because packing that one takes minutes.
fn release(place: &Place, out: &Path, key: &Path) {
    let script = format!(
        "#!/bin/sh\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_starlift")
    );
    let binary = place.write("starlift", script);
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = place.command(top().join(".ci/release"));
    command
        .arg("--binary")
        .arg(binary)
        .arg("--out")
        .arg(out)
        .arg("--key")
        .arg(key);
    // cargo's home is that of the machine, whatever the workspace's is.
    let home = std::env::var("HOME").unwrap();
    for (variable, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        let folder = std::env::var(variable).unwrap_or(format!("{home}/{folder}"));
        command.env(variable, folder);
    }
    command
        .env("CARGO_NET_OFFLINE", "true")
        .env("SOURCE_DATE_EPOCH", "1700000000");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_release_has_a_package_its_components_their_notices_and_a_signature() {
    let Some(place) = Place::with(TOOLS) else {
        return;
    };
    let out = place.path().join("out");
    let (key, public) = (place.path().join("key.pem"), place.path().join("key.pub"));
    let (key_text, public_text) = (key.display(), public.display());
    place.run(&format!(
        "openssl genpkey -algorithm ed25519 -out {key_text}"
    ));
    place.run(&format!(
        "openssl pkey -in {key_text} -pubout -out {public_text}"
    ));
    release(&place, &out, &key);

    let sums = out.join("SHA256SUMS");
    let verified = place.run(&format!(
        "openssl pkeyutl -verify -rawin -pubin -inkey {public_text} -in {} -sigfile {}.sig",
        sums.display(),
        sums.display()
    ));
    assert!(verified.contains("Verified Successfully"), "{verified}");
    let mut check = place.command("sha256sum");
    let checked = check
        .current_dir(&out)
        .args(["-c", "SHA256SUMS"])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(fs::read_to_string(&sums).unwrap().lines().count(), 4);

    let named = |end: &str| {
        let entries = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut found = entries.filter(|path| path.to_str().unwrap().ends_with(end));
        found.next().unwrap_or_else(|| panic!("no {end}"))
    };
    let package = named(".deb");
    let contents = place.run(&format!("dpkg-deb --contents {}", package.display()));
    for file in [
        "./usr/bin/starlift",
        "./lib/systemd/system/starlift-agent.service",
        "./etc/starlift/starlift.toml",
        "./usr/share/man/man1/starlift-agent-install.1.gz",
        "./usr/share/bash-completion/completions/starlift",
        "./usr/share/doc/starlift/copyright",
        "./usr/share/doc/starlift/THIRD-PARTY-NOTICES",
    ] {
        let is_there = contents
            .lines()
            .any(|line| line.ends_with(file) && line.contains("root/root"));
        assert!(is_there, "{file}\n{contents}");
    }
    let unpacked = place.dir("unpacked");
    place.run(&format!(
        "dpkg-deb --extract {} {}",
        package.display(),
        unpacked.display()
    ));
    let unit = fs::read_to_string(unpacked.join("lib/systemd/system/starlift.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/starlift serve"), "{unit}");

    let components: Value = serde_json::from_slice(&fs::read(named(".cdx.json")).unwrap()).unwrap();
    let components = components["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert!(
        names.contains("tokio") && names.contains("fuser"),
        "{names:?}"
    );
    let unlinked = ["proptest", "protox", "starlift"];
    assert!(
        !unlinked.iter().any(|name| names.contains(name)),
        "{names:?}"
    );
    for component in components {
        let license = component["licenses"][0]["expression"].as_str();
        assert!(
            license.is_some_and(|license| license != "unknown"),
            "{component}"
        );
    }
    let notices = fs::read_to_string(out.join("THIRD-PARTY-NOTICES")).unwrap();
    assert!(notices.contains("Permission is hereby granted"));
    for name in names {
        let is_listed = notices
            .lines()
            .any(|line| line.starts_with(&format!("{name} ")));
        assert!(is_listed, "{name}");
    }
}
