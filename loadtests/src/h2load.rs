//! Runs h2load (nghttp2) against an HTTP/2 server without TLS and reads its figures.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::figures::float;
use crate::wrk::{Load, Seen};

/// Sends the load with one thread and `streams` requests at once on each connection. Fails unless
/// every answer was a success.
///
/// h2load cannot change a header between requests: each asks for the same range at the blob's
/// middle. It stops in the middle of answers, so the bytes are those of whole answers.
pub(crate) fn run(load: &Load, streams: usize, url: &str, place: &Path) -> anyhow::Result<Seen> {
    let ranges = load.ranges.context("a load over HTTP/2 has ranges")?;
    let start = ranges.blob_size / 2;
    let log = place.join("h2load.log");
    let _none_yet = fs::remove_file(&log);
    let begun = Instant::now();
    let output = Command::new("h2load")
        .args(["-t1", "-m", &streams.to_string()])
        .args(["-c", &load.connections.to_string()])
        .args(["-D", &load.seconds.to_string()])
        .args(["-H", &format!("accept: {}", load.accept)])
        .args([
            "-H",
            &format!("range: bytes={start}-{}", start + ranges.length - 1),
        ])
        .arg(format!("--log-file={}", log.display()))
        .arg(url)
        .output()
        .context("h2load")?;
    let took = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "h2load: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut durations = Vec::new();
    for line in fs::read_to_string(&log)?.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [_start, status, microseconds] = fields[..] else {
            anyhow::bail!("unexpected line of h2load: {line}")
        };
        ensure!(status == "206", "{url} answered {status}");
        durations.push(microseconds.parse::<u32>()?);
    }
    durations.sort_unstable();
    let p99 = durations.get(durations.len() * 99 / 100);
    let p99 = p99.with_context(|| format!("no answer from {url}: {said}"))?;
    let requests = float(durations.len() as u64);
    Ok(Seen {
        requests,
        bytes: requests * float(ranges.length),
        seconds: took,
        p99_milliseconds: f64::from(*p99) / 1e3,
    })
}
