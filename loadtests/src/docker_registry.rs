//! docker-registry as a process.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::harness::{Daemon, free_address, run};

/// The storage of a registry that keeps its blobs in the folder `registry` beside its configuration.
pub(crate) const IN_A_FOLDER: &str = "filesystem: {rootdirectory: PLACE/registry}";

/// Starts a registry with this `storage`, in its configuration's form. `PLACE` stands for the folder.
pub(crate) fn start(place: &Path, storage: &str) -> anyhow::Result<(Daemon, SocketAddr)> {
    let address = free_address()?;
    let config = place.join("registry.yml");
    let storage = storage.replace("PLACE", &place.display().to_string());
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{{storage}, cache: {{blobdescriptor: inmemory}}}}\n\
             http: {{addr: \"{address}\"}}\n",
        ),
    )?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config);
    // The S3 client of Debian's version fails if this is set. No bucket here has a certificate.
    command.env_remove("AWS_CA_BUNDLE");
    let url = format!("http://{address}/v2/");
    let ready = || run(&format!("curl -sf {url}")).is_ok();
    Ok((
        Daemon::start(command, &place.join("registry.log"), ready)?,
        address,
    ))
}
