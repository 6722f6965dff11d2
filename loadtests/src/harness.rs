//! Runs commands and daemons as processes, and measures their cost.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::support::eventually::within;

/// The time within which a daemon must answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The interval at which a starting daemon is polled.
const START_POLL: Duration = Duration::from_millis(50);
/// Clock ticks a second in `/proc/PID/stat` (proc(5)): 100 on every Linux that the tests run on.
const TICKS: f64 = 100.0;

/// The cost of one run of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Seconds of wall time.
    pub(crate) wall: f64,
    /// Seconds of processor time, user and system.
    pub(crate) cpu: f64,
    /// Peak resident memory of the largest process, MiB.
    pub(crate) memory: f64,
}

/// Runs `line`, split at blanks, under GNU time. Fails unless the command succeeds.
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
        .context("no output of GNU time")?;
    let numbers: Vec<f64> = cost.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [user, system, kib] = numbers[..] else {
        bail!("unexpected output of GNU time: {cost:?}")
    };
    Ok(Cost {
        wall,
        cpu: user + system,
        memory: kib / 1024.0,
    })
}

/// Runs `line` and returns its standard output. Fails unless the command succeeds.
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

/// A running command, and the file with all its output.
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

    /// Returns the command's output so far.
    pub(crate) fn said(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until the command ends. Fails unless it succeeds.
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

    /// Waits until the command ends, whether it succeeds or not.
    pub(crate) fn wait(&mut self) {
        let _reaped = self.child.wait();
    }
}

/// A server process; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `command` with its output in `log`, and waits until `ready` returns true.
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
        let is_ready = within(START_LIMIT, START_POLL, || {
            let is_running = matches!(daemon.child.try_wait(), Ok(None));
            let is_ready = is_running && ready();
            (is_ready || !is_running).then_some(is_ready)
        });
        ensure!(
            is_ready == Some(true),
            "{name}: {}",
            fs::read_to_string(log)?
        );
        Ok(daemon)
    }

    /// Returns the processor seconds that the process and its living children have used.
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

    /// Lets the peak of resident memory begin anew (proc(5), `clear_refs`).
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(
            format!("/proc/{}/clear_refs", self.child.id()),
            "5",
        )?)
    }

    /// Returns the peak resident memory, MiB.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<f64> {
        self.memory_of("VmHWM:")
    }

    /// Returns the resident memory, MiB.
    pub(crate) fn memory(&self) -> anyhow::Result<f64> {
        self.memory_of("VmRSS:")
    }

    /// Returns the resident memory that is not in files, MiB.
    pub(crate) fn anonymous_memory(&self) -> anyhow::Result<f64> {
        self.memory_of("RssAnon:")
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
        // SIGTERM first, so that nginx ends its workers too. The process may be gone already.
        let _unsent = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let has_ended = || (!matches!(self.child.try_wait(), Ok(None))).then_some(());
        let _in_time = within(START_LIMIT, START_POLL, has_ended);
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn cpu_of(pid: &str) -> anyhow::Result<f64> {
    let [user, system, ..] = cpu_times(pid)?;
    Ok(user + system)
}

/// Returns the processor seconds of a process and of its children that have ended.
pub(crate) fn cpu_with_ended_children(pid: &str) -> anyhow::Result<f64> {
    Ok(cpu_times(pid)?.iter().sum())
}

/// Returns `utime`, `stime`, `cutime` and `cstime` of proc(5) in seconds.
fn cpu_times(pid: &str) -> anyhow::Result<[f64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 to 17, counted from behind the process name, which may contain blanks.
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
    Ok([11, 12, 13, 14].map(|index| ticks(index) / TICKS))
}

/// Drops the kernel's file caches: pages, names and inodes.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    run("sync")?;
    // Twice, because the names of one file system hold the inodes of those mounted below it.
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    Ok(())
}

/// Returns a loopback address on which no process listens now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
