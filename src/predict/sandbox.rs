//! The limits that a predictor's process sets for itself before it reads anything of an image.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, Signal};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Standard input, output and error are open. No other descriptor can be opened.
const DESCRIPTORS: u64 = 3;
/// Bytes of address space, which is more than memory: it includes the executable, its stack and the
/// allocator's reserve.
const ADDRESS_SPACE: u64 = 2 << 30;
/// For the kernel's out-of-memory killer: kill this process before all others.
const OOM_SCORE_ADJ: &str = "1000";
/// The nice value, so that processes that serve have priority.
const NICE: i32 = 5;

/// The system calls that computing and two pipes need. All others fail with EPERM: libraries can do
/// without them, and an image's prediction is not lost if a new version tries one.
const CALLS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The limits of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: u64,
    /// Processor time.
    pub processor: Duration,
    /// Elapsed time, enforced by the parent.
    pub time: Duration,
}

impl Default for Limits {
    /// The fuel ends long before these limits, even on a busy machine.
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            processor: Duration::from_secs(60),
            time: Duration::from_secs(120),
        }
    }
}

/// Sets the limits permanently. Returns whether system calls are filtered too, which not every
/// kernel supports.
pub(super) fn enter(limits: &Limits) -> io::Result<bool> {
    close_inherited();
    // If these two fail, the limits below still hold.
    let _best_effort = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let _best_effort = rustix::process::nice(NICE);
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    let processor = limits.processor.as_secs().max(1);
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::Cpu, processor),
        (Resource::Data, limits.memory),
        (Resource::As, ADDRESS_SPACE.max(limits.memory)),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Nofile, DESCRIPTORS),
    ] {
        lower(resource, limit)?;
    }
    Ok(filter().is_ok())
}

/// Closes descriptors that the server, or its parent, left open across `exec`.
#[expect(
    unsafe_code,
    reason = "no safe API closes descriptors that have no owner"
)]
fn close_inherited() {
    let first = u32::try_from(DESCRIPTORS).unwrap_or(u32::MAX);
    // SAFETY: this process has just begun and has opened nothing but the standard three, so that
    // nothing in it owns the closed descriptors. A kernel that is too old for the call (before 5.9)
    // closes nothing.
    let _unsupported = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Lowers a limit, which cannot be raised again. A lower limit stays.
fn lower(resource: Resource, limit: u64) -> io::Result<()> {
    let before = rustix::process::getrlimit(resource);
    let limit = before.maximum.map_or(limit, |maximum| maximum.min(limit));
    rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        },
    )?;
    Ok(())
}

fn filter() -> Result<(), Box<dyn std::error::Error>> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let calls: BTreeMap<i64, Vec<_>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(u32::try_from(libc::EPERM)?);
    let program: BpfProgram =
        SeccompFilter::new(calls, refused, SeccompAction::Allow, architecture)?.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
