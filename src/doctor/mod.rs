//! Checks for the faults that keep a node from starting images lazily, and names the repair of
//! each.

mod check;
mod configuration;
mod file_system;
mod labels;
mod pause;
mod servers;

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use toml::Table;

use crate::agent;
use crate::agent::daemon::api;
use crate::agent::daemon::api::ApiError;
use crate::agent::erofs::{Driver, DriverReport};
use crate::agent::fuse::request_timeout::{self, ReadLimits};
use crate::agent::layer::data::FreeSpace;
use crate::agent::layers::report::Report;
use crate::containerd::program::Program;
use crate::containerd::version::Version;
use crate::registry;
pub(crate) use check::{Check, State, text};
pub(crate) use configuration::{Facts, judge};

/// The first kernel whose FUSE resends the requests that a dead agent left unanswered.
const WANTED_KERNEL: (u32, u32) = (6, 9);
/// The first kernel whose overlayfs takes as many lower layers as images have, without workarounds.
const NEEDED_KERNEL: (u32, u32) = (5, 4);

/// A node, as its doctor finds it.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) agent: &'a agent::Config,
    /// The hosts of registries, as the agent asks them.
    pub(crate) upstreams: &'a registry::Config,
    pub(crate) containerd: &'a Program,
    pub(crate) containerd_config: &'a Path,
    pub(crate) containerd_address: &'a Path,
}

/// Checks a node: the machine, the agent, containerd's configuration and sockets, and the servers.
pub(crate) async fn examine(node: &Node<'_>) -> Vec<Check> {
    let config = node.agent;
    let mut checks = vec![
        root(),
        fuse(),
        kernel(&rustix::system::uname().release().to_string_lossy()),
        disk(&config.root, config.min_free.map(|bytes| bytes.as_u64())),
        file_system::check(&config.root),
        listening("containerd", node.containerd_address, "start containerd"),
    ];
    let report = api::report(&config.root).await;
    checks.extend(report.as_ref().ok().map(|report| driver(&report.driver)));
    checks.insert(3, agent(report));
    checks.push(request_timeout(
        request_timeout::current(),
        config.read_timeout,
    ));
    let containerd = containerd(node).await;
    checks.extend(containerd.checks);
    let certs_dirs = containerd.certs_dirs.as_deref();
    checks.extend(servers::check(node.upstreams, certs_dirs).await);
    checks
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::good("user", "root")
    } else {
        Check::bad(
            "user",
            "not root",
            "the agent mounts file systems: run the agent and the doctor as root, or in the namespaces of rootless containerd (containerd-rootless-setuptool.sh nsenter)",
        )
    }
}

fn fuse() -> Check {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::good("FUSE", "/dev/fuse can be opened"),
        Err(error) => Check::bad(
            "FUSE",
            format!("/dev/fuse: {error}"),
            "modprobe fuse; in a container, pass the device",
        ),
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < NEEDED_KERNEL {
        Check::bad("kernel", release, "Linux 5.4 or newer is needed")
    } else if version < WANTED_KERNEL {
        let mend = "from Linux 6.9 on, the next agent answers the reads that a dead agent left";
        Check::fair("kernel", release, mend)
    } else {
        Check::good("kernel", release)
    }
}

/// Checks how the files of new layers are shown.
fn driver(chosen: &DriverReport) -> Check {
    const MEND: &str = "new containers start faster over EROFS; the agent tries it at each start";
    if chosen.driver == Driver::Erofs || chosen.is_configured {
        Check::good("driver", chosen.to_string())
    } else {
        Check::fair("driver", chosen.to_string(), MEND)
    }
}

fn agent(report: Result<Report, ApiError>) -> Check {
    match report {
        Ok(report) if !report.unmounted.is_empty() => {
            let gone: Vec<_> = report
                .unmounted
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            Check::bad(
                "agent",
                format!("not mounted: {}", gone.join(", ")),
                "images are unpacked meanwhile; the agent's log has the reason",
            )
        }
        Ok(report) => Check::good(
            "agent",
            format!("runs, {} layers mounted lazily", report.layers.len()),
        ),
        Err(error) => {
            let mend = "systemctl enable --now starlift-agent, or name its --root";
            Check::bad("agent", error.to_string(), mend)
        }
    }
}

/// Checks that the disk has the space that prefetching leaves to others.
fn disk(root: &Path, min_free: Option<u64>) -> Check {
    const WHAT: &str = "disk";
    let existing = root.ancestors().find(|path| path.exists());
    let free = match FreeSpace::at(existing.unwrap_or(root), min_free) {
        Ok(free) => free,
        Err(error) => {
            return Check::bad(
                WHAT,
                format!("{}: {error}", root.display()),
                "name the root",
            );
        }
    };
    let [bytes, floor] = [free.bytes, free.floor].map(|bytes| ByteSize(bytes).display().iec());
    if free.shortage() == 0 {
        return Check::good(WHAT, format!("{bytes} free"));
    }
    let mend = "nothing is prefetched and content is evicted: free space, or lower agent.min_free";
    Check::fair(WHAT, format!("{bytes} free, {floor} wanted"), mend)
}

fn listening(what: &'static str, socket: &Path, mend: &str) -> Check {
    let shown = socket.display();
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            Check::bad(what, format!("{shown} is not a socket"), mend)
        }
        _ => match UnixStream::connect(socket) {
            Ok(_) => Check::good(what, format!("listens on {shown}")),
            Err(error) => Check::bad(what, format!("{shown}: {error}"), mend),
        },
    }
}

