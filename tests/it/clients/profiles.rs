//! Real containerd, the real server and real agents: the second node prefetches the files that a
//! container on the first node read.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::containerd::{self, Containerd};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::link::Link;
use crate::support::place::{Place, fetch};
use crate::support::starlift::Starlift;

const SCRIPT: &str = "python3 -c 'import flask, sqlalchemy; print(flask.Flask(\"x\").name)'\n";

/// The costs of a start on an empty node.
#[derive(Debug)]
struct Start {
    pull: Duration,
    output: Duration,
    /// Reads that had to wait for the registry.
    misses: u64,
    requests: u64,
    carried: u64,
    sent: Option<u64>,
    profile: Value,
    log: String,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pull,
            output,
            misses,
            requests,
            carried,
            ..
        } = self;
        write!(
            f,
            "pull {pull:.2?}, output {output:.2?}, {misses} misses, {requests} requests, {carried} bytes"
        )
    }
}

fn place() -> Option<Place> {
    Place::with(&[fixture::TOOLS, containerd::TOOLS, &["ctr-remote"]].concat())
}

fn start(server: &Starlift, settings: &[(&str, &str)], pull: &str) -> Option<Start> {
    let place = place()?;
    let link = Link::start(server.address, 100, Duration::from_millis(20));
    let agent = Agent::start_with(
        &place,
        &[&[("BACKGROUND", "off"), ("RECORD", "20s")], settings].concat(),
    );
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", link.address);
    let begun = Instant::now();
    match pull {
        "rpull" => {
            containerd.ctr_remote(&format!("images rpull --plain-http {image}"));
        }
        _ => {
            let starlift = env!("CARGO_BIN_EXE_starlift");
            place.run(&format!(
                "{starlift} rpull --address {} --snapshotter stargz --plain-http {image}",
                containerd.socket.display()
            ));
        }
    }
    let pulled = begun.elapsed();
    let script = place.write("script", SCRIPT);
    let mount = format!(
        "--mount type=bind,src={},dst=/script,options=rbind:ro",
        script.display()
    );
    let id = place.container_id("profiled");
    let run = format!("run --rm --snapshotter stargz {mount} {image} {id} /bin/sh /script");
    assert_eq!(containerd.ctr(&run), "x\n");
    let output = begun.elapsed();
    let sent = || agent.metric("starlift_agent_observations_total{outcome=\"sent\"}");
    let status = agent.status();
    let requests = status["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["requests"].as_u64().unwrap())
        .sum();
    let misses = agent
        .metric("starlift_agent_reads_total{source=\"fetched\"}")
        .unwrap_or(0);
    let carried = link.carried();
    if !settings.contains(&("RECORD", "0s")) {
        eventually("the start is reported", || sent().is_some());
    }
    let log = agent.daemon.log();
    let profile = status["profiles"][0].clone();
    Some(Start {
        pull: pulled,
        output,
        misses,
        requests,
        carried,
        sent: sent(),
        profile,
        log,
    })
}

#[test]
fn the_second_node_prefetches_the_files_that_the_first_one_read() {
    let Some(place) = place() else { return };
    let upstream = format!("local=oci:{}", Fixture::get("python").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("local/image", "1");
    let Some(first) = start(&server, &[("PROFILES", "false")], "rpull") else {
        return;
    };
    eventually("the server has merged the observation", || {
        let status: Value =
            serde_json::from_slice(&fetch(&server.url("/api/v1/status")).unwrap()).unwrap();
        status["profiles"]["merges"]
            .as_u64()
            .is_some_and(|merges| merges > 0)
    });
    for pull in ["rpull", "starlift rpull"] {
        let second = start(&server, &[], pull).unwrap();
        println!("first:  {first}\nsecond: {second}, {}", second.profile);
        assert_eq!((first.sent, second.sent), (Some(1), Some(1)));
        assert_eq!(second.profile["state"], "used", "{}", second.log);
        assert!(
            second.misses * 2 < first.misses,
            "{} of {}",
            second.misses,
            first.misses
        );
        assert!(
            second.carried < first.carried * 5 / 4,
            "{} of {}",
            second.carried,
            first.carried
        );
    }
}

/// Checks every request of an agent to the distribution's own registry, by its access log.
#[test]
fn another_registry_receives_only_pull_requests() {
    let Some(place) = Place::with(
        &[
            fixture::TOOLS,
            containerd::TOOLS,
            &["ctr-remote", "docker-registry"],
        ]
        .concat(),
    ) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "image", false);
    let agent = Agent::start_with(&place, &[("BACKGROUND", "off"), ("RECORD", "2s")]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let (source, converted) = (
        format!("{}/image:1", registry.address),
        format!("{}/image:lazy", registry.address),
    );
    containerd.ctr(&format!("images pull --plain-http {source}"));
    containerd.ctr_remote(&format!(
        "images convert --estargz --oci {source} {converted}"
    ));
    containerd.ctr(&format!("images push --plain-http {converted}"));
    containerd.ctr(&format!("images rm --sync {source} {converted}"));
    containerd.ctr_remote(&format!("images rpull --plain-http {converted}"));
    let id = place.container_id("other");
    containerd.ctr(&format!(
        "run --rm --snapshotter stargz {converted} {id} /bin/cat /usr/share/old/d"
    ));
    // A report of this start would be sent before that of a later one from a Starlift server.
    let upstream = format!("local=oci:{}", Fixture::get("app").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("local/image", "1");
    let image = format!("{}/local/image:1", server.address);
    containerd.ctr_remote(&format!("images rpull --plain-http {image}"));
    containerd.ctr(&format!(
        "run --rm --snapshotter stargz {image} {id}-later /bin/cat /usr/share/old/d"
    ));
    eventually("the later start is reported", || {
        let sent = agent.metric("starlift_agent_observations_total{outcome=\"sent\"}");
        sent == Some(1)
    });
    let log = registry.daemon.log();
    let requests: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("HTTP/1.1\" "))
        .collect();
    assert!(
        requests.iter().any(|line| line.contains("starlift/")),
        "the agent sent requests:\n{log}"
    );
    let odd: Vec<_> = requests
        .iter()
        .filter(|line| !line.contains(" /v2/"))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[test]
fn a_profile_that_refers_to_an_image_of_any_registry_is_used() {
    let Some(place) = Place::with(
        &[
            fixture::TOOLS,
            containerd::TOOLS,
            &["ctr-remote", "docker-registry"],
        ]
        .concat(),
    ) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    let source = Fixture::get("app");
    let manifest = source.layout().digest("1");
    let line = |path: &str, layer: u32| {
        format!(
            "{{\"path\":\"{path}\",\"manifestDigest\":\"{manifest}\",\"layerIndex\":{layer}}}\n"
        )
    };
    let record = place.write(
        "record",
        line("bin/busybox", 0) + &line("var/lib/state/run", 2),
    );
    let image = format!("{}/image:lazy", registry.address);
    let starlift = env!("CARGO_BIN_EXE_starlift");
    place.run(&format!(
        "{starlift} optimize --profile --record-in {} {} {image}",
        record.display(),
        source.oci()
    ));

    let settings = [
        ("BACKGROUND", "off"),
        ("PREFETCH", "false"),
        ("REFERRERS", "true"),
        ("RECORD", "0s"),
    ];
    let agent = Agent::start_with(&place, &settings);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    containerd.ctr_remote(&format!("images rpull --plain-http {image}"));
    let profile = || agent.status()["profiles"][0].clone();
    eventually("the profile's files are on the node", || {
        profile()["held_files"] == 2
    });
    let profile = profile();
    assert_eq!(
        (&profile["state"], &profile["files"]),
        (&"used".into(), &2.into()),
        "{profile}"
    );
    assert_eq!(profile["server"], registry.address.to_string());
}
