//! containerd's directory of registry hosts, `certs.d`, for registries that the configuration does
//! not name.
//!
//! ```text
//! certs.d/registry.example_5000_/hosts.toml   or registry.example:5000/, else _default/
//!                                *.crt *.cert *.key   if there is no hosts.toml
//! ```

mod certificates;
pub(super) mod file;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderMap;
use url::Url;

use super::endpoint::Capabilities;
use super::tls::Tls;

/// The directory for hosts that have none of their own.
pub(super) const DEFAULT_DIRECTORY: &str = "_default";
const HOSTS_FILE: &str = "hosts.toml";
/// The longest `hosts.toml`. It is written by hand, and nobody writes this much.
const MAX_HOSTS_FILE: u64 = 1 << 20;

/// The hosts of one registry.
#[derive(Debug)]
pub(super) struct Hosts {
    /// In the order they are asked.
    pub(super) mirrors: Vec<Host>,
    /// Asked last.
    pub(super) server: Host,
}

/// One host of a registry.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// `None` for the address in the registry's name.
    pub(super) url: Option<Url>,
    /// The root path of its API: `/v2`.
    pub(super) root: String,
    pub(super) capabilities: Capabilities,
    /// Sent to it with every request.
    pub(super) headers: HeaderMap,
    pub(super) tls: Tls,
}

/// The reason why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}", .0.trim_end().replace('\n', " "))]
    Toml(String),
    #[error("{0}")]
    Value(String),
}

impl Problem {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the form that map_err requires"
    )]
    fn toml(error: toml::de::Error) -> Self {
        Self::Toml(error.to_string())
    }
}

/// The identity of a file's version: inode, size, modification time. `None` if there is no file.
type Identity = Option<(u64, u64, i64, i64)>;

/// Every path that was consulted, with the identity that it had.
#[derive(Debug, Default)]
pub(super) struct Consulted(Vec<(PathBuf, Identity)>);

impl Consulted {
    fn look_at(&mut self, path: &Path) -> bool {
        let identity = identity(path);
        self.0.push((path.to_owned(), identity));
        identity.is_some()
    }

    pub(super) fn watch<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        self.0
            .extend(files.map(|file| (file.to_owned(), identity(file))));
    }

    pub(super) fn is_unchanged(&self) -> bool {
        self.0
            .iter()
            .all(|(path, before)| identity(path) == *before)
    }
}

fn identity(path: &Path) -> Identity {
    let metadata = std::fs::metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

/// The result of looking up one registry in the directories.
#[derive(Debug, Default)]
pub(super) struct HostsLookup {
    /// Whether the directory is the registry's own, not `_default`.
    pub(super) is_own: bool,
    /// `None` if there is no directory.
    pub(super) hosts: Option<Result<Hosts, Problem>>,
    pub(super) consulted: Consulted,
}

/// The roots of such directories, as in containerd's `config_path`. The first root with a directory
/// for a host is used.
#[derive(Debug, Clone, Default)]
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    pub(super) fn new(directories: Option<&Path>) -> Self {
        Self(
            directories
                .map(|paths| std::env::split_paths(paths).collect())
                .unwrap_or_default(),
        )
    }

    /// Whether a directory names this host. Blocking.
    pub(super) fn name(&self, host: &str) -> bool {
        self.0
            .iter()
            .flat_map(|root| own_directories(root, host))
            .any(|directory| directory.is_dir())
    }

    /// Returns the names of the directories, as registries are named, in their order. Blocking.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = self
            .0
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok());
        let mut names: Vec<String> = entries
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| registry_of(&name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Looks up the directory for `host`. Blocking.
    pub(super) fn find(&self, host: &str) -> HostsLookup {
        let mut found = HostsLookup::default();
        for root in &self.0 {
            let own = own_directories(root, host);
            let own = own
                .into_iter()
                .find(|directory| found.consulted.look_at(directory));
            let general = || Some(root.join(DEFAULT_DIRECTORY));
            found.is_own = own.is_some();
            let directory = own
                .or_else(general)
                .filter(|directory| found.consulted.look_at(directory));
            if let Some(directory) = directory {
                found.hosts = Some(read(&directory, &mut found.consulted));
                return found;
            }
        }
        found
    }
}

/// Returns the paths at which a host's own directory may be; none for an invalid host name.
fn own_directories(root: &Path, host: &str) -> Vec<PathBuf> {
    if host.is_empty() || host.starts_with(['.', '_']) || host.contains(['/', '\0']) {
        return Vec::new();
    }
    let with_port = host
        .rsplit_once(':')
        .map(|(name, port)| format!("{name}_{port}_"));
    with_port
        .iter()
        .map(String::as_str)
        .chain([host])
        .map(|name| root.join(name))
        .collect()
}

