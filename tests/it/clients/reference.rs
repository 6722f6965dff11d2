//! The reference implementation judges Starlift: its converter makes the same TOC, its command line
//! accepts the converted image, and its snapshotter mounts the layers that `starlift serve` sends.
//! The odd image is not tested here, because the reference's converter fails on its sparse file
//! ("unexpected EOF").

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::containerd::{self, Containerd};
use crate::support::docker_registry::{Access, DockerRegistry, json_of};
use crate::support::fixture::{self, Fixture};
use crate::support::place::Place;
use crate::support::stargz::Stargz;
use crate::support::starlift::Starlift;

/// The keys for positions in the blob, and those that only Starlift writes.
const POSITIONS: [&str; 4] = ["offset", "innerOffset", "rawName", "rawLinkName"];

fn place(more: &[&str]) -> Option<Place> {
    Place::with(
        &[
            fixture::TOOLS,
            containerd::TOOLS,
            &["docker-registry", "ctr-remote"],
            more,
        ]
        .concat(),
    )
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap() - 1
}

fn agrees_with_the_reference(image: &str) {
    let Some(place) = place(&[]) else { return };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get(image), "image", false);
    let server = Starlift::start(
        &place,
        &["--wait", "25s", "--upstream", &registry.upstream("local")],
    );
    let containerd = Containerd::start(&place);

    let original = format!("{}/image:1", registry.address);
    containerd.ctr(&format!("images pull --plain-http {original}"));
    // On one thread, because the number of threads changes the reference's chunk borders and so its
    // TOC. Its own chunks have 4 MiB.
    containerd.ctr_remote_on_one_thread(&format!(
        "images convert --estargz --oci --estargz-chunk-size 262144 {original} reference:1"
    ));
    let reference = containerd.manifest("reference:1");
    let ours = server.converted("local/image", "1");
    containerd.ctr(&format!(
        "images pull --plain-http {}/local/image:1",
        server.address
    ));

    let layers = |manifest: &Value| manifest["layers"].as_array().unwrap().clone();
    let (reference, ours) = (layers(&reference), layers(&ours));
    assert_eq!(reference.len(), ours.len());
    for (theirs, ours) in reference.iter().zip(&ours) {
        let digest = ours["digest"].as_str().unwrap();
        let read = containerd.ctr_remote(&format!("images get-toc-digest {digest}"));
        assert_eq!(
            read.trim(),
            ours["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
        );

        let toc = |digest: &str| -> Value {
            serde_json::from_str(
                &containerd.ctr_remote(&format!("images get-toc-digest --dump-toc {digest}")),
            )
            .unwrap()
        };
        let (theirs, ours) = (toc(theirs["digest"].as_str().unwrap()), toc(digest));
        assert_eq!(theirs["version"], ours["version"]);
        same_entries(&entries(&theirs), &entries(&ours));
    }
}

/// Returns the entries by name and offset in the file, without the keys in [`POSITIONS`].
fn entries(toc: &Value) -> BTreeMap<(String, u64), Value> {
    let mut found = BTreeMap::new();
    for entry in toc["entries"].as_array().unwrap() {
        let mut entry = entry.clone();
        POSITIONS
            .iter()
            .for_each(|key| drop(entry.as_object_mut().unwrap().remove(*key)));
        let key = (
            entry["name"].as_str().unwrap().to_owned(),
            entry["chunkOffset"].as_u64().unwrap_or(0),
        );
        assert!(found.insert(key.clone(), entry).is_none(), "twice: {key:?}");
    }
    found
}

fn same_entries(theirs: &BTreeMap<(String, u64), Value>, ours: &BTreeMap<(String, u64), Value>) {
    let keys = theirs
        .keys()
        .chain(ours.keys())
        .collect::<std::collections::BTreeSet<_>>();
    let differ: Vec<_> = keys
        .into_iter()
        .filter(|key| theirs.get(*key) != ours.get(*key))
        .collect();
    let some: Vec<_> = differ
        .iter()
        .take(5)
        .map(|key| format!("{:?}\n{:?}", theirs.get(*key), ours.get(*key)))
        .collect();
    assert!(
        differ.is_empty(),
        "{} of {} entries differ:\n{}",
        differ.len(),
        theirs.len(),
        some.join("\n")
    );
}

#[test]
fn the_toc_of_a_buildah_image_is_the_references() {
    agrees_with_the_reference("app");
}

#[test]
fn the_toc_of_a_root_file_system_is_the_references() {
    agrees_with_the_reference("rootfs");
}