/// The checks of containerd, and the facts in its configuration that others need.
#[derive(Debug, Default)]
struct Containerd {
    checks: Vec<Check>,
    /// The directories of hosts that CRI reads.
    certs_dirs: Option<String>,
}

/// Checks containerd's configuration: the file, then the effective configuration, then whether the
/// containerd that runs has it.
async fn containerd(node: &Node<'_>) -> Containerd {
    const WHAT: &str = "containerd's configuration";
    let only = |check: Check| Containerd {
        checks: vec![check],
        certs_dirs: None,
    };
    let (config, path) = (node.agent, node.containerd_config);
    let version = node.containerd.version().await;
    let root = std::path::absolute(&config.root).unwrap_or_else(|_| config.root.clone());
    let empty = Table::new();
    let mut facts = Facts {
        version,
        file: &empty,
        address: &config.address,
        root: &root,
        pause: &[],
    };
    let file = match fs::read_to_string(path) {
        Ok(file) => file,
        Err(error) => {
            let finding = format!("{}: {error}", path.display());
            return only(Check::bad(WHAT, finding, facts.lines()));
        }
    };
    let file = match file.parse::<Table>() {
        Ok(file) => file,
        Err(error) => {
            let finding = format!("{}: {}", path.display(), error.message());
            return only(Check::bad(
                WHAT,
                finding,
                "containerd cannot read it either",
            ));
        }
    };
    facts.file = &file;
    let (first, dump) = match node.containerd.dump(path).await {
        Ok(dump) => {
            let shown = path.display();
            let read = format!("{shown} as containerd {} reads it", named(version));
            (Check::good(WHAT, read), dump)
        }
        Err(error) => {
            let finding = format!("`containerd config dump` failed: {error}");
            let mend = "the checks below judge only the file, not the effective configuration";
            (Check::fair(WHAT, finding, mend), file.clone())
        }
    };
    let address = node.containerd_address;
    let pause = match configuration::pause_image(&dump) {
        // A containerd that does not answer is ignored here, because it has its own check.
        Some(image) => pause::unpacked_for(address, image)
            .await
            .unwrap_or_default(),
        None => Vec::new(),
    };
    facts.pause = &pause;
    let mut checks = vec![first];
    checks.extend(configuration::judge(&dump, &facts));
    if let Some(name) = configuration::snapshotter(&dump, &config.address) {
        checks.extend(labels::check(address, &config.address, name).await);
    }
    Containerd {
        checks,
        certs_dirs: configuration::certs_dirs(&dump, &facts).map(str::to_owned),
    }
}

fn named(version: Option<Version>) -> String {
    version.map_or_else(
        || "of an unknown version".to_owned(),
        |version| version.to_string(),
    )
}

/// Checks the kernel's own limit on reads that wait for a registry.
fn request_timeout(kernel: Option<Duration>, configured: Duration) -> Check {
    const WHAT: &str = "FUSE request timeout";
    let shown = humantime::format_duration;
    match kernel {
        None => Check::good(WHAT, "none"),
        Some(limit) => {
            let fresh = ReadLimits::new(configured, Some(limit)).fresh;
            let finding = format!(
                "{}: a read waits {} for the registry",
                shown(limit),
                shown(fresh)
            );
            if fresh == configured {
                return Check::good(WHAT, finding);
            }
            let mend = format!(
                "sysctl fs.fuse.default_request_timeout and fs.fuse.max_request_timeout: 0, or twice agent.read_timeout ({})",
                shown(configured)
            );
            Check::fair(WHAT, finding, mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_ends_slow_requests_is_fair() {
        let (minute, seconds) = (Duration::from_secs(60), Duration::from_secs);
        assert_eq!(request_timeout(None, minute).state, State::Good);
        assert_eq!(
            request_timeout(Some(seconds(120)), minute).state,
            State::Good
        );
        let check = request_timeout(Some(seconds(20)), minute);
        assert_eq!(
            (check.state, check.told.as_str()),
            (State::Fair, "20s: a read waits 10s for the registry")
        );
    }

    #[test]
    fn a_disk_without_free_space_is_fair() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("not/there/yet");
        assert_eq!(disk(&root, Some(0)).state, State::Good);
        let check = disk(&root, Some(u64::MAX));
        assert_eq!(check.state, State::Fair);
        assert!(check.told.contains("wanted"), "{}", check.told);
    }

    /// The examples in `deploy/` pass the doctor's own checks.
    #[test]
    fn example_configurations_pass_the_checks() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        for (name, version) in [
            ("containerd-1.toml", Version(1, 7, 27)),
            ("containerd.toml", Version(2, 4, 2)),
        ] {
            let file: Table = fs::read_to_string(deploy.join(name))
                .unwrap()
                .parse()
                .unwrap();
            let config = agent::Config::default();
            let (address, root) = (config.address.as_path(), config.root.as_path());
            let facts = Facts {
                version: Some(version),
                file: &file,
                address,
                root,
                pause: &[],
            };
            let checks = configuration::judge(&file, &facts);
            assert!(
                checks.iter().all(|check| check.state == State::Good),
                "{name}: {checks:#?}"
            );
        }
    }

    #[test]
    fn kernels_are_judged_by_their_version() {
        assert_eq!(kernel("6.18.44-fc").state, State::Good);
        assert_eq!(kernel("6.1.0-18-amd64").state, State::Fair);
        assert_eq!(kernel("4.19.0").state, State::Bad);
        assert_eq!(kernel("strange").state, State::Bad);
    }
}
