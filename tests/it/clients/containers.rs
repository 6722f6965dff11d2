//! Real containerd starts real containers from images that are still in the registry, through
//! `starlift agent`.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, deployed, on_each_release};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::link::Link;
use crate::support::place::Place;
use crate::support::starlift::Starlift;

const ON_DEMAND: (&str, &str) = ("BACKGROUND", "off");

fn place(more: &[&str]) -> Option<Place> {
    place_with(Release::V1_6, more)
}

fn place_with(containerd: Release, more: &[&str]) -> Option<Place> {
    containerd.place(&[fixture::TOOLS, &["ctr-remote"], more].concat())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap() - 1
}

/// `starlift serve` with a fixture as its upstream `local`.
fn serving(place: &Place, fixture: &Fixture) -> (Starlift, Value) {
    let upstream = format!("local=oci:{}", fixture.dir.display());
    let server = Starlift::start(place, &["--wait", "25s", "--upstream", &upstream]);
    let manifest = server.converted("local/image", "1");
    (server, manifest)
}

fn layers(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// Asserts that no layer of the image was downloaded as a whole.
fn assert_lazy(containerd: &Containerd<'_>, agent: &Agent, manifest: &Value) {
    let held = containerd.ctr("content ls -q");
    for digest in layers(manifest) {
        assert!(
            !held.contains(&digest),
            "{digest} is in the content store\n{}",
            agent.status()
        );
    }
    assert_eq!(agent.lazy().len(), layers(manifest).len());
    assert_eq!(agent.status()["refusals"], Value::Array(Vec::new()));
}

fn a_lazy_image_is_the_image(name: &str, containerd: Release) {
    let Some(place) = place_with(containerd, &[]) else {
        return;
    };
    let fixture = Fixture::get(name);
    let (server, manifest) = serving(&place, &fixture);
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", server.address);
    let start = now();
    containerd.pull_lazily(&image);
    assert_lazy(&containerd, &agent, &manifest);
    let lazy = containerd.tree_of_snapshots("stargz", "lazy", start);
    // The converted image, unpacked. Other tests show that it equals the source image except for
    // the converter's own tail.
    containerd.ctr(&format!("images pull --plain-http {image}"));
    let unpacked = containerd.tree(&image, "unpacked", start);
    unpacked
        .rounded_to_seconds()
        .assert_same(&lazy.rounded_to_seconds(), name);
}

fn a_lazy_buildah_image_is_the_image(containerd: Release) {
    a_lazy_image_is_the_image("app", containerd);
}

fn a_lazy_image_of_odd_files_is_the_image(containerd: Release) {
    a_lazy_image_is_the_image("odd", containerd);
}

#[test]
fn a_lazy_root_file_system_is_the_image() {
    a_lazy_image_is_the_image("rootfs", Release::V1_6);
}

on_each_release!(
    a_lazy_buildah_image_is_the_image,
    a_lazy_image_of_odd_files_is_the_image,
    containers_start_and_live_while_agents_come_and_go,
    a_lazy_image_is_removed_collected_and_pulled_again,
    the_doctor_passes_a_healthy_node_and_names_the_faults_of_others,
);

fn containers_start_and_live_while_agents_come_and_go(containerd: Release) {
    let Some(place) = place_with(containerd, &[]) else {
        return;
    };
    let (server, _) = serving(&place, &Fixture::get("app"));
    let mut agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", server.address);
    containerd.pull_lazily(&image);
    let lives = place.container_id("lives");
    let script = place.write(
        "script",
        "while cat /usr/share/old/d >/out/d; do echo x >>/out/turns; done; touch /out/failed",
    );
    let out = place.dir("out");
    let script = script.display().to_string();
    let mounts = format!(
        "--mount type=bind,src={script},dst={script},options=rbind:ro --mount type=bind,src={},dst=/out,options=rbind:rw",
        out.display()
    );
    containerd.ctr(&format!(
        "run -d --snapshotter stargz {mounts} {image} {lives} /bin/sh {script}"
    ));
    let turns = || fs::metadata(out.join("turns")).map_or(0, |turns| turns.len());
    let wait_for_turns = || {
        let before = turns();
        eventually("the container continues to read", || turns() > before + 20);
    };
    wait_for_turns();
    let upgraded = place.path().join("upgraded");
    fs::copy(env!("CARGO_BIN_EXE_starlift"), &upgraded).unwrap();
    for number in 0..3 {
        if number == 1 {
            agent.daemon.stop()
        } else {
            agent.daemon.kill()
        }
        let next = Agent::start_as(&upgraded, &place, &[ON_DEMAND]);
        drop(std::mem::replace(&mut agent, next));
        wait_for_turns();
        let run = format!(
            "run --rm --snapshotter stargz {image} {} /bin/cat /usr/share/old/d",
            place.container_id("short")
        );
        assert_eq!(
            containerd.ctr(&run),
            "new\n",
            "containers start on the layers that earlier agents mounted"
        );
    }
    assert!(!out.join("failed").exists());
    containerd.ctr(&format!("tasks kill --signal SIGKILL {lives}"));
    eventually("the task is over", || {
        containerd.ctr("tasks ls").contains("STOPPED")
    });
    containerd.ctr(&format!("tasks rm {lives}"));
    containerd.ctr(&format!("containers rm {lives}"));
}

/// Asserts that an image of the reference's converter is lazy, in a registry without any knowledge
/// of it.
fn the_references_images_are_lazy(flags: &str) {
    let Some(place) = place(&["docker-registry"]) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "image", false);
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let (source, converted) = (
        format!("{}/image:1", registry.address),
        format!("{}/image:lazy", registry.address),
    );
    containerd.ctr(&format!("images pull --plain-http {source}"));
    containerd.ctr_remote(&format!(
        "images convert {flags} --oci {source} {converted}"
    ));
    containerd.ctr(&format!("images push --plain-http {converted}"));
    let manifest = containerd.manifest(&converted);
    containerd.ctr(&format!("images rm --sync {source} {converted}"));
    let start = now();
    containerd.ctr_remote(&format!("images rpull --plain-http {converted}"));
    assert_lazy(&containerd, &agent, &manifest);
    let lazy = containerd.tree_of_snapshots("stargz", "lazy", start);
    containerd.ctr(&format!("images pull --plain-http {source}"));
    let unpacked = containerd.tree(&source, "unpacked", start);
    unpacked
        .rounded_to_seconds()
        .assert_same(&lazy.rounded_to_seconds(), flags);
}

