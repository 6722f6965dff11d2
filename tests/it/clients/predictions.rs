//! Compares the files that are predicted for an image without running it with those that `starlift
//! optimize` sees its container read.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use starlift::convert::{Config, Converter};
use starlift::oci::{Reference, Repository};
use starlift::predict::Predictor;
use starlift::profile::FileUse;
use starlift::registry::{self, UpstreamConfig};
use starlift::store::Store;
use starlift::tocs::Tocs;
use starlift::transport::Upstreams;

use crate::support::fixture::{self, Fixture};
use crate::support::place::Place;

/// A layer and a path in it.
type File = (u64, String);

/// Returns a copy of the image with another command.
fn with_command(place: &Place, name: &str, command: &[&str]) -> PathBuf {
    let dir = place.path().join(name);
    place.run(&format!(
        "cp -r {} {}",
        Fixture::get(name).dir.display(),
        dir.display()
    ));
    let mut umoci = place.command("umoci");
    umoci.args([
        "config",
        "--no-history",
        "--image",
        &format!("{}:1", dir.display()),
        "--clear=config.cmd",
    ]);
    umoci.args(command.iter().flat_map(|word| ["--config.cmd", word]));
    let output = umoci.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    dir
}

/// Returns the files that the container reads, in order.
fn recorded(place: &Place, image: &Path) -> Vec<File> {
    let (record, converted) = (place.path().join("record"), place.path().join("converted"));
    let mut optimize = place.command(env!("CARGO_BIN_EXE_starlift"));
    optimize.args([
        "optimize",
        "--period",
        "200",
        "--record-out",
        record.to_str().unwrap(),
    ]);
    optimize.args([image, &converted].map(|dir| format!("oci:{}:1", dir.display())));
    let output = optimize.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let file = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (
            line["layerIndex"].as_u64().unwrap(),
            line["path"].as_str().unwrap().to_owned(),
        )
    };
    fs::read_to_string(record)
        .unwrap()
        .lines()
        .map(file)
        .collect()
}

/// Returns the predicted files.
async fn named(image: &Path) -> Vec<File> {
    let local = UpstreamConfig {
        url: format!("oci:{}", image.display()),
        ..UpstreamConfig::default()
    };
    let config = registry::Config {
        upstream: [("local".to_owned(), local)].into(),
        ..registry::Config::default()
    };
    let source = Upstreams::new(&config).unwrap().get("local").unwrap();
    let repository: Repository = "app".parse().unwrap();
    let manifest = source
        .manifest(&repository, &Reference::Tag("1".parse().unwrap()))
        .await
        .unwrap();
    let store = Store::in_memory();
    let converter = Converter::new(&Config::default(), store.clone()).unwrap();
    let record = converter
        .convert(&source, &repository, &manifest)
        .await
        .unwrap();
    let (predictor, tocs) = (Predictor::default(), Tocs::new(store));
    let files = predictor.predicted_files(&tocs, &record).await.unwrap();
    assert_eq!(
        files,
        predictor.predicted_files(&tocs, &record).await.unwrap(),
        "the same image gives the same list"
    );
    files
        .into_iter()
        .map(|FileUse { layer, path, .. }| (layer.into(), path))
        .collect()
}

/// Returns the share of neighbours in `order` that have the same order in `other`, counting only
/// files that are in both.
fn share_in_order(order: &[File], other: &[File]) -> f64 {
    let places: Vec<_> = order
        .iter()
        .filter_map(|file| other.iter().position(|same| same == file))
        .collect();
    let same = places.windows(2).filter(|pair| pair[0] < pair[1]).count();
    same as f64 / places.len().saturating_sub(1).max(1) as f64
}

async fn check(place: &Place, image: &str, command: &[&str]) {
    let image = with_command(place, image, command);
    let (recorded, named) = (recorded(place, &image), named(&image).await);
    let (read, said): (HashSet<_>, HashSet<_>) =
        (recorded.iter().collect(), named.iter().collect());
    let missing: Vec<_> = recorded
        .iter()
        .filter(|file| !said.contains(file))
        .collect();
    let needless: Vec<_> = named.iter().filter(|file| !read.contains(file)).collect();
    let in_order = share_in_order(&recorded, &named);
    println!(
        "{} read, {} named, {in_order:.2} in order",
        recorded.len(),
        named.len()
    );
    println!(
        "missing {:?}\nneedless {:?}",
        &missing[..missing.len().min(40)],
        &needless[..needless.len().min(40)]
    );
    let hits = read.intersection(&said).count();
    assert!(hits * 20 >= read.len() * 19, "{hits} of {}", read.len());
    assert!(
        said.len() * 10 <= read.len() * 13,
        "{} for {}",
        said.len(),
        read.len()
    );
    assert!(in_order >= 0.9, "{in_order}");
}

fn place() -> Option<Place> {
    Place::with(&[fixture::TOOLS, &["runc"]].concat())
}

#[tokio::test]
async fn a_shell_reads_the_predicted_files() {
    let Some(place) = place() else { return };
    check(
        &place,
        "rootfs",
        &["/bin/sh", "-c", "ls / >/dev/null; exec cat /etc/os-release"],
    )
    .await;
}

#[tokio::test]
async fn a_python_program_reads_the_predicted_files() {
    let Some(place) = place() else { return };
    check(
        &place,
        "python",
        &["python3", "-c", "import flask, numpy, sqlite3"],
    )
    .await;
}
