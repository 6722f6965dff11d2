//! A test's workspace: its directory, its daemons and its commands. None of them outlives the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::clients;
use super::eventually::eventually;
use super::mounts::unmount_under;

/// The time limit for one command of a real client.
const COMMAND_SECONDS: &str = "300";

/// The directory of one test. Dropping it ends all processes and mounts that are left under it, and
/// fails the test if there are any.
#[derive(Debug)]
pub(crate) struct Place {
    dir: tempfile::TempDir,
    /// The folder of today's clients, if this workspace prefers them to those of the system.
    clients: Option<PathBuf>,
}

impl Place {
    /// Creates a workspace. `None`, with the reason printed, if one of `tools` is absent; with
    /// `CI=true` that is a failure.
    pub(crate) fn with(tools: &[&str]) -> Option<Self> {
        let absent: Vec<_> = tools.iter().filter(|tool| find(tool).is_none()).collect();
        if absent.is_empty() {
            // A short path, because the path of a socket is limited to 107 bytes.
            let dir = tempfile::Builder::new().prefix("sl").tempdir().unwrap();
            return Some(Self { dir, clients: None });
        }
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "absent: {absent:?}");
        println!("skipped, absent: {absent:?}");
        None
    }

    /// Creates a workspace whose commands are today's `clients` before those of the system. `None`,
    /// with the reason printed, if one of them was not built; with `CI=true` as well, because not
    /// every machine can build them.
    pub(crate) fn with_clients(clients: &[&str], tools: &[&str]) -> Option<Self> {
        let folder = clients::folder();
        let is_absent = |client: &&&str| !folder.join(client).exists();
        let absent: Vec<_> = clients.iter().filter(is_absent).collect();
        if absent.is_empty() {
            let mut place = Self::with(tools)?;
            place.clients = Some(folder.to_owned());
            return Some(place);
        }
        println!("skipped, not built by .ci/clients: {absent:?}");
        None
    }

    /// Whether this workspace prefers today's clients to those of the system.
    pub(crate) fn has_todays_clients(&self) -> bool {
        self.clients.is_some()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a container ID that no other workspace has: runc keeps all of them in one directory
    /// for the whole machine.
    pub(crate) fn container_id(&self, name: &str) -> String {
        let unique = self.path().file_name().unwrap().to_str().unwrap();
        format!("{name}-{unique}")
    }

    /// Returns the directory of this name, and creates it if it does not exist.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Returns a command with a time limit and its own home directory.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", COMMAND_SECONDS])
            .arg(program)
            .stdin(Stdio::null())
            .env("HOME", self.dir("home"));
        command
            .env("PATH", self.search_path())
            .env("TMPDIR", self.dir("tmp"))
            .env_remove("DOCKER_CONFIG");
        command
    }

    /// Runs `line`, split at blanks, and returns its standard output.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        let output = command.args(words).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a daemon that logs to a file of its name, and waits until `ready`.
    pub(crate) fn daemon(
        &self,
        name: &str,
        command: &mut Command,
        ready: impl FnMut() -> bool,
    ) -> Daemon {
        command.stdin(Stdio::null()).stdout(self.log_of(name));
        self.spawn(name, command, ready)
    }

    fn log_of(&self, name: &str) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(self.path().join(format!("{name}.log")))
            .unwrap()
    }

    /// The same with the standard input and output that the command sets.
    pub(crate) fn spawn(
        &self,
        name: &str,
        command: &mut Command,
        mut ready: impl FnMut() -> bool,
    ) -> Daemon {
        let log = self.path().join(format!("{name}.log"));
        command.stderr(self.log_of(name));
        command
            .env("PATH", self.search_path())
            .env("HOME", self.dir("home"))
            .env("TMPDIR", self.dir("tmp"));
        let mut daemon = Daemon {
            child: command.spawn().unwrap(),
            log,
        };
        eventually(&format!("{name} is ready"), || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{name} ended with {status}:\n{}", daemon.log());
            }
            ready()
        });
        daemon
    }

    fn search_path(&self) -> String {
        let first = self.clients.iter();
        let first = first.map(|folder| format!("{}:", folder.display()));
        first.chain([search_path()]).collect()
    }

    /// Returns the processes whose command line contains the path of this workspace.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if pid != std::process::id() && line.contains(needle) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Ends these processes and returns their command lines.
    fn end_processes(&self) -> Vec<String> {
        let end = |(pid, line): (u32, String)| {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            line
        };
        self.processes().into_iter().map(end).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let processes = self.end_processes();
        let mounts = unmount_under(self.path());
        if !std::thread::panicking() {
            assert!(processes.is_empty(), "left running: {processes:#?}");
            assert!(mounts.is_empty(), "left mounted: {mounts:#?}");
        }
    }
}

/// A server process; dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args(["-s", name, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap()
    }

    /// Kills the process with `kill -9` and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Asks the process to end and waits for its end.
    pub(crate) fn stop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        eventually("the daemon ends", || {
            self.child.try_wait().unwrap().is_some()
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(15).collect::<Vec<_>>();
            eprintln!("== {}", self.log.display());
            tail.iter()
                .rev()
                .for_each(|line| eprintln!("{}", line.chars().take(400).collect::<String>()));
        }
    }
}

/// Returns an unused address, with a port below the range that the kernel uses for outgoing
/// connections.
pub(crate) fn free_address() -> SocketAddr {
    let free = || {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..32_000)));
        TcpListener::bind(address).is_ok().then_some(address)
    };
    std::iter::repeat_with(free).flatten().next().unwrap()
}

/// Fetches `url` and returns the body if the status is below 400.
pub(crate) fn fetch(url: &str) -> Option<Vec<u8>> {
    let output = Command::new("curl")
        .args(["-sf", "--max-time", "30", url])
        .output()
        .unwrap();
    output.status.success().then_some(output.stdout)
}

/// Returns the status of a request with these further arguments for curl.
pub(crate) fn status(arguments: &[&str]) -> String {
    let shape = [
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--max-time",
        "60",
    ];
    let output = Command::new("curl")
        .args(shape)
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap())
}

fn find(tool: &str) -> Option<PathBuf> {
    search_path()
        .split(':')
        .map(|dir| Path::new(dir).join(tool))
        .find(|path| path.exists())
}
