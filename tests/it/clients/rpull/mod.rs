//! `starlift rpull` into a real containerd: the contents afterwards, and nothing left after a
//! failure.

mod faults;
mod images;
mod lazy;
mod logins;

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release};
use crate::support::fixture;
use crate::support::place::Place;

const STARLIFT: &str = env!("CARGO_BIN_EXE_starlift");

fn place(more: &[&str]) -> Option<Place> {
    Release::V1_6.place(more)
}

/// Returns a workspace for images with real programs.
fn place_with_images(containerd: Release, more: &[&str]) -> Option<Place> {
    containerd.place(&[fixture::TOOLS, &["docker-registry"], more].concat())
}

/// containerd with Starlift's agent as its snapshotter `stargz`.
struct Node<'a> {
    place: &'a Place,
    containerd: Containerd<'a>,
    /// Dropped after containerd.
    _agent: Agent,
}

impl<'a> Node<'a> {
    fn start(place: &'a Place) -> Self {
        let agent = Agent::start(place);
        let containerd = Containerd::start_with(place, &agent.plugin("stargz"));
        Self {
            place,
            containerd,
            _agent: agent,
        }
    }

    /// Returns a `starlift rpull` command with these arguments and a time limit.
    fn command(&self, words: &str) -> Command {
        rpull(
            self.place,
            self.place.command(STARLIFT),
            &self.containerd,
            words,
        )
    }

    /// Runs a pull that must succeed, and returns its report.
    #[track_caller]
    fn pull(&self, words: &str) -> Value {
        pull(self.place, &self.containerd, words)
    }

    /// Runs a pull that must fail, and returns its single line.
    #[track_caller]
    fn refusal(&self, words: &str) -> String {
        refusal(&self.command(words).output().unwrap())
    }

    fn ctr(&self, line: &str) -> String {
        self.containerd.ctr(line)
    }

    fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let listed = self.ctr(&format!("snapshots --snapshotter {snapshotter} ls"));
        listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect()
    }

    /// Checks that containerd holds nothing of a pull: no image, lease, blob, half-written blob or
    /// snapshot.
    #[track_caller]
    fn assert_empty(&self) {
        for list in ["images ls -q", "leases ls -q", "content ls -q"] {
            assert_eq!(self.ctr(list), "", "{list}");
        }
        let active = self.ctr("content active");
        assert_eq!(active.lines().count(), 1, "more than the heading: {active}");
        for snapshotter in ["stargz", "overlayfs"] {
            assert!(
                self.snapshots(snapshotter).is_empty(),
                "{:?}",
                self.snapshots(snapshotter)
            );
        }
    }
}

/// Adds the arguments of an `rpull` to a `starlift` command.
fn rpull(place: &Place, mut command: Command, containerd: &Containerd<'_>, words: &str) -> Command {
    command
        .current_dir(place.path())
        .env_remove("STARLIFT_CONFIG")
        .env_remove("CONTAINERD_SNAPSHOTTER");
    command
        .args(["rpull", "--address"])
        .arg(&containerd.socket)
        .args(words.split_whitespace());
    command
}

#[track_caller]
fn pull(place: &Place, containerd: &Containerd<'_>, words: &str) -> Value {
    pulled(
        &rpull(
            place,
            place.command(STARLIFT),
            containerd,
            &format!("--json {words}"),
        )
        .output()
        .unwrap(),
    )
}

#[track_caller]
fn pulled(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stderr.is_empty(),
        "progress without a terminal: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refusal(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    let line = said.trim_end();
    assert!(
        line.starts_with("error: ") && !line.contains('\n'),
        "{line}"
    );
    line.to_owned()
}

/// Returns the outcome of each layer, bottom first.
fn outcomes(pulled: &Value) -> Vec<&str> {
    pulled["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["outcome"].as_str().unwrap())
        .collect()
}
