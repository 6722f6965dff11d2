//! The mounts of this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Unmounts everything under `folder`, the deepest mount first. Returns the mount points.
pub(crate) fn unmount_under(folder: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<_> = points
        .filter(|point| Path::new(point).starts_with(folder))
        .map(str::to_owned)
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in &points {
        let _gone_already = Command::new("umount").args(["-l", point]).status();
    }
    points
}
