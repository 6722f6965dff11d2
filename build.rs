//! Generates the types and services of containerd's APIs from `proto/`, for the node.

use std::error::Error;

#[cfg(feature = "agent")]
mod containerd {
    use std::error::Error;

    const FOLDER: &str = "proto";
    const SERVICES: [&str; 5] = [
        "snapshots/v1/snapshots",
        "content/v1/content",
        "images/v1/images",
        "leases/v1/leases",
        "diff/v1/diff",
    ];
    /// What kubelets say to its CRI service.
    const CRI: &str = "runtime/v1/image_service.proto";
    /// Holds secrets.
    const CRI_AUTH: &str = "runtime.v1.AuthConfig";

    pub(crate) fn generate() -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-changed={FOLDER}");
        let file = |service: &str| {
            format!("github.com/containerd/containerd/api/services/{service}.proto")
        };
        let descriptors = protox::compile(
            SERVICES.map(file).iter().map(String::as_str).chain([CRI]),
            [FOLDER],
        )?;
        tonic_prost_build::configure()
            .skip_debug([CRI_AUTH])
            .compile_fds(descriptors)?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "agent")]
    containerd::generate()?;
    Ok(())
}
