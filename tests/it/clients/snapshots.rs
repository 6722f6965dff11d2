//! A real containerd uses ordinary snapshots of `starlift agent`: pulled, run, committed, listed
//! and collected, and the same after a restart of either of the two.

use std::fs;
use std::path::Path;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::Place;

fn place(containerd: Release, more: &[&str]) -> Option<Place> {
    containerd.place(&[fixture::TOOLS, &["docker-registry"], more].concat())
}

/// Pushes an image to a registry, and returns the name to pull it by.
fn pushed(place: &Place, fixture: &Fixture) -> (DockerRegistry, String) {
    let registry = DockerRegistry::start(place, Access::Anyone);
    registry.push(place, fixture, "image", false);
    let name = format!("{}/image:1", registry.address);
    (registry, name)
}

fn snapshots(containerd: &Containerd<'_>, snapshotter: &str) -> Vec<String> {
    let listed = containerd.ctr(&format!("snapshots --snapshotter {snapshotter} ls"));
    listed
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

/// Pulls an image and runs a container that writes, under the plugin's name `snapshotter`. Compares
/// the tree with that of overlayfs.
fn an_image_is_pulled_and_run(snapshotter: &str, containerd: Release) {
    let Some(place) = place(containerd, &[]) else {
        return;
    };
    let (_registry, image) = pushed(&place, &Fixture::get("app"));
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin(snapshotter));
    containerd.ctr(&format!(
        "images pull --plain-http --snapshotter {snapshotter} {image}"
    ));
    containerd.ctr(&format!("images pull --plain-http {image}"));
    let lazy = containerd.tree_in(snapshotter, &image, "lazy", 0);
    containerd
        .tree(&image, "unpacked", 0)
        .assert_same(&lazy, "overlayfs, then the agent");

    let script = place.write(
        "script",
        "set -e\necho written > /etc/new\ncat /etc/new /usr/share/old/d\nrm /etc/owned\n",
    );
    let mount = format!(
        "type=bind,src={},dst=/script,options=rbind:ro",
        script.display()
    );
    let one = place.container_id("one");
    let run = format!(
        "run --rm --snapshotter {snapshotter} --mount {mount} {image} {one} /bin/sh /script"
    );
    assert_eq!(containerd.ctr(&run), "written\nnew\n");
    assert!(
        !snapshots(&containerd, snapshotter).contains(&one),
        "the container's snapshot is gone"
    );
}

on_each_release!(
    an_image_is_pulled_and_run_under_the_agents_own_name,
    a_lazy_pull_unpacks_an_image_that_cannot_be_lazy,
    every_command_on_snapshots_works,
    containers_and_snapshots_survive_restarts_of_both_daemons,
    a_removed_image_is_collected_and_can_be_pulled_again,
);

fn an_image_is_pulled_and_run_under_the_agents_own_name(containerd: Release) {
    an_image_is_pulled_and_run("starlift", containerd);
}

#[test]
fn an_image_is_pulled_and_run_under_the_stargz_plugins_name() {
    an_image_is_pulled_and_run("stargz", Release::V1_6);
}

fn a_lazy_pull_unpacks_an_image_that_cannot_be_lazy(containerd: Release) {
    let Some(place) = place(containerd, &["ctr-remote"]) else {
        return;
    };
    let (_registry, image) = pushed(&place, &Fixture::get("app"));
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    containerd.pull_lazily(&image);
    let one = place.container_id("one");
    let run = format!("run --rm --snapshotter stargz {image} {one} /bin/cat /usr/share/old/d");
    assert_eq!(containerd.ctr(&run), "new\n");
}

fn every_command_on_snapshots_works(containerd: Release) {
    let Some(place) = place(containerd, &[]) else {
        return;
    };
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin("starlift"));
    let ctr = |line: &str| containerd.ctr(&format!("snapshots --snapshotter starlift {line}"));

    ctr("prepare first");
    let target = place.dir("target");
    place.run(ctr(&format!("mounts {} first", target.display())).trim());
    fs::write(target.join("file"), vec![7; 100_000]).unwrap();
    place.run(&format!("umount {}", target.display()));
    ctr("commit base first");
    ctr("prepare second base");
    ctr("view seen base");
    ctr("label base some.label=some-value");
    let info: serde_json::Value = serde_json::from_str(&ctr("info base")).unwrap();
    assert_eq!(
        (&info["Kind"], &info["Labels"]["some.label"]),
        (&"Committed".into(), &"some-value".into())
    );
    let mut listed = snapshots(&containerd, "starlift");
    listed.sort();
    assert_eq!(listed, ["base", "second", "seen"]);
    assert!(ctr("tree").contains("base\n  \\_ se"), "{}", ctr("tree"));
    let usage = ctr("usage -b base");
    let bytes: u64 = usage
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((100_000..200_000).contains(&bytes), "{usage}");

    place.run(ctr(&format!("mounts {} seen", target.display())).trim());
    assert_eq!(fs::read(target.join("file")).unwrap(), vec![7; 100_000]);
    assert!(
        fs::write(target.join("file"), "").is_err(),
        "a view is read-only"
    );
    place.run(&format!("umount {}", target.display()));

    let mut refused = place.command("ctr");
    refused.arg("-a").arg(&containerd.socket).args([
        "snapshots",
        "--snapshotter",
        "starlift",
        "rm",
        "base",
    ]);
    let refused = refused.output().unwrap();
    let answer = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && answer.contains("cannot remove snapshot with child"),
        "{answer}"
    );
    for name in ["seen", "second", "base"] {
        ctr(&format!("rm {name}"));
    }
    containerd.collect_garbage();
    eventually("the directories are gone", || {
        agent.directories().is_empty()
    });
}

