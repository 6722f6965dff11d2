//! Reads of lazily mounted files return the right bytes, whatever happens to the agent, the
//! registry or the cache. Otherwise they fail in time, and return the right bytes afterwards.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use starlift::oci::Digest;

use crate::support::agent::Agent;
use crate::support::eventually::eventually;
use crate::support::image::{Compression, Random, compress};
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND, data_file, data_files, read, read_at};
use crate::support::place::Place;
use crate::support::registry::{Auth, Gate, Registry, TokenAuth};
use crate::support::systemd::Manager;

const EIO: i32 = 5;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn read_later(path: PathBuf) -> io::Result<Vec<u8>> {
    blocking(move || read(&path)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_takes_one_request_and_each_chunk_is_fetched_once() {
    let node = Node::start(&[ON_DEMAND]).await;
    // Larger than the end of the blob that is fetched first, so that some of it is left to fetch.
    let layer = Layer::random(1, &[4 << 20, 100, 3 * CHUNK]);
    let directory = node.mount("target", &layer).await;
    assert_eq!(node.blob_requests(), 1, "one request for footer and TOC");
    assert!(
        node.usage("target").await.0 < 1 << 20,
        "bytes that were not fetched take no space"
    );
    assert_eq!(node.registry.count("GET", "/manifests/"), 0);

    for (name, content) in &layer.files {
        assert!(
            read_later(directory.join(name)).await.unwrap() == *content,
            "{name}"
        );
    }
    let requests = node.blob_requests();
    let again = node.mount("again", &layer).await;
    for (name, content) in &layer.files {
        assert!(read_later(directory.join(name)).await.unwrap() == *content);
        assert!(
            read_later(again.join(name)).await.unwrap() == *content,
            "another mount of the same layer"
        );
    }
    assert_eq!(node.blob_requests(), requests, "nothing is fetched twice");
    let status = node.agent.status();
    let fetched = status["layers"][0]["read_bytes"].as_u64().unwrap();
    assert!(
        fetched <= layer.blob.len() as u64 + (64 << 10),
        "{fetched} bytes of {}",
        layer.blob.len()
    );
}

/// Reads at random places and checks every byte until it is stopped. Returns the number of reads.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Reader {
    fn start(directory: &Path, layer: &Layer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, directory, files) =
            (Arc::clone(&stop), directory.to_owned(), layer.files.clone());
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(7);
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) {
                let (name, content) =
                    &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
                let offset = random.below(content.len() as u64);
                let length = usize::try_from(random.below(200_000))
                    .unwrap()
                    .min(content.len() - usize::try_from(offset).unwrap());
                let read = read_at(&directory.join(name), offset, length)?;
                let start = usize::try_from(offset).unwrap();
                assert!(read == content[start..start + length], "{name} at {offset}");
                reads += 1;
            }
            Ok(reads)
        });
        Self { stop, thread }
    }

    /// Stops it. None of its reads may have failed.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_survive_twenty_kills() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layers = Layer::of_both_kinds(2, &[2 << 20, 30_000, 60_000, 1 << 20, 10]);
    let mut readers = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let directory = node.mount(&format!("target{number}"), layer).await;
        readers.push(Reader::start(&directory, layer));
    }
    for _ in 0..20 {
        node.restart(&[ON_DEMAND]);
    }
    for reader in readers {
        assert!(reader.stop() > 20, "the reader continues");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_survive_a_restart_and_an_upgrade() {
    for layer in Layer::of_both_kinds(3, &[2 << 20, 30_000, 60_000]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        let reader = Reader::start(&directory, &layer);
        node.agent.daemon.stop();
        node.restart(&[ON_DEMAND]);
        // Another executable. The old one is gone from the disk, as after an upgrade.
        let newer = node.place.path().join("starlift-new");
        fs::copy(env!("CARGO_BIN_EXE_starlift"), &newer).unwrap();
        node.agent.daemon.stop();
        let next = Agent::start_as(&newer, &node.place, &[ON_DEMAND]);
        drop(std::mem::replace(&mut node.agent, next));
        fs::remove_file(&newer).unwrap();
        node.restart(&[ON_DEMAND]);
        assert!(reader.stop() > 0);
    }
}

async fn the_next_agent_answers_a_read_in_progress(end: fn(&mut Agent)) {
    for layer in Layer::of_both_kinds(4, &[2 << 20]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        let gate = Gate::new();
        node.registry.on("/blobs/").gate(&gate);
        let reading = tokio::spawn(read_later(directory.join("file0")));
        gate.reached(1).await;
        end(&mut node.agent);
        node.restart(&[ON_DEMAND]);
        gate.reached(2).await;
        gate.open();
        assert!(reading.await.unwrap().unwrap() == layer.files[0].1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_progress_at_a_kill_is_answered_by_the_next_agent() {
    the_next_agent_answers_a_read_in_progress(|agent| agent.daemon.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_progress_at_a_stop_is_answered_by_the_next_agent() {
    the_next_agent_answers_a_read_in_progress(|agent| agent.daemon.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_an_error_in_time_and_is_read_again_later() {
    let node = Node::start(&[ON_DEMAND, ("READ_TIMEOUT", "1s")]).await;
    let layer = Layer::random(5, &[2 << 20]);
    let directory = node.mount("target", &layer).await;
    let gate = Gate::new();
    node.registry.on("/blobs/").gate(&gate);
    let error = read_later(directory.join("file0")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO));
    assert!(
        node.agent
            .metric("starlift_agent_read_errors_total")
            .unwrap()
            > 0
    );
    gate.open();
    node.registry.heal();
    assert!(read_later(directory.join("file0")).await.unwrap() == layer.files[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_the_log_name_the_prepare_or_the_slow_read_that_they_belong_to() {
    let node = Node::start(&[ON_DEMAND, ("READ_TIMEOUT", "1s")]).await;
    let layer = Layer::random(5, &[2 << 20]);
    let directory = node.mount("target", &layer).await;
    let gate = Gate::new();
    node.registry.on("/blobs/").gate(&gate);
    read_later(directory.join("file0")).await.unwrap_err();
    gate.open();
    let log = node.agent.daemon.log();
    let line = |message: &str| log.lines().find(|line| line.contains(message)).unwrap();
    assert!(line("mounted lazily").contains(" prepare{key=\""), "{log}");
    let read = format!(" read{{layer={} inode=", layer.digest);
    assert!(line("read timed out").contains(&read), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_an_unreachable_registry() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(6, &[1 << 20, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    assert!(read_later(directory.join("file1")).await.unwrap() == layer.files[1].1);
    node.registry.on("/").answer(503, &[]);
    let cached = Reader::start(
        &directory,
        &Layer {
            files: vec![layer.files[1].clone()],
            ..layer.clone()
        },
    );
    let waiting = tokio::spawn(read_later(directory.join("file0")));
    // The registry client gave up and was started again more than once.
    let node = blocking(move || {
        eventually("the registry was asked repeatedly", || {
            node.blob_requests() > 12
        });
        node
    })
    .await;
    assert!(!waiting.is_finished());
    assert!(cached.stop() > 0, "cached reads continue");
    node.registry.heal();
    assert!(
        waiting.await.unwrap().unwrap() == layer.files[0].1,
        "the others continue when it is back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stays_unreachable_is_an_error_in_time() {
    let node = Node::start(&[ON_DEMAND, ("READ_TIMEOUT", "1s")]).await;
    let layer = Layer::random(20, &[1 << 20, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    node.registry.on("/").answer(503, &[]);
    assert_eq!(
        read_later(directory.join("file0"))
            .await
            .unwrap_err()
            .raw_os_error(),
        Some(EIO)
    );
    node.registry.heal();
    assert!(read_later(directory.join("file0")).await.unwrap() == layer.files[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_may_jump() {
    let Some(place) = Place::with(&["faketime"]) else {
        return;
    };
    let clock = place.write("clock", "+0");
    let faketime = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/faketime/libfaketime.so.1"])
        .output()
        .unwrap();
    let library = String::from_utf8(faketime.stdout)
        .unwrap()
        .trim()
        .to_owned();
    let wrapper = place.write(
        "wrapper",
        format!(
            "#!/bin/sh\nexec env LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1 {} \"$@\"\n",
            clock.display(),
            env!("CARGO_BIN_EXE_starlift")
        ),
    );
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = Agent::start_as(&wrapper, &place, &[ON_DEMAND]);
    let node = Node {
        registry: Registry::start().await,
        agent,
        place,
    };
    node.registry.require(Auth::Token(TokenAuth::anonymous()));
    let layer = Layer::random(21, &[1 << 20, 1 << 20, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    let reader = Reader::start(
        &directory,
        &Layer {
            files: vec![layer.files[2].clone()],
            ..layer.clone()
        },
    );
    for (number, jump) in ["+3650d", "-3650d"].iter().enumerate() {
        fs::write(&clock, jump).unwrap();
        assert!(
            read_later(directory.join(format!("file{number}")))
                .await
                .unwrap()
                == layer.files[number].1,
            "{jump}"
        );
    }
    assert!(
        !node
            .prepare("absent", &Layer::random(22, &[10]))
            .await
            .unwrap(),
        "the agent answers containerd"
    );
    assert!(
        node.agent.daemon.log().contains("2016-"),
        "the agent's clock did jump"
    );
    assert!(reader.stop() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_chunk_by_chunk() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(7, &[300_000, 2 << 20]);
    let directory = node.mount("target", &layer).await;
    // Somewhere inside the first file's third chunk.
    let mut spoiled = layer.blob.to_vec();
    spoiled[2 * CHUNK + CHUNK / 2] ^= 1;
    node.registry.put_wrong_blob(&layer.digest, spoiled);
    let path = directory.join("file0");
    let at = |chunk: usize| {
        let path = path.clone();
        blocking(move || read_at(&path, (chunk * CHUNK) as u64, 4096))
    };
    assert_eq!(at(2).await.unwrap_err().raw_os_error(), Some(EIO));
    assert!(at(0).await.unwrap() == layer.files[0].1[..4096]);
    let errors = node.agent.status()["layers"][0]["errors"].as_u64().unwrap();
    assert!(errors > 0, "the error is counted");
    node.registry.put_blob(layer.blob.clone());
    assert!(
        read_later(path.clone()).await.unwrap() == layer.files[0].1,
        "the right bytes are accepted afterwards"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_tokens_are_renewed_while_files_are_read() {
    let node = Node::start(&[ON_DEMAND]).await;
    node.registry.require(Auth::Token(TokenAuth::anonymous()));
    let layer = Layer::random(8, &[1 << 20, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    assert!(read_later(directory.join("file0")).await.unwrap() == layer.files[0].1);
    node.registry.expire_tokens();
    assert!(read_later(directory.join("file1")).await.unwrap() == layer.files[1].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_of_the_agent_needs_no_registry() {
    for layer in Layer::of_both_kinds(9, &[1 << 20, 100_000]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        assert!(read_later(directory.join("file1")).await.unwrap() == layer.files[1].1);
        node.agent.daemon.stop();
        node.registry.on("/").answer(404, &[]);
        node.restart(&[ON_DEMAND]);
        assert!(read_later(directory.join("file1")).await.unwrap() == layer.files[1].1);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        assert_eq!(
            read_later(directory.join("file0"))
                .await
                .unwrap_err()
                .raw_os_error(),
            Some(EIO)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_on_disk_is_fetched_again() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(10, &[1 << 20, 5_000]);
    let directory = node.mount("target", &layer).await;
    for (name, content) in &layer.files {
        assert!(read_later(directory.join(name)).await.unwrap() == *content);
    }
    node.agent.daemon.kill();
    let file = File::options()
        .write(true)
        .open(data_file(&node.agent))
        .unwrap();
    let chunks = (1 << 20) / CHUNK;
    let damaged: Vec<usize> = (0..chunks).filter(|number| number % 3 != 2).collect();
    for &number in &damaged {
        let place = (number * CHUNK) as u64;
        match number % 3 {
            0 => file.write_all_at(b"damage", place + 100).unwrap(),
            // As a power cut leaves it.
            _ => file.write_all_at(&[0; CHUNK], place).unwrap(),
        }
    }
    node.restart(&[ON_DEMAND]);
    for (name, content) in &layer.files {
        assert!(
            read_later(directory.join(name)).await.unwrap() == *content,
            "{name}"
        );
    }
    let noticed = node.agent.metric("starlift_agent_cache_damaged_total");
    assert_eq!(noticed, Some(damaged.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_another_layer_holds_is_not_fetched() {
    let node = Node::start(&[ON_DEMAND]).await;
    let shared = Layer::random(70, &[1 << 20]).files.remove(0);
    // Larger than the end of a blob that is fetched first.
    let [one, two] = [71, 72].map(|seed| {
        let own = Layer::random(seed, &[1 << 20]).files.remove(0);
        Layer::of(vec![("shared".to_owned(), shared.1.clone()), own])
    });
    let first = node.mount("one", &one).await;
    assert!(read_later(first.join("shared")).await.unwrap() == shared.1);
    let second = node.mount("two", &two).await;
    let requests = node.blob_requests();
    assert!(read_later(second.join("shared")).await.unwrap() == shared.1);
    assert_eq!(node.blob_requests(), requests);
    node.remove("one").await.unwrap();
    eventually("the first layer's files are gone", || {
        data_files(&node.agent).len() == 2
    });
    assert!(read_later(second.join("shared")).await.unwrap() == shared.1);
    assert_eq!(
        node.blob_requests(),
        requests,
        "the copy is the second layer's own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_of_a_layer_goes_with_its_last_snapshot() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layers = [73, 74].map(|seed| Layer::random(seed, &[1 << 20]));
    for (target, layer) in [
        ("one", &layers[0]),
        ("again", &layers[0]),
        ("two", &layers[1]),
    ] {
        let directory = node.mount(target, layer).await;
        read_later(directory.join("file0")).await.unwrap();
    }
    assert_eq!(
        data_files(&node.agent).len(),
        4,
        "two mounts share their files"
    );
    node.remove("one").await.unwrap();
    node.remove("two").await.unwrap();
    eventually("two files are left", || data_files(&node.agent).len() == 2);
    let requests = node.blob_requests();
    let again = node.directory("again").await;
    assert!(read_later(again.join("file0")).await.unwrap() == layers[0].files[0].1);
    assert_eq!(node.blob_requests(), requests);
    // A crash between a removal and the deletion leaves files that no layer needs.
    node.agent.daemon.kill();
    let left = node.agent.root.join("cache/sha256-00-00.data");
    fs::write(&left, "left").unwrap();
    node.restart(&[ON_DEMAND]);
    assert!(!left.exists());
    assert_eq!(data_files(&node.agent).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stays_within_its_limit() {
    let limit = 300_000;
    let node = Node::start(&[ON_DEMAND, ("CACHE_SIZE", "300kB"), ("MEMORY", "0")]).await;
    let layer = Layer::random(11, &[1 << 20, 50_000]);
    let directory = node.mount("target", &layer).await;
    for _ in 0..2 {
        for (name, content) in &layer.files {
            assert!(read_later(directory.join(name)).await.unwrap() == *content);
        }
    }
    // Chunks that were fetched along with the last read may still arrive, and evict others.
    eventually(
        "the files are within their limit and reported as the file system counts them",
        || {
            let blocks = data_files(&node.agent)
                .into_iter()
                .filter_map(|path| Some(fs::metadata(path).ok()?.blocks()));
            let on_disk = blocks.sum::<u64>() * 512;
            on_disk <= limit && node.agent.status()["cache"]["bytes"] == on_disk
        },
    );
    assert!(
        node.agent
            .metric("starlift_agent_cache_evictions_total")
            .unwrap()
            > 0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_keeps_its_free_space() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    node.agent.daemon.stop();
    let cache = node.place.dir("agent/cache");
    node.place.run(&format!(
        "mount -t tmpfs -o size=8m tmpfs {}",
        cache.display()
    ));
    let floor: u64 = 2 << 20;
    let free = || {
        let found = rustix::fs::statvfs(&cache).unwrap();
        found.f_bavail * found.f_frsize
    };
    let all = [
        ("BACKGROUND_DELAY", "0s"),
        ("MAX_REQUEST", "256KiB"),
        ("MIN_FREE", "2MiB"),
    ];
    node.restart(&all);
    let layer = Layer::random(75, &[10 << 20, 50_000]);
    let directory = node.mount("target", &layer).await;
    eventually("the background has stopped", || {
        (floor..floor + (1 << 20)).contains(&free())
    });
    // Others fill the disk.
    fs::write(cache.join("others"), vec![1; 2 << 20]).unwrap();
    eventually("the oldest content has gone", || free() >= floor);
    for (name, content) in &layer.files {
        assert!(read_later(directory.join(name)).await.unwrap() == *content);
    }
    eventually("reads leave the space free too", || free() >= floor);
    node.agent.daemon.stop();
    node.place.run(&format!("umount {}", cache.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_not_an_error() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    node.agent.daemon.stop();
    let cache = node.place.dir("agent/cache");
    node.place.run(&format!(
        "mount -t tmpfs -o size=128k tmpfs {}",
        cache.display()
    ));
    node.restart(&[ON_DEMAND]);
    let layer = Layer::random(12, &[2 << 20, 50_000]);
    let directory = node.mount("target", &layer).await;
    for (name, content) in &layer.files {
        assert!(
            read_later(directory.join(name)).await.unwrap() == *content,
            "{name}"
        );
    }
    assert!(
        node.agent
            .metric("starlift_agent_cache_write_failures_total")
            .unwrap()
            > 0
    );
    node.agent.daemon.stop();
    node.place.run(&format!("umount {}", cache.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_on_a_read_only_disk_is_read() {
    let settings = [ON_DEMAND, ("MEMORY", "0")];
    let mut node = Node::start(&settings).await;
    node.agent.daemon.stop();
    let cache = node.place.dir("agent/cache");
    node.place
        .run(&format!("mount -t tmpfs tmpfs {}", cache.display()));
    node.restart(&settings);
    let layer = Layer::random(76, &[2 << 20, 50_000]);
    let directory = node.mount("target", &layer).await;
    let (name, content) = &layer.files[1];
    assert!(read_later(directory.join(name)).await.unwrap() == *content);
    node.agent.daemon.stop();
    node.place
        .run(&format!("mount -o remount,ro {}", cache.display()));
    node.restart(&settings);
    let requests = node.blob_requests();
    assert!(read_later(directory.join(name)).await.unwrap() == *content);
    assert_eq!(node.blob_requests(), requests, "it is on the node");
    let (name, content) = &layer.files[0];
    assert!(
        read_later(directory.join(name)).await.unwrap() == *content,
        "the rest comes from the registry"
    );
    node.place
        .run(&format!("mount -o remount,rw {}", cache.display()));
    assert!(read_later(directory.join(name)).await.unwrap() == *content);
    let requests = node.blob_requests();
    assert!(
        read_later(directory.join(name)).await.unwrap() == *content,
        "what can be written again is written"
    );
    assert_eq!(node.blob_requests(), requests);
    node.agent.daemon.stop();
    node.place.run(&format!("umount {}", cache.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_toc_than_its_image_declares_is_unpacked() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(13, &[1000]);
    node.registry.put_blob(layer.blob.clone());
    let other = Layer::random(14, &[1000]);
    let forged = Layer {
        toc_digest: other.toc_digest,
        ..layer
    };
    assert!(!node.prepare("target", &forged).await.unwrap());
    let refusal = &node.agent.status()["refusals"][0];
    assert_eq!(refusal["digest"], forged.digest.to_string());
    assert!(
        refusal["reason"].as_str().unwrap().contains("digest"),
        "{refusal}"
    );
    assert!(node.agent.lazy().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_opened_is_unpacked() {
    let node = Node::start(&[ON_DEMAND, ("MOUNT_TIMEOUT", "500ms")]).await;
    let layer = Layer::random(15, &[1000]);
    assert!(!node.prepare("absent", &layer).await.unwrap());
    node.registry.put_blob(layer.blob.clone());
    let gate = Gate::new();
    node.registry.on("/blobs/").gate(&gate);
    assert!(!node.prepare("slow", &layer).await.unwrap());
    gate.open();
    let status = node.agent.status();
    let reasons: Vec<&str> = status["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|refusal| refusal["reason"].as_str().unwrap())
        .collect();
    assert!(
        reasons[0].contains("does not have it") && reasons[1].contains("500ms"),
        "{reasons:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_layer_leaves_nothing() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(16, &[1 << 20]);
    let directory = node.mount("target", &layer).await;
    let open = fs::File::open(directory.join("file0")).unwrap();
    node.remove("target").await.unwrap();
    assert!(!directory.exists() && node.agent.lazy().is_empty());
    assert_eq!(
        fs::read_dir(node.agent.root.join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>(),
        ["next"]
    );
    let images = fs::read_dir(node.agent.root.join("erofs"));
    assert!(images.is_err() || images.unwrap().count() == 0);
    drop(open);
    let again = node.mount("target", &layer).await;
    assert_ne!(again, directory, "a directory is never used again");
    assert!(read_later(again.join("file0")).await.unwrap() == layer.files[0].1);
    node.restart(&[ON_DEMAND]);
    assert_eq!(node.agent.lazy().len(), 1);
    assert!(again.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_before_the_landmark_are_fetched_at_once() {
    let node = Node::start(&[ON_DEMAND]).await;
    let mut random = Random::new(23);
    let landmark = (".prefetch.landmark".to_owned(), vec![0x0f]);
    // The last file fills the end that is fetched for the TOC, so that neither of the others is in
    // it.
    let files = [("first", 300_000), ("second", 300_000), ("last", 1 << 20)];
    let mut files: Vec<_> = files
        .map(|(name, size)| (name.to_owned(), random.bytes(size)))
        .into();
    files.insert(1, landmark);
    let layer = Layer::with_landmark(files);
    let directory = node.mount("target", &layer).await;
    eventually("the first file is fetched", || {
        node.agent.status()["layers"][0]["prefetched_bytes"]
            .as_u64()
            .unwrap()
            >= 300_000
    });
    let requests = node.blob_requests();
    assert!(read_later(directory.join("first")).await.unwrap() == layer.files[0].1);
    assert_eq!(
        node.blob_requests(),
        requests,
        "the first file is cached already"
    );
    assert!(read_later(directory.join("second")).await.unwrap() == layer.files[2].1);
    assert!(
        node.blob_requests() > requests,
        "the second file was not fetched before"
    );
    assert!(!directory.join(".prefetch.landmark").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_over_four_gibibytes_are_read_to_their_ends() {
    const END: u64 = 5 << 30;
    let node = Node::start(&[ON_DEMAND]).await;
    let directory = node.place.dir("large");
    let file = fs::File::create(directory.join("file")).unwrap();
    file.write_all_at(b"beyond the fourth", (4 << 30) + 1000)
        .unwrap();
    file.write_all_at(b"the end", END - 7).unwrap();
    let tar = node.place.path().join("large.tar");
    node.place.run(&format!(
        "tar --sparse -cf {} -C {} file",
        tar.display(),
        directory.display()
    ));
    let layer = blocking(move || Layer::of_tar(&fs::read(&tar).unwrap())).await;
    let path = node.mount("target", &layer).await.join("file");
    assert_eq!(fs::metadata(&path).unwrap().len(), END);
    let at = |offset: u64, length: usize| {
        let path = path.clone();
        blocking(move || read_at(&path, offset, length))
    };
    assert_eq!(
        at((4 << 30) + 1000, 17).await.unwrap(),
        b"beyond the fourth"
    );
    assert_eq!(at(END - 7, 7).await.unwrap(), b"the end");
    assert_eq!(at(3 << 30, 100).await.unwrap(), [0; 100], "a hole");
    assert!(at(END - 7, 8).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_is_fetched_without_a_reader() {
    let node = Node::start(&[("BACKGROUND_DELAY", "0s")]).await;
    let layer = Layer::random(17, &[2 << 20, 100, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    eventually("everything is cached", || {
        let status = node.agent.status();
        let content = &status["layers"][0]["content"];
        content["bytes"] == content["held_bytes"]
    });
    let files = data_files(&node.agent);
    let blocks: u64 = files
        .iter()
        .map(|path| fs::metadata(path).unwrap().blocks())
        .sum();
    let (bytes, inodes) = node.usage("target").await;
    assert!(bytes > 3 << 20);
    assert_eq!((bytes, inodes), (i64::try_from(blocks * 512).unwrap(), 2));
    node.registry.on("/").answer(404, &[]);
    for (name, content) in &layer.files {
        assert!(read_later(directory.join(name)).await.unwrap() == *content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_chunk_does_not_stop_the_fetching_of_the_rest() {
    let node = Node::start(&[("BACKGROUND_DELAY", "0s"), ("MAX_REQUEST", "200kB")]).await;
    let layer = Layer::random(24, &[4 << 20]);
    let mut spoiled = layer.blob.to_vec();
    spoiled[2 * CHUNK + CHUNK / 2] ^= 1;
    node.registry.put_wrong_blob(&layer.digest, spoiled);
    assert!(node.prepare("target", &layer).await.unwrap());
    eventually("all chunks but one are cached", || {
        let content = node.agent.status()["layers"][0]["content"].clone();
        content["bytes"].as_u64().unwrap() == content["held_bytes"].as_u64().unwrap() + CHUNK as u64
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_died_is_replaced() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(18, &[1 << 20]);
    let directory = node.mount("target", &layer).await;
    let reader = Reader::start(&directory, &layer);
    let keeper = || {
        let socket = node.agent.root.join("keeper.sock").display().to_string();
        let lists = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?)
                    .into_owned();
                let is_alive = !line.is_empty();
                (is_alive && line.contains(&socket))
                    .then(|| entry.file_name().into_string().unwrap())
            });
        lists.last()
    };
    let first = keeper().expect("a keeper runs");
    node.place.run(&format!("kill -9 {first}"));
    eventually("another keeper runs", || {
        keeper().is_some_and(|next| next != first)
    });
    eventually("the new keeper has the mount", || {
        node.agent
            .daemon
            .log()
            .contains("new keeper has all descriptors")
    });
    node.restart(&[ON_DEMAND]);
    assert!(reader.stop() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_keeps_the_mount_while_the_agent_restarts() {
    let registry = Registry::start().await;
    let place = Place::with(&[]).unwrap();
    let mut manager = Manager::new(place.path().join("notify"));
    let settings = [ON_DEMAND, ("KEEPER", "systemd")];
    let agent = Agent::start_under(&mut manager, &place, &settings);
    let mut node = Node {
        registry,
        agent,
        place,
    };
    let layer = Layer::random(19, &[1 << 20, 70_000]);
    let directory = node.mount("target", &layer).await;
    let reader = Reader::start(&directory, &layer);
    for _ in 0..3 {
        node.agent.daemon.kill();
        let next = Agent::start_under(&mut manager, &node.place, &settings);
        drop(std::mem::replace(&mut node.agent, next));
        assert_eq!(
            manager.store.keys().collect::<Vec<_>>(),
            ["fuse", "fuse-data", "fuse-noxattr", "socket"]
        );
        assert!(
            !node.agent.root.join("keeper.sock").exists(),
            "only systemd holds it"
        );
    }
    assert!(reader.stop() > 0);
    assert!(node.remove("target").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_momentary_refusal_fails_no_read() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(31, &[1 << 20, 1 << 20]);
    let directory = node.mount("target", &layer).await;
    node.registry.on("/blobs/").times(2).answer(403, &[]);
    assert!(read_later(directory.join("file0")).await.unwrap() == layer.files[0].1);
}

fn refusals(node: &Node) -> Vec<String> {
    let status = node.agent.status();
    let refusals = status["refusals"].as_array().unwrap();
    refusals
        .iter()
        .map(|refusal| refusal["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_waits_only_once_for_a_registry_without_an_answer() {
    let node = Node::start(&[ON_DEMAND, ("MOUNT_TIMEOUT", "1s")]).await;
    let gate = Gate::new();
    node.registry.on("/").gate(&gate);
    for seed in 32..36 {
        let layer = Layer::random(seed, &[1000]);
        node.registry.put_blob(layer.blob.clone());
        assert!(!node.prepare(&format!("layer{seed}"), &layer).await.unwrap());
    }
    let reasons = refusals(&node);
    assert!(reasons[0].contains("longer than 1s"), "{reasons:?}");
    assert!(
        reasons[1..]
            .iter()
            .all(|reason| reason.contains("no answer from")),
        "{reasons:?}"
    );
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_chunks_too_large_to_hold_is_unpacked() {
    let node = Node::start(&[ON_DEMAND]).await;
    let digest = Digest::sha256_of(b"");
    let file = format!(
        r#"{{"name":"f","type":"reg","size":1073741824,"digest":"{digest}","chunkDigest":"{digest}"}}"#
    );
    let json = format!(r#"{{"version":1,"entries":[{file}]}}"#);
    let section = compress(
        &estargz::tar::build::file("stargz.index.json", json.as_bytes()),
        Compression::Gzip,
    );
    let payload = [0; 100];
    let blob = [
        &payload[..],
        &section,
        &estargz::footer::gzip(payload.len() as u64),
    ]
    .concat();
    let (digest, toc_digest) = (Digest::sha256_of(&blob), Digest::sha256_of(json.as_bytes()));
    let layer = Layer {
        blob: blob.into(),
        digest,
        toc_digest,
        files: Vec::new(),
    };
    node.registry.put_blob(layer.blob.clone());
    assert!(!node.prepare("hostile", &layer).await.unwrap());
    assert!(
        refusals(&node)[0].contains("bytes in a chunk"),
        "{:?}",
        refusals(&node)
    );
}
