//! Runs commands and daemons as whole processes and reads what they cost.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// How long a daemon may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a daemon that starts is asked.
const START_POLL: Duration = Duration::from_millis(50);
/// Clock ticks a second in `/proc/PID/stat` (proc(5); 100 on every Linux we run on).
const TICKS: f64 = 100.0;

/// What one run of a command cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Seconds on the clock.
    pub(crate) wall: f64,
    /// Seconds of processor time, user and system.
    pub(crate) cpu: f64,
    /// Peak resident memory of the largest process, MiB.
    pub(crate) memory: f64,
}

/// Runs `line`, words parted by blanks, under GNU time. An error unless it succeeds.
pub(crate) fn measure(line: &str) -> anyhow::Result<Cost> {
    let begun = Instant::now();
    let output = Command::new("/usr/bin/time")
        .args(["-f", "cost %U %S %M"])
        .args(line.split_whitespace())
        .output()
        .context("GNU time")?;
    let wall = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    let cost = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("cost "))
        .context("time said nothing")?;
    let numbers: Vec<f64> = cost.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [user, system, kib] = numbers[..] else {
        bail!("time said {cost:?}")
    };
    Ok(Cost {
        wall,
        cpu: user + system,
        memory: kib / 1024.0,
    })
}

/// Runs `line` and gives its standard output. An error unless it succeeds.
pub(crate) fn run(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .context(line.to_owned())?;
    ensure!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command under way, and the file that it says everything in.
#[derive(Debug)]
pub(crate) struct Running {
    line: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn start(line: &str, log: &Path) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        let output = File::create(log)?;
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        Ok(Self {
            line: line.to_owned(),
            child: command.spawn().context(line.to_owned())?,
            log: log.to_owned(),
        })
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until it ends. An error unless it succeeds.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "{}: {status}: {}",
            self.line,
            self.said()?
        );
        Ok(())
    }

    /// Waits until it ends, however it does.
    pub(crate) fn wait(&mut self) {
        let _reaped = self.child.wait();
    }
}

/// A process that serves; ends when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `command`, its output in `log`, and waits until it is `ready`.
    pub(crate) fn start(
        mut command: Command,
        log: &Path,
        ready: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut daemon = Self {
            child: command.spawn().with_context(|| name.clone())?,
        };
        let begun = Instant::now();
        while !ready() {
            let is_running = daemon.child.try_wait()?.is_none();
            ensure!(
                is_running && begun.elapsed() < START_LIMIT,
                "{name}: {}",
                fs::read_to_string(log)?
            );
            std::thread::sleep(START_POLL);
        }
        Ok(daemon)
    }

    /// Processor seconds that it and its living children have used.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children
            .split_whitespace()
            .map(str::to_owned)
            .chain([pid.to_string()])
            .map(|pid| cpu_of(&pid))
            .sum()
    }

    /// Peak resident memory, MiB.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<f64> {
        self.memory_of("VmHWM:")
    }

    /// Resident memory, MiB.
    pub(crate) fn memory(&self) -> anyhow::Result<f64> {
        self.memory_of("VmRSS:")
    }

    fn memory_of(&self, field: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .context(field.to_owned())?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM first: nginx takes its workers along. It may be gone already.
        let _unsent = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let begun = Instant::now();
        while begun.elapsed() < START_LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(START_POLL);
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn cpu_of(pid: &str) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15, counted from behind the name, which may hold blanks.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    Ok((ticks(11) + ticks(12)) / TICKS)
}

/// Forgets what the kernel caches of files: pages, names and inodes.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    run("sync")?;
    // Twice: the names of one file system hold the inodes of those below it.
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    Ok(())
}

/// An address on the loopback that nobody listens on now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
