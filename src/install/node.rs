//! A node: its containerd, the agent, and the folders in which their files are.

use std::path::{Path, PathBuf};

use super::services;
use crate::containerd::program::Program;

/// The distributions with a containerd of their own: folder, program, and the services that start
/// it.
const DISTRIBUTIONS: [Distribution; 2] = [
    Distribution {
        folder: "/var/lib/rancher/k3s",
        program: "/var/lib/rancher/k3s/data/current/bin/containerd",
        services: &["k3s", "k3s-agent"],
    },
    Distribution {
        folder: "/var/lib/rancher/rke2",
        program: "/var/lib/rancher/rke2/bin/containerd",
        services: &["rke2-server", "rke2-agent"],
    },
];
/// The socket of both.
const DISTRIBUTION_SOCKET: &str = "/run/k3s/containerd/containerd.sock";
const CONFIG: &str = "/etc/containerd/config.toml";
const SOCKET: &str = "/run/containerd/containerd.sock";
const UNIT_DIR: &str = "/etc/systemd/system";
const CERTS_DIR: &str = "/etc/containerd/certs.d";

struct Distribution {
    folder: &'static str,
    program: &'static str,
    services: &'static [&'static str],
}

/// Paths and names that people chose. The others are found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    pub(crate) containerd: Option<PathBuf>,
    pub(crate) containerd_config: Option<PathBuf>,
    pub(crate) containerd_address: Option<PathBuf>,
    pub(crate) containerd_service: Option<String>,
    pub(crate) certs_dir: Option<PathBuf>,
    pub(crate) unit_dir: Option<PathBuf>,
}

/// A node, with every path known.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(super) containerd: Program,
    pub(super) containerd_config: PathBuf,
    pub(super) containerd_address: PathBuf,
    /// The services of which one starts containerd.
    pub(super) containerd_services: Vec<String>,
    /// The folder of hosts.toml files, unless containerd names another one.
    pub(super) certs_dir: PathBuf,
    pub(super) unit_dir: PathBuf,
    /// The agent's socket and root, as its configuration has them.
    pub(super) agent_address: PathBuf,
    pub(super) agent_root: PathBuf,
    /// Whether the agent gets a systemd unit.
    pub(super) has_unit: bool,
    /// Whether services are started and restarted. Otherwise the commands are left to people.
    pub(super) has_services: bool,
}

impl Node {
    /// Finds the containerd of this node, and whether systemd runs its services. With
    /// `is_files_only`, none is started or restarted.
    pub(crate) fn find(paths: &Paths, agent: &crate::agent::Config, is_files_only: bool) -> Self {
        let has_systemd = services::has_systemd();
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let chosen = |path: &Option<PathBuf>, default: &str| {
            absolute(path.as_deref().unwrap_or(Path::new(default)))
        };
        let distribution = match &paths.containerd_config {
            Some(config) => DISTRIBUTIONS
                .iter()
                .find(|one| config.starts_with(one.folder)),
            None => DISTRIBUTIONS.iter().find(|one| one.config().exists()),
        };
        let config = distribution.map(Distribution::config);
        let config = config.unwrap_or_else(|| PathBuf::from(CONFIG));
        let (program, socket, services) = match distribution {
            Some(one) => (one.program, DISTRIBUTION_SOCKET, one.services),
            None => ("containerd", SOCKET, &["containerd"] as &[&str]),
        };
        Self {
            // A name without a folder is looked up in PATH.
            containerd: Program::new(paths.containerd.as_deref().unwrap_or(Path::new(program))),
            containerd_config: absolute(paths.containerd_config.as_deref().unwrap_or(&config)),
            containerd_address: chosen(&paths.containerd_address, socket),
            containerd_services: match &paths.containerd_service {
                Some(name) => vec![name.clone()],
                None => services.iter().map(|&name| name.to_owned()).collect(),
            },
            certs_dir: chosen(&paths.certs_dir, CERTS_DIR),
            unit_dir: chosen(&paths.unit_dir, UNIT_DIR),
            agent_address: absolute(&agent.address),
            agent_root: absolute(&agent.root),
            has_unit: has_systemd || paths.unit_dir.is_some(),
            has_services: has_systemd && !is_files_only,
        }
    }
}

impl Distribution {
    fn config(&self) -> PathBuf {
        Path::new(self.folder).join("agent/etc/containerd/config.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containerd_of_k3s_is_known_by_its_file() {
        let config = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
        let paths = Paths {
            containerd_config: Some(PathBuf::from(config)),
            ..Paths::default()
        };
        let node = Node::find(&paths, &crate::agent::Config::default(), true);
        assert!(node.containerd.path().starts_with("/var/lib/rancher/k3s"));
        assert_eq!(node.containerd_address, Path::new(DISTRIBUTION_SOCKET));
        assert_eq!(node.containerd_services, ["k3s", "k3s-agent"]);
    }
}
