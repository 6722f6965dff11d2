//! Real clients pull the contents of a real registry through `starlift serve`, and unpack the same
//! files as from the source image.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::docker_registry::{Access, DockerRegistry, json_of};
use crate::support::dockerd::{self, Dockerd};
use crate::support::fixture::{self, Fixture, Layout};
use crate::support::place::{Place, status};
use crate::support::starlift::Starlift;
use crate::support::tree::Tree;

/// Long enough that a client gets the converted image at its first request.
const WAIT: [&str; 2] = ["--wait", "25s"];
/// Prints in a container: the names in `/`, a file through its links, and the user.
const SCRIPT: &str = "set -e\nls -a /\nid -u\nstat -c '%s %h' /bin/busybox\necho end\n";

const TOOLS: &[&str] = &["docker-registry", "htpasswd"];

fn place(more: &[&str]) -> Option<Place> {
    Place::with(&[fixture::TOOLS, TOOLS, more].concat())
}

fn place_with(containerd: Release) -> Option<Place> {
    containerd.place(&[fixture::TOOLS, TOOLS].concat())
}

/// Returns the current time in whole seconds, less one. Files with later times were dated by the
/// client while unpacking.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap() - 1
}

/// Unpacks tag `1` of a layout.
fn unpacked(place: &Place, layout: &Path, name: &str) -> Tree {
    let start = now();
    let bundle = place.path().join(name);
    place.run(&format!(
        "umoci unpack --keep-dirlinks --image {}:1 {}",
        layout.display(),
        bundle.display()
    ));
    let tree = Tree::read(&bundle.join("rootfs"), start);
    fs::remove_dir_all(bundle).unwrap();
    tree
}

/// Checks that every layer with a file is eStargz and names its source.
fn assert_converted(manifest: &Value) {
    let layers = manifest["layers"].as_array().unwrap();
    assert!(!layers.is_empty());
    for layer in layers {
        let annotations = &layer["annotations"];
        for key in [
            "containerd.io/snapshot/stargz/toc.digest",
            "dev.starlift.source.digest",
        ] {
            assert!(
                annotations[key]
                    .as_str()
                    .is_some_and(|value| value.starts_with("sha256:")),
                "{key}: {layer}"
            );
        }
    }
}

fn skopeo_gets_the_same_files(image: &str, docker: bool) {
    let Some(place) = place(&[]) else { return };
    let fixture = Fixture::get(image);
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &fixture, "team/image", docker);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );

    let target = place.path().join("pulled");
    let source = format!("docker://{}/local/team/image:1", server.address);
    place.run(&format!(
        "skopeo copy --quiet --src-tls-verify=false {source} dir:{}",
        place.dir("dir").display()
    ));
    place.run(&format!(
        "skopeo copy --quiet --src-tls-verify=false {source} oci:{}:1",
        target.display()
    ));

    let manifest: Value =
        serde_json::from_slice(&fs::read(place.path().join("dir/manifest.json")).unwrap()).unwrap();
    let family = if docker {
        "application/vnd.docker.distribution.manifest.v2+json"
    } else {
        "application/vnd.oci.image.manifest.v1+json"
    };
    assert_eq!(manifest["mediaType"], family);
    if !docker {
        assert_converted(&manifest);
        assert_eq!(
            manifest["annotations"]["test.annotation"],
            fixture.layout().manifest("1")["annotations"]["test.annotation"]
        );
    }
    let config = Layout(target.clone()).json(
        Layout(target.clone()).manifest("1")["config"]["digest"]
            .as_str()
            .unwrap(),
    );
    assert_eq!(config["config"]["Labels"]["test.label"], "kept");
    unpacked(&place, &fixture.dir, "original")
        .assert_same(&unpacked(&place, &target, "converted"), image);
}

#[test]
fn skopeo_and_umoci_get_a_buildah_image() {
    skopeo_gets_the_same_files("app", false);
}

#[test]
fn skopeo_and_umoci_get_an_odd_image() {
    skopeo_gets_the_same_files("odd", false);
}

#[test]
fn skopeo_and_umoci_get_a_docker_image() {
    skopeo_gets_the_same_files("app", true);
}

#[test]
fn skopeo_and_umoci_get_a_root_file_system() {
    skopeo_gets_the_same_files("rootfs", false);
}

