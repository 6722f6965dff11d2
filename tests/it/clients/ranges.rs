//! Profiles inferred from stargz-snapshotter, which reports nothing: only its ranges show the files
//! that were read. They are compared with the record of `starlift optimize` for the same workload,
//! which has every opened file.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};
use starlift::oci::Digest;
use starlift::profile::Stack;

use crate::support::containerd::{self, Containerd};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Place, fetch};
use crate::support::stargz::Stargz;
use crate::support::starlift::Starlift;

const STARLIFT: &str = env!("CARGO_BIN_EXE_starlift");

/// A file of the image: its layer and path.
type File = (u64, String);
type Files = BTreeSet<File>;

/// The overlap of two sets of files, as shares of their bytes.
#[derive(Debug)]
struct Agreement {
    /// The share of the used bytes that the profile has.
    found: f64,
    /// The share of the profile's bytes that were used.
    right: f64,
}

/// Returns the file of a profile entry or of a record line.
fn file(document: &Value, layer: &str) -> File {
    (
        document[layer].as_u64().unwrap(),
        document["path"].as_str().unwrap().to_owned(),
    )
}

/// Returns the profile that the server infers from a container on stargz-snapshotter.
fn learned(place: &Place, fixture: &Fixture, name: &str, workload: &[&str]) -> Files {
    let upstream = format!("local=oci:{}", fixture.dir.display());
    let quick = |command: &mut Command| {
        command.env("STARLIFT_SERVE_PROFILES__MERGE_INTERVAL", "50ms");
    };
    let server = Starlift::start_with(place, &["--wait", "25s", "--upstream", &upstream], quick);
    let manifest = server.converted("local/image", "1");
    let stargz = Stargz::start(place);
    let containerd = Containerd::start_with(place, &stargz.plugin());
    let converted = format!("{}/local/image:1", server.address);
    containerd.ctr_remote(&format!("images rpull --plain-http {converted}"));
    let address = containerd.socket.to_str().unwrap();
    let run = [
        "-a",
        address,
        "run",
        "--rm",
        "--snapshotter",
        "stargz",
        &converted,
        name,
    ];
    let output = place
        .command("ctr")
        .args(run)
        .args(workload)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let digest = |layer: &Value| layer["digest"].as_str().unwrap().parse().unwrap();
    let layers: Vec<Digest> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(digest)
        .collect();
    let url = server.url(&format!("/api/v1/profiles/{}", Stack::of(&layers)));
    let mut files = Vec::new();
    eventually("the profile has an observer", || {
        let profile: Value = serde_json::from_slice(&fetch(&url).unwrap()).unwrap();
        files.clone_from(profile["files"].as_array().unwrap());
        profile["observers"] == 1
    });
    assert!(
        files
            .iter()
            .all(|file| file["sources"] == json!(["ranges"]))
    );
    files.iter().map(|learned| file(learned, "layer")).collect()
}

/// Returns the files that the workload opens, and the sizes of all files of the image.
fn used(place: &Place, fixture: &Fixture, workload: &[&str]) -> (Files, BTreeMap<File, u64>) {
    let record = place.path().join("record");
    let target = format!("oci:{}:1", place.path().join("optimized").display());
    let list = |words: &[&str]| serde_json::to_string(words).unwrap();
    let (entrypoint, arguments) = (list(&workload[..1]), list(&workload[1..]));
    let mut command = place.command(STARLIFT);
    command
        .args([
            "optimize",
            "--entrypoint",
            &entrypoint,
            "--args",
            &arguments,
            "--record-out",
        ])
        .arg(&record);
    let output = command.args([&fixture.oci(), &target]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let mut sizes = BTreeMap::new();
    let toc: Value =
        serde_json::from_str(&place.run(&format!("{STARLIFT} inspect --toc --layer 0 {target}")))
            .unwrap();
    for entry in toc["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["type"] == "reg")
    {
        let path = entry["name"]
            .as_str()
            .unwrap()
            .trim_start_matches("./")
            .to_owned();
        sizes.insert((0, path), entry["size"].as_u64().unwrap_or(0));
    }
    let lines = std::fs::read_to_string(&record).unwrap();
    let used = lines
        .lines()
        .map(|line| file(&serde_json::from_str(line).unwrap(), "layerIndex"));
    (
        used.filter(|file| sizes.contains_key(file)).collect(),
        sizes,
    )
}

fn compared(image: &str, workload: &[&str]) -> Option<Agreement> {
    let tools = [
        fixture::TOOLS,
        containerd::TOOLS,
        &["ctr-remote", "go", "fusermount"],
    ]
    .concat();
    let (place, other) = (Place::with(&tools)?, Place::with(&tools)?);
    let fixture = Fixture::get(image);
    let learned = learned(&place, &fixture, &format!("ranges-{image}"), workload);
    let (used, sizes) = used(&other, &fixture, workload);
    let bytes = |files: &Files| files.iter().filter_map(|file| sizes.get(file)).sum::<u64>() as f64;
    let common = &learned & &used;
    let agreement = Agreement {
        found: bytes(&common) / bytes(&used),
        right: bytes(&common) / bytes(&learned),
    };
    let counts = (used.len(), learned.len(), common.len());
    println!("{image}: {agreement:?}; files used, learned, common: {counts:?}");
    Some(agreement)
}

/// Measured: the profile has all used bytes, and 92 percent of its bytes were used. Small files
/// that share a block of the blob with used files are learned with them (118 files for 26).
#[test]
fn ranges_of_stargz_snapshotter_show_the_files_that_a_program_reads() {
    let program = "print POSIX::floor(3.5), -s '/etc/passwd'";
    let workload = ["/usr/bin/perl", "-MPOSIX", "-MFile::Spec", "-e", program];
    let Some(Agreement { found, right }) = compared("rootfs", &workload) else {
        return;
    };
    assert!(found > 0.95 && right > 0.85, "{found} {right}");
}

/// The worst case, hundreds of small files beside hundreds of others. Measured: the profile has 95
/// percent of the used bytes, and 84 percent of its bytes were used (1181 files for 656, 577 of
/// them the same).
#[test]
fn ranges_of_stargz_snapshotter_show_most_files_that_an_interpreter_reads() {
    let workload = [
        "/usr/bin/python3",
        "-c",
        "import flask, sqlalchemy; print(flask.__version__)",
    ];
    let Some(Agreement { found, right }) = compared("python", &workload) else {
        return;
    };
    assert!(found > 0.9 && right > 0.75, "{found} {right}");
}