/// Returns the registry that a directory is for: `a.example_5000_` is `a.example:5000`.
fn registry_of(directory: &str) -> String {
    let with_port = directory
        .strip_suffix('_')
        .and_then(|name| name.rsplit_once('_'))
        .filter(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    with_port.map_or_else(
        || directory.to_owned(),
        |(name, port)| format!("{name}:{port}"),
    )
}

/// Reads `hosts.toml`. If it is missing or empty, the certificates beside it are used, as in
/// containerd. Unlike in containerd, they are not used if it is invalid, which is an error.
/// Blocking.
fn read(directory: &Path, consulted: &mut Consulted) -> Result<Hosts, Problem> {
    let path = directory.join(HOSTS_FILE);
    if !consulted.look_at(&path) {
        return certificates::read(directory, consulted);
    }
    let unreadable = |error| Problem::Unreadable {
        path: path.clone(),
        error,
    };
    let size = std::fs::metadata(&path).map_err(unreadable)?.size();
    if size > MAX_HOSTS_FILE {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    let text = std::fs::read_to_string(&path).map_err(unreadable)?;
    if text.is_empty() {
        return certificates::read(directory, consulted);
    }
    let hosts = file::parse(&text, directory)?;
    for host in hosts.mirrors.iter().chain([&hosts.server]) {
        consulted.watch(host.tls.files());
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn mirror(found: &HostsLookup) -> Option<String> {
        let hosts = found.hosts.as_ref()?.as_ref().unwrap();
        hosts
            .mirrors
            .first()?
            .url
            .as_ref()
            .map(|url| url.host_str().unwrap().to_owned())
    }

    #[test]
    fn a_hosts_own_directory_comes_before_the_default() {
        let root = place(&[
            ("a.example_5000_/hosts.toml", "[host.'https://first']"),
            ("a.example:5000/hosts.toml", "[host.'https://second']"),
            ("a.example/hosts.toml", "[host.'https://third']"),
            ("b.example:5000/hosts.toml", "[host.'https://fourth']"),
            ("_default/hosts.toml", "[host.'https://default']"),
        ]);
        let roots = Roots::new(Some(root.path()));
        for (host, expected, is_own) in [
            ("a.example:5000", "first", true),
            ("a.example", "third", true),
            ("b.example:5000", "fourth", true),
            ("b.example", "default", false),
            ("_default", "default", false),
            ("../x", "default", false),
        ] {
            let found = roots.find(host);
            assert_eq!(
                (mirror(&found).as_deref(), found.is_own),
                (Some(expected), is_own),
                "{host}"
            );
            assert_eq!(roots.name(host), is_own, "{host}");
        }
        assert!(Roots::new(None).find("a.example").hosts.is_none());
        let names = ["_default", "a.example", "a.example:5000", "b.example:5000"];
        assert_eq!(roots.names(), names);
    }

    #[test]
    fn the_first_root_that_knows_a_host_is_used() {
        let one = place(&[("a.example/hosts.toml", "[host.'https://one']")]);
        let two = place(&[
            ("a.example/hosts.toml", "[host.'https://two']"),
            ("_default/hosts.toml", ""),
        ]);
        let both = std::env::join_paths([one.path(), two.path()]).unwrap();
        let roots = Roots::new(Some(Path::new(&both)));
        assert_eq!(mirror(&roots.find("a.example")).as_deref(), Some("one"));
        assert!(roots.find("b.example").hosts.is_some());
    }

    #[test]
    fn every_consulted_path_is_watched() {
        let root = place(&[
            ("a.example/hosts.toml", "ca = 'x.pem'"),
            ("a.example/x.pem", "1"),
        ]);
        let roots = Roots::new(Some(root.path()));
        let found = || roots.find("a.example");
        let change = |path: &str, text: &str| {
            let before = found();
            assert!(before.consulted.is_unchanged());
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            assert!(!before.consulted.is_unchanged());
        };
        change("a.example/x.pem", "12");
        change("a.example/hosts.toml", "");
        change("a.example/y.crt", "1");
        let absent = roots.find("b.example");
        assert!(absent.consulted.is_unchanged());
        std::fs::create_dir(root.path().join("b.example")).unwrap();
        assert!(!absent.consulted.is_unchanged());
    }
}
