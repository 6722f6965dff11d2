//! `starlift agent doctor` and the containerd that runs: a dry Prepare through it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::eventually::eventually;
use crate::support::place::Place;

on_each_release!(labels_reach_the_agent_through_a_containerd_that_has_it);

/// Returns the state and the finding of the doctor's dry Prepare, if there was one.
fn labels(
    place: &Place,
    agent: &Agent,
    containerd: &Containerd<'_>,
    file: &Path,
) -> Option<(String, String)> {
    let mut doctor = place.command(env!("CARGO_BIN_EXE_starlift"));
    doctor
        .args(["agent", "doctor", "--json", "--root"])
        .arg(&agent.root)
        .arg("--address")
        .arg(&agent.socket)
        .arg("--containerd-config")
        .arg(file)
        .arg("--containerd-address")
        .arg(&containerd.socket);
    let output = doctor.output().unwrap();
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = checks.as_array().unwrap().iter();
    let mut named = all.filter(|check| check["what"] == "labels");
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let check = named.next()?;
    assert!(named.next().is_none(), "{checks}");
    Some((text(check, "state"), text(check, "told")))
}

fn labels_reach_the_agent_through_a_containerd_that_has_it(release: Release) {
    let Some(place) = release.place(&[]) else {
        return;
    };
    let mut agent = Agent::start(&place);
    // The file gets the agent after containerd has read it.
    let containerd = Containerd::start(&place);
    let file = place.path().join("containerd.toml");
    let written = fs::read_to_string(&file).unwrap() + &agent.plugin("stargz");
    fs::write(&file, &written).unwrap();
    let (state, finding) = labels(&place, &agent, &containerd, &file).unwrap();
    assert_eq!(state, "bad", "{finding}");
    assert!(finding.contains("has no snapshotter"), "{finding}");
    drop(containerd);

    let containerd = Containerd::start_from(&place, &file);
    let (state, finding) = labels(&place, &agent, &containerd, &file).unwrap();
    assert_eq!(state, "good", "{finding}");
    eventually("the snapshot of the trial is gone", || {
        agent.directories().is_empty()
    });
    assert!(agent.lazy().is_empty());

    agent.daemon.stop();
    let (state, finding) = labels(&place, &agent, &containerd, &file).unwrap();
    assert_eq!(state, "bad", "{finding}");
}
