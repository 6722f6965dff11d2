//! How much memory a process of its own has taken.

use super::place::Daemon;

impl Daemon {
    /// The most memory that the process ever had, in bytes (`VmHWM`).
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that the process has, in bytes (`VmRSS`).
    pub(crate) fn memory_now(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        let kibibytes: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        kibibytes << 10
    }
}
