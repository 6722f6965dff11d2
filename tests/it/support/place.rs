//! A test's own directory, its daemons and its commands; nothing of them outlives the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to get ready, on a machine that does other things too.
const READY: Duration = Duration::from_secs(60);
/// How long one command of a real client may take.
const COMMAND_SECONDS: &str = "300";

/// A directory of the test's own. Dropping it ends what still runs or is mounted beneath it, and fails the test for it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `None`, with the reason printed, where one of `tools` is absent; under `CI=true` that is a failure.
    pub(crate) fn with(tools: &[&str]) -> Option<Self> {
        let absent: Vec<_> = tools.iter().filter(|tool| find(tool).is_none()).collect();
        if absent.is_empty() {
            // A short path: the sockets beneath it may have 107 bytes at most.
            let dir = tempfile::Builder::new().prefix("sl").tempdir().unwrap();
            return Some(Self { dir });
        }
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "absent: {absent:?}");
        println!("skipped, absent: {absent:?}");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory by this name, made if need be.
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

    /// A command that ends by itself and touches no one's home.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", COMMAND_SECONDS])
            .arg(program)
            .stdin(Stdio::null())
            .env("HOME", self.dir("home"));
        command
            .env("PATH", search_path())
            .env("TMPDIR", self.dir("tmp"))
            .env_remove("DOCKER_CONFIG");
        command
    }

    /// Runs `line`, words parted by blanks, and gives its standard output.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        let output = command.args(words).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a daemon that logs to a file of its name and waits until `ready`.
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

    /// The same with standard input and output as the command has them.
    pub(crate) fn spawn(
        &self,
        name: &str,
        command: &mut Command,
        mut ready: impl FnMut() -> bool,
    ) -> Daemon {
        let log = self.path().join(format!("{name}.log"));
        command.stderr(self.log_of(name));
        command
            .env("PATH", search_path())
            .env("HOME", self.dir("home"))
            .env("TMPDIR", self.dir("tmp"));
        let mut daemon = Daemon {
            child: command.spawn().unwrap(),
            log,
        };
        until(&format!("{name} is ready"), READY, || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{name} ended with {status}:\n{}", daemon.log());
            }
            ready()
        });
        daemon
    }

    /// The processes whose command line names this place.
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

    /// Ends and names them.
    fn end_processes(&self) -> Vec<String> {
        let end = |(pid, line): (u32, String)| {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            line
        };
        self.processes().into_iter().map(end).collect()
    }

    /// Unmounts and names what is mounted beneath this place.
    fn unmount(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut points: Vec<_> = points
            .filter(|point| Path::new(point).starts_with(self.path()))
            .collect();
        points.sort_by_key(|point| std::cmp::Reverse(point.len()));
        for point in &points {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
        points.into_iter().map(str::to_owned).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let processes = self.end_processes();
        let mounts = self.unmount();
        if !std::thread::panicking() {
            assert!(processes.is_empty(), "left running: {processes:#?}");
            assert!(mounts.is_empty(), "left mounted: {mounts:#?}");
        }
    }
}

/// A process that serves; killed when dropped.
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

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args(["-s", name, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the daemon ends", READY, || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap()
    }

    /// `kill -9`, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Asks it to end and waits.
    pub(crate) fn stop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        until("the daemon ends", Duration::from_secs(30), || {
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

/// Looks every few milliseconds until `done`; a failure after `limit`.
pub(crate) fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(
            Instant::now() < end,
            "waited {limit:?}, and still not: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An address nobody listens on, below the ports that the kernel gives to outgoing connections.
pub(crate) fn free_address() -> SocketAddr {
    let free = || {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..32_000)));
        TcpListener::bind(address).is_ok().then_some(address)
    };
    std::iter::repeat_with(free).flatten().next().unwrap()
}

/// Whether a request to `url` is answered with a status below 400; the body if so.
pub(crate) fn fetch(url: &str) -> Option<Vec<u8>> {
    let output = Command::new("curl")
        .args(["-sf", "--max-time", "30", url])
        .output()
        .unwrap();
    output.status.success().then_some(output.stdout)
}

/// The status of a request with these further arguments to curl.
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