/// Returns the names before the landmark, and the landmark.
fn front(toc: &str) -> Vec<String> {
    let toc: Value = serde_json::from_str(toc).unwrap();
    let names = toc["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap().to_owned());
    let mut names: Vec<_> = names.collect();
    names.truncate(
        names
            .iter()
            .position(|name| name.ends_with(".prefetch.landmark"))
            .expect("no landmark")
            + 1,
    );
    names
}

#[test]
fn a_record_of_the_reference_orders_our_layers_as_its_own() {
    let Some(place) = place(&[]) else { return };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "image", false);
    let containerd = Containerd::start(&place);
    let original = format!("{}/image:1", registry.address);
    containerd.ctr(&format!("images pull --plain-http {original}"));
    let record = place.path().join("record").display().to_string();
    let workload = r#"--entrypoint ["/bin/cat"] --args ["/var/lib/state/run"] --period 1"#;
    containerd.ctr_remote(&format!(
        "images optimize --oci {workload} --record-out {record} {original} reference:1"
    ));
    let reference = containerd.manifest("reference:1");

    let ours = format!("oci:{}:1", place.path().join("ours").display());
    let starlift =
        |arguments: &str| place.run(&format!("{} {arguments}", env!("CARGO_BIN_EXE_starlift")));
    starlift(&format!(
        "convert --estargz-record-in {record} --chunk-size 4MiB {original} {ours}"
    ));
    let mut landmarks = std::collections::BTreeSet::new();
    for (at, layer) in reference["layers"].as_array().unwrap().iter().enumerate() {
        let digest = layer["digest"].as_str().unwrap();
        let theirs =
            front(&containerd.ctr_remote(&format!("images get-toc-digest --dump-toc {digest}")));
        assert_eq!(
            front(&starlift(&format!("inspect --toc --layer {at} {ours}"))),
            theirs,
            "layer {at}"
        );
        landmarks.extend(theirs.last().cloned());
    }
    assert_eq!(
        landmarks.len(),
        2,
        "not a mix of layers read and not read at the start: {landmarks:?}"
    );
    starlift(&format!("verify {ours} --against {original}"));
}

fn mounted_lazily(image: &str) {
    let Some(place) = place(&["go", "fusermount"]) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get(image), "image", false);
    let server = Starlift::start(
        &place,
        &["--wait", "25s", "--upstream", &registry.upstream("local")],
    );
    let manifest = server.converted("local/image", "1");
    let stargz = Stargz::start(&place);
    let containerd = Containerd::start_with(&place, &stargz.plugin());

    let start = now();
    let original = format!("{}/image:1", registry.address);
    let converted = format!("{}/local/image:1", server.address);
    // The source image needs its own containerd, because the garbage collection at the end of a
    // pull removes lazy snapshots.
    let Some(other) = self::place(&[]) else {
        return;
    };
    let plain = Containerd::start(&other);
    plain.ctr(&format!("images pull --plain-http {original}"));
    let unpacked = plain.tree(&original, "original", start);
    containerd.ctr_remote(&format!("images rpull --plain-http {converted}"));
    let held = containerd.ctr("content ls -q");
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        assert!(
            !held.contains(digest),
            "{digest} was downloaded, so it was not mounted\n{}",
            stargz.daemon.log()
        );
    }
    let lazy = containerd.tree_of_snapshots("stargz", "lazy", start);
    unpacked
        .rounded_to_seconds()
        .assert_same(&lazy.rounded_to_seconds(), image);
}

#[test]
fn the_reference_snapshotter_mounts_a_buildah_image() {
    mounted_lazily("app");
}

#[test]
fn the_reference_snapshotter_mounts_a_root_file_system() {
    mounted_lazily("rootfs");
}

#[test]
fn a_container_runs_on_a_lazy_mount() {
    let Some(place) = place(&["go", "fusermount"]) else {
        return;
    };
    let upstream = format!("local=oci:{}", Fixture::get("app").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("local/image", "1");
    let stargz = Stargz::start(&place);
    let containerd = Containerd::start_with(&place, &stargz.plugin());
    let converted = format!("{}/local/image:1", server.address);
    containerd.ctr_remote(&format!("images rpull --plain-http {converted}"));
    let said = containerd.ctr(&format!(
        "run --rm --snapshotter stargz {converted} lazy /bin/cat /var/lib/state/run"
    ));
    assert_eq!(said, "run\n");
    assert_eq!(
        json_of(&server.url("/v2/local/image/manifests/1"))["schemaVersion"],
        2
    );
}
