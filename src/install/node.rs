//! A node: its containerd, the agent, and the folders in which their files are. A user's node is a
//! rootless containerd with the files of that user.

use std::path::{Path, PathBuf};

use super::services::Manager;
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
    /// The folders of the user whose rootless containerd it is. `None` for root's.
    pub(crate) user: Option<User>,
}

/// The folders of a user (XDG Base Directory Specification).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// `~/.config`.
    pub(crate) config: PathBuf,
    /// `~/.local/share`.
    pub(crate) data: PathBuf,
    /// `/run/user/1000`.
    pub(crate) runtime: PathBuf,
}

/// Where files are if nobody chose otherwise.
struct Defaults {
    config: PathBuf,
    socket: PathBuf,
    certs_dir: PathBuf,
    unit_dir: PathBuf,
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
    /// The systemd that has the services.
    pub(super) manager: Manager,
    /// Whether the agent gets a systemd unit.
    pub(super) has_unit: bool,
    /// Whether services are started and restarted. Otherwise the commands are left to people.
    pub(super) has_services: bool,
}

impl Node {
    /// Finds the containerd of this node, and whether systemd runs its services. With
    /// `is_files_only`, none is started or restarted.
    pub(crate) fn find(paths: &Paths, agent: &crate::agent::Config, is_files_only: bool) -> Self {
        let manager = match &paths.user {
            Some(user) => Manager::User(user.runtime.clone()),
            None => Manager::Machine,
        };
        let has_systemd = manager.runs();
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let chosen =
            |path: &Option<PathBuf>, default: &Path| absolute(path.as_deref().unwrap_or(default));
        let distribution = match &paths.containerd_config {
            Some(config) => DISTRIBUTIONS
                .iter()
                .find(|one| config.starts_with(one.folder)),
            None if paths.user.is_some() => None,
            None => DISTRIBUTIONS.iter().find(|one| one.config().exists()),
        };
        let mut defaults = match &paths.user {
            Some(user) => user.defaults(),
            None => Defaults::of_root(),
        };
        let (mut program, mut services) = ("containerd", &["containerd"] as &[&str]);
        if let Some(one) = distribution {
            (program, services) = (one.program, one.services);
            defaults.config = one.config();
            defaults.socket = PathBuf::from(DISTRIBUTION_SOCKET);
        }
        Self {
            // A name without a folder is looked up in PATH.
            containerd: Program::new(paths.containerd.as_deref().unwrap_or(Path::new(program))),
            containerd_config: chosen(&paths.containerd_config, &defaults.config),
            containerd_address: chosen(&paths.containerd_address, &defaults.socket),
            containerd_services: match &paths.containerd_service {
                Some(name) => vec![name.clone()],
                None => services.iter().map(|&name| name.to_owned()).collect(),
            },
            certs_dir: chosen(&paths.certs_dir, &defaults.certs_dir),
            unit_dir: chosen(&paths.unit_dir, &defaults.unit_dir),
            agent_address: absolute(&agent.address),
            agent_root: absolute(&agent.root),
            has_unit: has_systemd || paths.unit_dir.is_some(),
            has_services: has_systemd && !is_files_only,
            manager,
        }
    }

    /// Whether it is a user's rootless containerd.
    pub(super) fn is_rootless(&self) -> bool {
        self.manager != Manager::Machine
    }
}

impl Defaults {
    fn of_root() -> Self {
        Self {
            config: PathBuf::from(CONFIG),
            socket: PathBuf::from(SOCKET),
            certs_dir: PathBuf::from(CERTS_DIR),
            unit_dir: PathBuf::from(UNIT_DIR),
        }
    }
}

impl User {
    /// Returns the agent's socket and root.
    pub(crate) fn agent(&self) -> (PathBuf, PathBuf) {
        let socket = self.runtime.join("starlift-agent/agent.sock");
        (socket, self.data.join("starlift-agent"))
    }

    /// Returns the paths that rootless containerd sees as those of root (nerdctl,
    /// `extras/rootless/containerd-rootless.sh`).
    fn defaults(&self) -> Defaults {
        let containerd = self.config.join("containerd");
        Defaults {
            config: containerd.join("config.toml"),
            socket: self.runtime.join("containerd/containerd.sock"),
            certs_dir: containerd.join("certs.d"),
            unit_dir: self.config.join("systemd/user"),
        }
    }
}

impl Node {
    pub(crate) fn containerd(&self) -> &Program {
        &self.containerd
    }

    pub(crate) fn containerd_config(&self) -> &Path {
        &self.containerd_config
    }

    pub(crate) fn containerd_address(&self) -> &Path {
        &self.containerd_address
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
    fn the_files_of_a_user_are_in_the_users_folders() {
        let user = User {
            config: PathBuf::from("/home/u/.config"),
            data: PathBuf::from("/home/u/.local/share"),
            runtime: PathBuf::from("/run/user/7"),
        };
        let (address, root) = user.agent();
        let agent = crate::agent::Config {
            address,
            root,
            ..crate::agent::Config::default()
        };
        let paths = Paths {
            user: Some(user),
            ..Paths::default()
        };
        let node = Node::find(&paths, &agent, true);
        for (path, expected) in [
            (
                &node.containerd_config,
                "/home/u/.config/containerd/config.toml",
            ),
            (
                &node.containerd_address,
                "/run/user/7/containerd/containerd.sock",
            ),
            (&node.certs_dir, "/home/u/.config/containerd/certs.d"),
            (&node.unit_dir, "/home/u/.config/systemd/user"),
            (&node.agent_address, "/run/user/7/starlift-agent/agent.sock"),
            (&node.agent_root, "/home/u/.local/share/starlift-agent"),
        ] {
            assert_eq!(path, Path::new(expected));
        }
        assert!(node.is_rootless() && !node.has_unit);
    }

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