#[test]
fn the_references_estargz_is_lazy() {
    the_references_images_are_lazy("--estargz");
}

#[test]
fn the_references_zstdchunked_is_lazy() {
    the_references_images_are_lazy("--zstdchunked");
}

#[test]
fn python_starts_over_a_slow_link_long_before_its_image_has_arrived() {
    let Some(place) = place(&[]) else { return };
    let (server, manifest) = serving(&place, &Fixture::get("python"));
    let link = Link::start(server.address, 100, Duration::from_millis(20));
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", link.address);
    let begun = std::time::Instant::now();
    containerd.ctr_remote(&format!("images rpull --plain-http {image}"));
    let pulled = (begun.elapsed(), link.carried());
    let script = place.write(
        "script",
        "python3 -c 'import flask, sqlalchemy; print(flask.Flask(\"x\").name)'\n",
    );
    let mount = format!(
        "--mount type=bind,src={},dst=/script,options=rbind:ro",
        script.display()
    );
    let run = format!(
        "run --rm --snapshotter stargz {mount} {image} {} /bin/sh /script",
        place.container_id("python")
    );
    assert_eq!(containerd.ctr(&run), "x\n");
    let (took, carried) = (begun.elapsed(), link.carried());
    assert_lazy(&containerd, &agent, &manifest);
    let size: u64 = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["size"].as_u64().unwrap())
        .sum();
    let requests: u64 = agent.status()["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["requests"].as_u64().unwrap())
        .sum();
    println!(
        "rpull: {:?}, {} bytes; first output: {took:?}, {carried} bytes of {size} ({}%), {requests} requests",
        pulled.0,
        pulled.1,
        carried * 100 / size
    );
    assert!(carried < size * 2 / 5, "{carried} of {size}");
}