#[test]
fn buildah_gets_the_same_files() {
    let Some(place) = place(&[]) else { return };
    let fixture = Fixture::get("app");
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &fixture, "app", false);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );

    let start = now();
    let dirs = (place.dir("storage"), place.dir("run"));
    let buildah = format!(
        "buildah --root {} --runroot {} --storage-driver vfs",
        dirs.0.display(),
        dirs.1.display()
    );
    let mut trees = Vec::new();
    for host in [
        registry.address.to_string(),
        format!("{}/local", server.address),
    ] {
        let container = place.run(&format!(
            "{buildah} from --quiet --tls-verify=false docker://{host}/app:1"
        ));
        let root = place.run(&format!("{buildah} mount {container}"));
        trees.push(Tree::read(Path::new(root.trim()), start));
        let said = place.run(&format!(
            "{buildah} run --isolation chroot {} -- /bin/cat /var/lib/state/run",
            container.trim()
        ));
        assert_eq!(said, "run\n");
        place.run(&format!("{buildah} umount {container}"));
        place.run(&format!("{buildah} rm {container}"));
    }
    trees[0].assert_same(&trees[1], "buildah");
}

fn containerd_gets_the_same_files(image: &str, containerd: Release) {
    let Some(place) = place_with(containerd) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get(image), "team/image", false);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );
    let containerd = Containerd::start(&place);

    let start = now();
    let original = format!("{}/team/image:1", registry.address);
    let converted = format!("{}/local/team/image:1", server.address);
    for name in [&original, &converted] {
        containerd.ctr(&format!("images pull --plain-http {name}"));
    }
    let listed = containerd.ctr("images ls");
    assert_ne!(
        digest_of(&listed, &original),
        digest_of(&listed, &converted),
        "the converted image has another digest\n{listed}"
    );
    let original_tree = containerd.tree(&original, "original", start);
    original_tree.assert_same(&containerd.tree(&converted, "converted", start), image);
    let script = place.write("script", SCRIPT);
    let said = containerd.run(&converted, "converted", &script);
    assert!(said.ends_with("end\n"), "{said}");
    assert_eq!(said, containerd.run(&original, "original", &script));
}

fn digest_of<'a>(listed: &'a str, name: &str) -> &'a str {
    let line = listed
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("{name} in {listed}"))
        .split_whitespace()
        .nth(2)
        .unwrap()
}

on_each_release!(
    containerd_gets_a_buildah_image,
    containerd_gets_an_odd_image_from_gzip,
    containerd_asks_a_mirror,
);

fn containerd_gets_a_buildah_image(containerd: Release) {
    containerd_gets_the_same_files("app", containerd);
}

fn containerd_gets_an_odd_image_from_gzip(containerd: Release) {
    containerd_gets_the_same_files("odd", containerd);
}

#[test]
fn containerd_gets_an_odd_image_from_zstd() {
    containerd_gets_the_same_files("odd-zstd", Release::V1_6);
}

fn containerd_asks_a_mirror(containerd: Release) {
    let Some(place) = place_with(containerd) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "team/app", false);
    let upstream = format!("registry.example.test=http://{}", registry.address);
    let server = Starlift::start(&place, &[&WAIT[..], &["--upstream", &upstream]].concat());
    let containerd = Containerd::start(&place);
    let hosts = format!(
        "server = \"https://registry.example.test\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        server.address
    );
    place.write("hosts/registry.example.test/hosts.toml", hosts);

    let hosts = place.dir("hosts");
    containerd.ctr(&format!(
        "images pull --hosts-dir {} registry.example.test/team/app:1",
        hosts.display()
    ));
    let script = place.write("script", SCRIPT);
    let said = containerd.run("registry.example.test/team/app:1", "mirrored", &script);
    assert!(said.ends_with("end\n"), "{said}");
    let digest = digest_of(
        &containerd.ctr("images ls"),
        "registry.example.test/team/app:1",
    )
    .to_owned();
    assert_converted(&json_of(&server.url(&format!(
        "/v2/team/app/manifests/{digest}?ns=registry.example.test"
    ))));
}

