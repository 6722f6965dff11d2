//! The limits of the agent's configuration, as a registry and the process's memory show them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Settings};
use crate::support::eventually::eventually;
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND, read, read_at};
use crate::support::place::Place;
use crate::support::registry::Registry;

const AT_ONCE: (&str, &str) = ("BACKGROUND_DELAY", "0s");
const REQUEST: u64 = 128 << 10;
const SMALL_REQUESTS: (&str, &str) = ("MAX_REQUEST", "128KiB");

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Returns the lengths of the ranges that were requested.
fn lengths(registry: &Registry) -> Vec<u64> {
    let length = |range: &str| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(last.parse::<u64>().ok()? - first.parse::<u64>().ok()? + 1)
    };
    registry
        .seen()
        .iter()
        .filter_map(|seen| length(seen.headers.get("range")?.to_str().ok()?))
        .collect()
}

/// Returns the bytes that were fetched in the background, by layer.
fn in_background(agent: &Agent) -> Vec<u64> {
    let status = agent.status();
    let layers = status["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["background_bytes"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_asks_for_more_than_configured() {
    for background in ["off", "full"] {
        let node = Node::start(&[("BACKGROUND", background), AT_ONCE, SMALL_REQUESTS]).await;
        let layer = Layer::random(1, &[4 << 20]);
        let directory = node.mount("target", &layer).await;
        let content = blocking(move || read(&directory.join("file0")).unwrap()).await;
        assert!(content == layer.files[0].1);
        let lengths = lengths(&node.registry);
        let longest = *lengths.iter().max().unwrap();
        assert!(
            (REQUEST / 2..=REQUEST).contains(&longest),
            "{background}: {lengths:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_background_fetching_stops_at_its_limit() {
    const LIMIT: u64 = 512 << 10;
    let settings = [
        ("BACKGROUND", "limited"),
        ("BACKGROUND_LIMIT", "512KiB"),
        AT_ONCE,
        SMALL_REQUESTS,
    ];
    let node = Node::start(&settings).await;
    // The requests of two layers take turns. So a layer that went on beyond its limit would do so
    // while the other one reaches its own.
    for (number, seed) in [1, 2].into_iter().enumerate() {
        node.mount(&format!("target{number}"), &Layer::random(seed, &[4 << 20]))
            .await;
        eventually("the layer has reached its limit", || {
            in_background(&node.agent)[number] >= LIMIT
        });
    }
    let fetched = in_background(&node.agent);
    assert!(
        fetched.iter().all(|bytes| *bytes <= LIMIT + REQUEST),
        "{fetched:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn background_fetching_keeps_its_bandwidth_over_all_layers() {
    /// Bytes a second.
    const BANDWIDTH: u32 = 1 << 20;
    let settings = [
        ("BACKGROUND", "full"),
        ("BACKGROUND_BANDWIDTH", "1MiB"),
        AT_ONCE,
        SMALL_REQUESTS,
    ];
    let node = Node::start(&settings).await;
    let layers = [1, 2].map(|seed| Layer::random(seed, &[4 << 20]));
    let begun = Instant::now();
    for (number, layer) in layers.iter().enumerate() {
        node.mount(&format!("target{number}"), layer).await;
    }
    eventually("some seconds' worth has arrived", || {
        let fetched: u64 = in_background(&node.agent).iter().sum();
        let allowed = begun.elapsed().as_secs_f64() * f64::from(BANDWIDTH);
        let most = Duration::from_secs_f64(allowed / f64::from(BANDWIDTH));
        assert!(
            fetched as f64 <= allowed + REQUEST as f64,
            "{fetched} bytes in {most:?}"
        );
        fetched >= 2 * u64::from(BANDWIDTH)
    });
}

/// Writes to the file system of `folder` until it has no room left.
fn fill(folder: &Path) -> io::Result<()> {
    let mut file = File::create(folder.join("filler"))?;
    let block = vec![1; 64 << 10];
    loop {
        match file.write_all(&block) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            outcome => outcome?,
        }
    }
}

/// A node whose root is a small file system of its own.
async fn small_node(settings: Settings<'_>) -> Node {
    let place = Place::with(&[]).unwrap();
    let root = place.dir("agent");
    place.run(&format!(
        "mount -t tmpfs -o size=48m tmpfs {}",
        root.display()
    ));
    let agent = Agent::start_with(&place, settings);
    Node {
        registry: Registry::start().await,
        agent,
        place,
    }
}

fn end(node: Node) {
    let Node { agent, place, .. } = node;
    let root = agent.root.clone();
    fs::remove_file(root.join("filler")).unwrap();
    drop(agent);
    place.run(&format!("umount {}", root.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_chunks_take_no_more_memory_than_configured() {
    const READERS: usize = 8;
    const PART: usize = 40 << 20;
    /// The configured memory, and that of the threads which decode and wait. All that is read is
    /// a third more.
    const MOST: u64 = 240 << 20;
    let node = small_node(&[ON_DEMAND, ("MEMORY", "16MiB")]).await;
    // Chunks that differ from each other and are quickly made.
    let mut content = vec![0; READERS * PART];
    for (number, chunk) in content.chunks_mut(CHUNK).enumerate() {
        let word = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chunk[..8].copy_from_slice(&word.to_le_bytes());
    }
    let layer = Layer::of(vec![("file0".to_owned(), content)]);
    let directory = node.mount("target", &layer).await;
    fill(&node.agent.root).unwrap();
    let before = node.agent.daemon.memory_now();
    node.agent.daemon.forget_peak();
    let content = std::sync::Arc::new(layer.files[0].1.clone());
    let reads = (0..READERS).map(|reader| {
        let (path, content) = (directory.join("file0"), std::sync::Arc::clone(&content));
        tokio::task::spawn_blocking(move || {
            let start = reader * PART;
            let read = read_at(&path, start as u64, PART).unwrap();
            assert!(read == content[start..start + PART], "part {reader}");
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    let failures = node
        .agent
        .metric("starlift_agent_cache_write_failures_total");
    assert!(failures.unwrap() > 0, "the disk is full");
    let peak = node.agent.daemon.peak_memory().saturating_sub(before);
    assert!(peak < MOST, "{} MiB", peak >> 20);
    blocking(move || end(node)).await;
}