fn a_lazy_image_is_removed_collected_and_pulled_again(containerd: Release) {
    let Some(place) = place_with(containerd, &[]) else {
        return;
    };
    let (server, manifest) = serving(&place, &Fixture::get("app"));
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let mut containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", server.address);
    for _ in 0..2 {
        containerd.pull_lazily(&image);
        assert_lazy(&containerd, &agent, &manifest);
        drop(containerd);
        containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
        let run = format!(
            "run --rm --snapshotter stargz {image} {} /bin/cat /usr/share/old/d",
            place.container_id("one")
        );
        assert_eq!(containerd.ctr(&run), "new\n", "containerd was restarted");
        containerd.ctr(&format!("images rm --sync {image}"));
        eventually("the layers are unmounted", || agent.lazy().is_empty());
        assert!(agent.directories().is_empty());
    }
}

fn the_doctor_passes_a_healthy_node_and_names_the_faults_of_others(release: Release) {
    let Some(place) = place_with(release, &[]) else {
        return;
    };
    let agent = Agent::start(&place);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let ask = |config: &str| {
        let mut doctor = place.command(env!("CARGO_BIN_EXE_starlift"));
        doctor
            .args(["agent", "doctor", "--json", "--root"])
            .arg(&agent.root)
            .arg("--address")
            .arg(&agent.socket);
        doctor
            .arg("--containerd-config")
            .arg(place.path().join(config));
        let output = doctor
            .arg("--containerd-address")
            .arg(&containerd.socket)
            .output()
            .unwrap();
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
        let bad = checks
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["state"] == "bad");
        let bad: Vec<String> = bad
            .map(|check| check["what"].as_str().unwrap().to_owned())
            .collect();
        (output.status.code(), bad)
    };
    assert_eq!(ask("containerd.toml"), (Some(0), vec![]));
    place.write("1.toml", deployed(Release::V1_6, &place, &agent));
    place.write("2.toml", deployed(Release::V2_4, &place, &agent));
    match release {
        Release::V1_6 => assert_eq!(ask("1.toml"), (Some(0), vec![])),
        Release::V2_4 => {
            assert_eq!(ask("2.toml"), (Some(0), vec![]));
            let dropped = ["CRI", "transfer service"].map(str::to_owned);
            assert_eq!(ask("1.toml"), (Some(1), dropped.into()));
        }
    }
    place.write("other.toml", "version = 2\n");
    assert_eq!(
        ask("other.toml"),
        (Some(1), vec!["snapshotter plugin".to_owned()])
    );
    place.write("broken.toml", "version =\n");
    assert_eq!(
        ask("broken.toml"),
        (Some(1), vec!["containerd's configuration".to_owned()])
    );
}

#[test]
fn fifty_containers_start_at_once() {
    let Some(place) = place(&[]) else { return };
    let (server, _) = serving(&place, &Fixture::get("app"));
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", server.address);
    containerd.ctr_remote(&format!("images rpull --plain-http {image}"));
    let listed = containerd.ctr("snapshots --snapshotter stargz ls");
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let is_parent = |key: &str| rows.iter().any(|row| row.len() == 3 && row[1] == key);
    let top = rows
        .iter()
        .map(|row| row[0])
        .find(|key| !is_parent(key))
        .unwrap();
    let prepare = |number: usize| {
        let mut ctr = place.command("ctr");
        ctr.arg("-a").arg(&containerd.socket).args([
            "snapshots",
            "--snapshotter",
            "stargz",
            "prepare",
        ]);
        let target = place.dir(&format!("target{number}"));
        let output = ctr
            .arg("--target")
            .arg(&target)
            .arg(format!("key{number}"))
            .arg(top)
            .output()
            .unwrap();
        let mount = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            Command::new("sh")
                .args(["-c", mount.trim()])
                .status()
                .unwrap()
                .success(),
            "{mount}"
        );
        assert_eq!(
            fs::read_to_string(target.join("usr/share/old/d")).unwrap(),
            "new\n"
        );
        fs::write(target.join("usr/share/old/d"), number.to_string()).unwrap();
        assert_eq!(
            fs::read_to_string(target.join("usr/share/old/d")).unwrap(),
            number.to_string()
        );
    };
    std::thread::scope(|scope| {
        for number in 0..50 {
            scope.spawn(move || prepare(number));
        }
    });
    // Not in the threads: a command that another one starts has its open files for a moment.
    for number in 0..50 {
        let target = place.path().join(format!("target{number}"));
        let unmounted = Command::new("umount").arg(&target).status().unwrap();
        assert!(unmounted.success(), "target{number}");
    }
    assert_eq!(agent.directories().len(), 50);
}
