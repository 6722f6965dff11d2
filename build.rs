//! Generates the containerd API's types and services from `proto/`.

use std::error::Error;

const FOLDER: &str = "proto";
const SERVICES: [&str; 5] =
    ["snapshots/v1/snapshots", "content/v1/content", "images/v1/images", "leases/v1/leases", "diff/v1/diff"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let file = |service: &str| format!("github.com/containerd/containerd/api/services/{service}.proto");
    let descriptors = protox::compile(SERVICES.map(file), [FOLDER])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
