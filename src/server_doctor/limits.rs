//! Limits of the machine that the configuration needs: descriptors, memory, disk.

use std::fs;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit};

use crate::doctor::Check;

use super::Parts;

/// Memory of a server beside conversions and cached manifests: its other caches and budgets when
/// they are full, code, threads, connections.
const FIXED: u64 = 512 << 20;
/// Free disk below which a warning is due, if nothing limits the store.
const LITTLE: u64 = 5 << 30;
/// The least space for temporary files.
const TEMPORARY: u64 = 64 << 20;

const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn check(parts: &Parts<'_>) -> Vec<Check> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let memory = memory_limit(Path::new(CGROUPS), &own);
    let needed = parts.convert.memory.as_u64() + parts.serve.manifest_cache.as_u64() + FIXED;
    let mut checks = vec![
        descriptors(parts.serve.max_connections, maximum),
        within_memory(parts.convert.memory.as_u64(), needed, memory),
        temporary(&std::env::temp_dir()),
    ];
    if !parts.store.location.contains("://") {
        let size = parts.store.retention.max_size;
        checks.push(disk(
            "disk of the store",
            Path::new(&parts.store.location),
            size,
        ));
    }
    if let Some(cache) = &parts.store.cache {
        let (folder, size) = (&cache.folder, Some(cache.max_size));
        checks.push(disk("disk of store.cache", folder, size));
    }
    checks
}

/// The server raises its limit to the maximum, and gives half of it to connections.
fn descriptors(connections: usize, maximum: Option<u64>) -> Check {
    const WHAT: &str = "descriptors";
    let Some(maximum) = maximum else {
        return Check::good(WHAT, "no limit");
    };
    let needed = 2 * connections as u64;
    if maximum >= needed {
        return Check::good(WHAT, format!("{maximum} for {connections} connections"));
    }
    Check::fair(
        WHAT,
        format!(
            "{maximum}: {} connections, not serve.max_connections = {connections}",
            maximum / 2
        ),
        format!(
            "LimitNOFILE={needed} in the unit, `ulimit -Hn {needed}`, or a lower serve.max_connections"
        ),
    )
}

/// The lowest limit of the groups of this process, in version 2 of control groups.
fn memory_limit(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder = root.join(path.trim());
    let mut lowest = None::<u64>;
    while folder.starts_with(root) {
        let text = fs::read_to_string(folder.join("memory.max")).ok();
        let limit = text.and_then(|text| text.trim().parse::<u64>().ok());
        lowest = [lowest, limit].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    lowest
}

fn within_memory(conversions: u64, needed: u64, limit: Option<u64>) -> Check {
    const WHAT: &str = "memory";
    let shown = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let Some(limit) = limit else {
        return Check::good(
            WHAT,
            format!("no limit of a control group; {} may be used", shown(needed)),
        );
    };
    let told = format!(
        "limit {}, up to {} with this configuration",
        shown(limit),
        shown(needed)
    );
    let mend = format!(
        "raise the limit (resources.limits.memory, MemoryMax=) to {}, or lower convert.memory and serve.manifest_cache",
        shown(needed)
    );
    match limit {
        _ if limit >= needed => Check::good(WHAT, told),
        _ if limit > conversions => Check::fair(WHAT, told, mend),
        _ => Check::bad(WHAT, told, mend),
    }
}

fn temporary(folder: &Path) -> Check {
    const WHAT: &str = "temporary files";
    let shown = folder.display();
    if let Err(error) = tempfile::tempfile_in(folder) {
        let mend = "make the folder writable, mount an emptyDir there, or name another in TMPDIR";
        return Check::bad(WHAT, format!("{shown}: {error}"), mend);
    }
    match free(folder) {
        Some(bytes) if bytes < TEMPORARY => Check::fair(
            WHAT,
            format!("{shown}: {} free", ByteSize(bytes).display().iec()),
            "free space there, or name another folder in TMPDIR",
        ),
        _ => Check::good(WHAT, format!("{shown} is writable")),
    }
}

/// Checks that a folder can grow to its limit.
fn disk(what: &'static str, folder: &Path, size: Option<ByteSize>) -> Check {
    let existing: PathBuf = folder
        .ancestors()
        .find(|path| path.exists())
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let Some(free) = free(&existing) else {
        let mend = "name a folder on a local disk";
        return Check::bad(what, format!("{}: no file system", folder.display()), mend);
    };
    let shown = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    match size.map(|size| size.as_u64()) {
        Some(size) if free + used(folder) < size => Check::fair(
            what,
            format!(
                "{}: {} free, {} may be used",
                folder.display(),
                shown(free),
                shown(size)
            ),
            "lower the limit (max_size), or use a larger disk: images pass through when the disk is full",
        ),
        None if free < LITTLE => Check::fair(
            what,
            format!(
                "{}: {} free, and no limit is set",
                folder.display(),
                shown(free)
            ),
            "set store.retention.max_size, so that old images go before the disk is full",
        ),
        _ => Check::good(what, format!("{}: {} free", folder.display(), shown(free))),
    }
}

/// The bytes that this process may still write.
fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The bytes in the files of a folder. Links are not followed.
fn used(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => used(&entry.path()),
        Ok(found) => found.len(),
        Err(_gone) => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn too_few_descriptors_are_fair() {
        assert_eq!(descriptors(8192, None).state, State::Good);
        assert_eq!(descriptors(8192, Some(16_384)).state, State::Good);
        let check = descriptors(8192, Some(1024));
        assert_eq!(check.state, State::Fair);
        assert!(
            check.told.starts_with("1024: 512 connections"),
            "{}",
            check.told
        );
        assert!(check.mend.unwrap().contains("LimitNOFILE=16384"));
    }

    #[test]
    fn the_lowest_limit_of_the_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("kubepods/pod1");
        fs::create_dir_all(&inner).unwrap();
        let own = "0::/kubepods/pod1\n";
        assert_eq!(memory_limit(root.path(), own), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("kubepods/memory.max"), "1048576\n").unwrap();
        assert_eq!(memory_limit(root.path(), own), Some(1 << 20));
        fs::write(inner.join("memory.max"), "4096\n").unwrap();
        assert_eq!(memory_limit(root.path(), own), Some(4096));
        assert_eq!(memory_limit(root.path(), "1:name=systemd:/x\n"), None);
    }

    #[test]
    fn a_limit_of_memory_below_the_configured_is_named() {
        assert_eq!(within_memory(100, 200, None).state, State::Good);
        assert_eq!(within_memory(100, 200, Some(200)).state, State::Good);
        assert_eq!(within_memory(100, 200, Some(199)).state, State::Fair);
        assert_eq!(within_memory(100, 200, Some(100)).state, State::Bad);
    }

    #[test]
    fn a_disk_that_is_smaller_than_the_store_may_be_is_fair() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("not/there/yet");
        assert_eq!(disk("disk", &there, Some(ByteSize(1))).state, State::Good);
        let check = disk("disk", &there, Some(ByteSize(u64::MAX)));
        assert_eq!(check.state, State::Fair);
        assert!(check.mend.unwrap().contains("max_size"));
        assert_eq!(temporary(folder.path()).state, State::Good);
        assert_eq!(temporary(&there).state, State::Bad);
    }
}
