//! Runs wrk against an HTTP server and reads its figures.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The request that wrk repeats.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    /// The value of the `Accept` header.
    pub(crate) accept: &'static str,
    /// The value of the `Authorization` header, if there is one.
    pub(crate) authorization: Option<String>,
    pub(crate) ranges: Option<Ranges>,
}

/// Random ranges of a blob.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranges {
    pub(crate) blob_size: u64,
    /// Bytes of each range.
    pub(crate) length: u64,
    /// Number of ranges in each request.
    pub(crate) count: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) requests: f64,
    /// Bytes of all answers, including headers.
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    pub(crate) p99_milliseconds: f64,
}

/// Runs wrk with one thread. Fails unless every answer was a success.
pub(crate) fn run(load: &Load, url: &str, place: &Path) -> anyhow::Result<Seen> {
    let script = place.join("load.lua");
    fs::write(&script, lua(load))?;
    let output = Command::new("wrk")
        .args([
            "-t1",
            &format!("-c{}", load.connections),
            &format!("-d{}s", load.seconds),
            "--timeout",
            "30s",
            "-s",
        ])
        .arg(&script)
        .arg(url)
        .output()
        .context("wrk")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("seen "))
        .with_context(|| format!("unexpected output of wrk: {said}"))?;
    let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [requests, bytes, microseconds, p99, failed] = figures[..] else {
        anyhow::bail!("unexpected output of wrk: {line}")
    };
    ensure!(
        failed == 0.0 && requests > 0.0,
        "{failed} of {requests} requests to {url} failed"
    );
    Ok(Seen {
        requests,
        bytes,
        seconds: microseconds / 1e6,
        p99_milliseconds: p99 / 1e3,
    })
}

fn lua(load: &Load) -> String {
    let accept = load.accept;
    let authorization = load.authorization.as_ref().map_or(String::new(), |value| {
        format!("wrk.headers['Authorization'] = '{value}'\n")
    });
    let request = match load.ranges {
        None => String::new(),
        Some(Ranges {
            blob_size,
            length,
            count,
        }) => format!(
            "math.randomseed(1)
             request = function()
                local ranges = {{}}
                for i = 1, {count} do
                    local start = math.random(0, {blob_size} - {length} - 1)
                    ranges[i] = string.format('%d-%d', start, start + {length} - 1)
                end
                wrk.headers['Range'] = 'bytes=' .. table.concat(ranges, ',')
                return wrk.format()
             end\n"
        ),
    };
    format!(
        "wrk.headers['Accept'] = '{accept}'
         {authorization}
         {request}
         done = function(summary, latency, requests)
            local errors = summary.errors
            local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
            print(string.format('seen %d %.0f %.0f %.0f %d', summary.requests, summary.bytes, summary.duration,
                latency:percentile(99), failed))
         end\n"
    )
}