fn containers_and_snapshots_survive_restarts_of_both_daemons(containerd: Release) {
    let Some(place) = place(containerd, &[]) else {
        return;
    };
    let (_registry, image) = pushed(&place, &Fixture::get("app"));
    let mut agent = Agent::start(&place);
    let plugin = agent.plugin("starlift");
    let containerd = Containerd::start_with(&place, &plugin);
    containerd.ctr(&format!(
        "images pull --plain-http --snapshotter starlift {image}"
    ));
    let [lives, after_kill, after_restart] =
        ["lives", "after-kill", "after-restart"].map(|name| place.container_id(name));
    // The script's path is in the container's command line, so that the workspace ends the
    // container if the test fails.
    let script = place
        .write("script", "while :; do sleep 1; done")
        .display()
        .to_string();
    let mount = format!("type=bind,src={script},dst={script},options=rbind:ro");
    containerd.ctr(&format!(
        "run -d --snapshotter starlift --mount {mount} {image} {lives} /bin/sh {script}"
    ));
    let before = snapshots(&containerd, "starlift");
    let exec = |containerd: &Containerd<'_>, id: &str, line: &str| {
        containerd.ctr(&format!("tasks exec --exec-id {id} {lives} {line}"))
    };

    agent.daemon.kill();
    assert_eq!(
        exec(&containerd, "one", "/bin/cat /usr/share/old/d"),
        "new\n",
        "a running container does not need the agent"
    );
    drop(agent);
    let mut agent = Agent::start(&place);
    // Its gRPC client waits before it dials again, and refuses every call until then.
    eventually("containerd has dialled the agent again", || {
        let mut list = place.command("ctr");
        list.arg("-a").arg(&containerd.socket).args([
            "snapshots",
            "--snapshotter",
            "starlift",
            "ls",
        ]);
        list.output().unwrap().status.success()
    });
    assert_eq!(snapshots(&containerd, "starlift"), before);
    containerd.ctr(&format!(
        "run --rm --snapshotter starlift {image} {after_kill} /bin/true"
    ));

    agent.daemon.stop();
    drop(containerd);
    drop(agent);
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &plugin);
    assert_eq!(snapshots(&containerd, "starlift"), before);
    assert_eq!(
        exec(&containerd, "two", "/bin/cat /usr/share/old/d"),
        "new\n"
    );
    containerd.ctr(&format!(
        "run --rm --snapshotter starlift {image} {after_restart} /bin/true"
    ));
    containerd.ctr(&format!("tasks kill --signal SIGKILL {lives}"));
    eventually("the task is over", || {
        containerd.ctr("tasks ls").contains("STOPPED")
    });
    containerd.ctr(&format!("tasks rm {lives}"));
    containerd.ctr(&format!("containers rm {lives}"));
    assert!(!agent.directories().is_empty());
}

fn a_removed_image_is_collected_and_can_be_pulled_again(containerd: Release) {
    let Some(place) = place(containerd, &[]) else {
        return;
    };
    let (_registry, image) = pushed(&place, &Fixture::get("app"));
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin("starlift"));
    let one = place.container_id("one");
    for _ in 0..2 {
        containerd.ctr(&format!(
            "images pull --plain-http --snapshotter starlift {image}"
        ));
        assert_eq!(
            (
                snapshots(&containerd, "starlift").len(),
                agent.directories().len()
            ),
            (3, 3)
        );
        let run =
            format!("run --rm --snapshotter starlift {image} {one} /bin/cat /usr/share/old/d");
        assert_eq!(containerd.ctr(&run), "new\n");
        containerd.ctr(&format!("images rm --sync {image}"));
        eventually("the snapshots are collected", || {
            agent.directories().is_empty()
        });
        assert!(snapshots(&containerd, "starlift").is_empty());
    }
}

/// Builds `app` with further layers, up to thirty. Half of the new layers have a separate file, the
/// others a newer version of one file.
fn thirty_layers(place: &Place) -> Fixture {
    let dir = place.path().join("deep");
    place.run(&format!(
        "cp -r {} {}",
        Fixture::get("app").dir.display(),
        dir.display()
    ));
    let image = format!("{}:1", dir.display());
    let held = fixture_layers(&dir);
    for layer in held + 1..=30 {
        let file = place.write("layer", layer.to_string());
        let target = if layer % 2 == 0 {
            "/etc/version".to_owned()
        } else {
            format!("/etc/layer-{layer}")
        };
        place.run(&format!(
            "umoci insert --image {image} {} {target}",
            file.display()
        ));
    }
    assert_eq!(fixture_layers(&dir), 30);
    Fixture { dir }
}

fn fixture_layers(dir: &Path) -> usize {
    let manifest = Fixture {
        dir: dir.to_owned(),
    }
    .layout()
    .manifest("1");
    manifest["layers"].as_array().unwrap().len()
}

#[test]
fn thirty_layers_are_one_file_system() {
    let Some(place) = place(Release::V1_6, &[]) else {
        return;
    };
    let (_registry, image) = pushed(&place, &thirty_layers(&place));
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin("starlift"));
    containerd.ctr(&format!(
        "images pull --plain-http --snapshotter starlift {image}"
    ));
    assert_eq!(snapshots(&containerd, "starlift").len(), 30);
    let one = place.container_id("one");
    let run = format!(
        "run --rm --snapshotter starlift {image} {one} /bin/cat /etc/version /etc/layer-29 /etc/layer-5"
    );
    assert_eq!(containerd.ctr(&run), "30295");
}