#[test]
fn the_docker_engine_pulls_runs_and_saves() {
    let Some(place) = place(dockerd::TOOLS) else {
        return;
    };
    let fixture = Fixture::get("app");
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &fixture, "team/app", true);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );
    let dockerd = Dockerd::start(&place, &[]);

    let start = now();
    let original = format!("{}/team/app:1", registry.address);
    let converted = format!("{}/local/team/app:1", server.address);
    for name in [&original, &converted] {
        dockerd.docker(&format!("pull --quiet {name}"));
    }
    dockerd
        .tree(&original, "original", start)
        .assert_same(&dockerd.tree(&converted, "converted", start), "docker");
    let run = |name: &str| dockerd.docker(&format!("run --rm --network none {name} ls -a /"));
    assert_eq!(run(&original), run(&converted));
    let saved = place.path().join("saved.tar");
    dockerd.docker(&format!("save -o {} {converted}", saved.display()));
    let layout = place.path().join("saved");
    place.run(&format!(
        "skopeo copy --quiet docker-archive:{} oci:{}:1",
        saved.display(),
        layout.display()
    ));
    unpacked(&place, &fixture.dir, "unpacked")
        .assert_same(&unpacked(&place, &layout, "unpacked-saved"), "docker save");
}

#[test]
fn the_docker_engine_asks_a_mirror() {
    let Some(place) = place(dockerd::TOOLS) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "library/app", true);
    let upstream = format!("docker.io=http://{}", registry.address);
    let server = Starlift::start(&place, &[&WAIT[..], &["--upstream", &upstream]].concat());
    let mirror = format!("http://{}", server.address);
    let dockerd = Dockerd::start(&place, &["--registry-mirror", &mirror]);

    dockerd.docker("pull --quiet app:1");
    let said = dockerd.docker("run --rm --network none app:1 cat /var/lib/state/run");
    assert_eq!(said, "run\n");
    let source = registry.requests("GET", "/v2/library/app/blobs/");
    assert!(
        source >= 3,
        "the layers came from the upstream: {source}\n{}",
        registry.daemon.log()
    );
}

#[test]
fn head_and_get_agree_before_and_after_the_conversion() {
    let Some(place) = place(&[]) else { return };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );
    let url = server.url("/v2/local/app/manifests/1");
    for _ in 0..2 {
        let head = headers(&place, &["-I", &url]);
        let get = headers(&place, &["-o", "/dev/null", "-D", "-", &url]);
        for key in ["docker-content-digest", "content-length", "content-type"] {
            let value = |text: &str| {
                text.lines()
                    .find(|line| line.starts_with(key))
                    .map(str::to_owned)
            };
            assert!(value(&head).is_some(), "{key}: {head}");
            assert_eq!(value(&head), value(&get), "{key}");
        }
    }
    assert_eq!(
        status(&[&server.url("/v2/local/app/manifests/none")]),
        "404"
    );
}

fn headers(place: &Place, arguments: &[&str]) -> String {
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let output = place
        .command("curl")
        .args(["-s", "-H", accept])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .to_ascii_lowercase()
}

#[test]
fn an_index_keeps_every_child() {
    let Some(place) = place(&[]) else { return };
    let fixture = Fixture::get("multi");
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &fixture, "multi", false);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );

    let original = fixture.layout().manifest("1");
    let converted = json_of(&server.url("/v2/local/multi/manifests/1"));
    let (original, converted) = (
        original["manifests"].as_array().unwrap(),
        converted["manifests"].as_array().unwrap(),
    );
    assert_eq!(original.len(), converted.len());
    for (number, (was, is)) in original.iter().zip(converted).enumerate() {
        assert_eq!(was["platform"], is["platform"]);
        let attestation = number == 2;
        assert_eq!(was["digest"] == is["digest"], attestation, "{was} {is}");
        for child in [was, is] {
            json_of(&server.url(&format!(
                "/v2/local/multi/manifests/{}",
                child["digest"].as_str().unwrap()
            )));
        }
    }
    let target = place.path().join("all");
    place.run(&format!(
        "skopeo copy --quiet --all --src-tls-verify=false docker://{}/local/multi:1 oci:{}:1",
        server.address,
        target.display()
    ));
    assert_eq!(
        Layout(target).manifest("1")["manifests"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn source_digests_give_the_source_image() {
    let Some(place) = place(&[]) else { return };
    let fixture = Fixture::get("app");
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &fixture, "app", false);
    let server = Starlift::start(
        &place,
        &[&WAIT[..], &["--upstream", &registry.upstream("local")]].concat(),
    );
    server.converted("local/app", "1");

    let target = place.path().join("original");
    place.run(&format!(
        "skopeo copy --quiet --preserve-digests --src-tls-verify=false docker://{}/local/app@{} oci:{}:1",
        server.address,
        fixture.layout().digest("1"),
        target.display()
    ));
    assert_eq!(Layout(target).digest("1"), fixture.layout().digest("1"));
}
