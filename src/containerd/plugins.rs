//! The names of containerd's plugins in its configuration.

/// CRI of containerd 1.x.
pub(crate) const CRI_1: &str = "io.containerd.grpc.v1.cri";
/// The images of CRI of containerd 2.x.
pub(crate) const CRI_2: &str = "io.containerd.cri.v1.images";
/// The transfer service.
pub(crate) const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// Returns this machine's architecture by its name in OCI.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
