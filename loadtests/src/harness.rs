//! Runs a command as a whole process and reads what it cost; medians and ratios.

use std::process::Command;

use anyhow::{Context as _, bail, ensure};

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
    let output = Command::new("/usr/bin/time")
        .args(["-f", "cost %e %U %S %M"])
        .args(line.split_whitespace())
        .output()
        .context("GNU time")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    let cost = said.lines().rev().find_map(|line| line.strip_prefix("cost ")).context("time said nothing")?;
    let numbers: Vec<f64> = cost.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [wall, user, system, kib] = numbers[..] else { bail!("time said {cost:?}") };
    Ok(Cost { wall, cpu: user + system, memory: kib / 1024.0 })
}

/// Runs `line` and gives its standard output. An error unless it succeeds.
pub(crate) fn run(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default()).args(words).output().context(line.to_owned())?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The middle, the least and the most of some figures.
pub(crate) fn spread(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
    (at(figures.len() / 2), at(0), at(figures.len().saturating_sub(1)))
}
