//! Today's registry clients read a converted image through the server, and all see the same.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::docker_registry::json_of;
use crate::support::fixture::{self, Fixture, Layout};
use crate::support::place::Place;
use crate::support::starlift::Starlift;

/// Clients that read registries.
const CLIENTS: &[&str] = &["crane", "oras", "regctl"];

/// A server whose upstream `local` is a fixture.
struct Served {
    server: Starlift,
    source: Layout,
    /// Dropped after the server.
    place: Place,
}

impl Served {
    /// Returns `None` where the clients were not built.
    fn start(image: &str) -> Option<Self> {
        let place = Place::with_clients(CLIENTS, fixture::TOOLS)?;
        let fixture = Fixture::get(image);
        let upstream = format!("local=oci:{}", fixture.dir.display());
        let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
        let source = fixture.layout();
        Some(Self {
            server,
            source,
            place,
        })
    }

    /// Returns a name for clients: `HOST/local/image` and `suffix`.
    fn name(&self, suffix: &str) -> String {
        format!("{}/local/image{suffix}", self.server.address)
    }

    /// Runs each client with its arguments, and returns what they print.
    fn ask(&self, crane: &str, oras: &str, regctl: &str) -> [String; 3] {
        let host = format!("--host reg={},tls=disabled", self.server.address);
        let lines = [
            format!("crane --insecure {crane}"),
            format!("oras {oras}"),
            format!("regctl {host} {regctl}"),
        ];
        lines.map(|line| self.place.run(&line).trim_end().to_owned())
    }

    /// Returns the digest that each client resolves a name to.
    fn digests(&self, name: &str, flags: &str) -> [String; 3] {
        self.ask(
            &format!("digest {flags} {name}"),
            &format!("resolve --plain-http {flags} {name}"),
            &format!("image digest {flags} {name}"),
        )
    }
}

#[track_caller]
fn assert_all(answers: &[String; 3], expected: &str) {
    assert_eq!(*answers, [expected; 3], "crane, oras, regctl");
}

/// Checks that a layout holds all that a manifest names.
fn assert_complete(layout: &Path, manifest: &Value) {
    let layout = Layout(layout.to_owned());
    let layers = manifest["layers"].as_array().unwrap().iter();
    for descriptor in layers.chain([&manifest["config"]]) {
        let path = layout.blob_path(descriptor["digest"].as_str().unwrap());
        let size = fs::metadata(path).map(|file| file.len()).ok();
        assert_eq!(size, descriptor["size"].as_u64(), "{descriptor}");
    }
}

#[test]
fn todays_clients_pull_the_same_converted_image() {
    let Some(served) = Served::start("app") else {
        return;
    };
    let manifest = served.server.converted("local/image", "1");
    let by_tag = served.name(":1");
    let [digest, ..] = served.digests(&by_tag, "");
    assert_ne!(digest, served.source.digest("1"), "it is converted");
    assert_all(&served.digests(&by_tag, ""), &digest);
    let by_digest = served.name(&format!("@{digest}"));
    for name in [by_tag.as_str(), by_digest.as_str()] {
        let manifests = served.ask(
            &format!("manifest {name}"),
            &format!("manifest fetch --plain-http {name}"),
            &format!("manifest get --format raw-body {name}"),
        );
        let documents = manifests.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        assert_eq!(documents, [(); 3].map(|()| manifest.clone()));
        let dirs = ["crane", "oras", "regctl"].map(|client| served.place.path().join(client));
        served.ask(
            &format!("pull --format oci {name} {}", dirs[0].display()),
            &format!(
                "copy --from-plain-http --to-oci-layout {name} {}:1",
                dirs[1].display()
            ),
            &format!("image copy {name} ocidir://{}:1", dirs[2].display()),
        );
        dirs.iter().for_each(|dir| {
            assert_complete(dir, &manifest);
            fs::remove_dir_all(dir).unwrap();
        });
    }
    // The layers' own digests are those of the configuration.
    served
        .place
        .run(&format!("crane --insecure validate --remote {by_tag}"));
}

#[test]
fn todays_clients_choose_the_same_platform_of_an_index() {
    let Some(served) = Served::start("multi") else {
        return;
    };
    served.server.converted("local/image", "1");
    let index = json_of(&served.server.url("/v2/local/image/manifests/1"));
    for child in index["manifests"].as_array().unwrap() {
        let platform = &child["platform"];
        let (os, architecture) = (platform["os"].as_str(), platform["architecture"].as_str());
        let (Some(os), Some(architecture)) = (os, architecture) else {
            continue;
        };
        if os != "unknown" {
            let flags = format!("--platform {os}/{architecture}");
            let digest = child["digest"].as_str().unwrap();
            assert_all(&served.digests(&served.name(":1"), &flags), digest);
        }
    }
}

#[test]
fn todays_clients_list_tags_and_referrers() {
    let Some(served) = Served::start("app") else {
        return;
    };
    served.server.converted("local/image", "1");
    let repository = served.name("");
    let tags = served.ask(
        &format!("ls {repository}"),
        &format!("repo tags --plain-http {repository}"),
        &format!("tag ls {repository}"),
    );
    assert_all(&tags, "1");

    let source = served.name(&format!("@{}", served.source.digest("1")));
    let [converted, ..] = served.digests(&served.name(":1"), "");
    let listed = [
        format!("oras discover --plain-http --format json {source}"),
        format!(
            "regctl --host reg={},tls=disabled artifact list --format body {source}",
            served.server.address
        ),
    ];
    for line in listed {
        let listed = served.place.run(&line);
        assert!(listed.contains(&converted), "{line}: {listed}");
    }
}
