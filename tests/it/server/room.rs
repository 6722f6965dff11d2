//! The store's size limit, which is checked before each write: the least recently used images are
//! evicted, or images pass through.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use starlift::store::{self, Retention, Store};

use super::{Answer, Stage};
use crate::support::image::ImageBuilder;

const IMAGES: u64 = 8;
/// Space for about three of the images.
const MAX_SIZE: u64 = 300_000;

async fn open(root: &Path) -> Store {
    let retention = Retention {
        max_size: Some(ByteSize::b(MAX_SIZE)),
        ..Retention::default()
    };
    let location = root.display().to_string();
    Store::open(&store::Config {
        location,
        retention,
        ..store::Config::default()
    })
    .await
    .unwrap()
}

/// Returns a server over the folder, and a registry with some images of about 90 kB.
async fn stage(root: &Path) -> Stage {
    let stage = Stage::over(open(root).await, |config| config.profiles.enabled = false).await;
    for seed in 0..IMAGES {
        let image = ImageBuilder::new(seed)
            .layers(1)
            .files(40)
            .max_file(4_000)
            .build();
        stage.registry.push("app", &format!("v{seed}"), &image);
    }
    stage
}

async fn pull(stage: &Stage, seed: u64) -> Answer {
    let answer = stage.get(&format!("/v2/local/app/manifests/v{seed}")).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("warning"), "{answer:?}");
    answer
}

fn is_converted(answer: &Answer) -> bool {
    String::from_utf8_lossy(&answer.body).contains("stargz/toc.digest")
}

fn files(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files
}

fn size(root: &Path) -> u64 {
    files(root)
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |meta| meta.len()))
        .sum()
}

/// Makes every file older by `by`.
fn age(root: &Path, by: Duration) {
    for path in files(root) {
        fs::File::open(path)
            .unwrap()
            .set_modified(SystemTime::now() - by)
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_its_size_takes_no_more_and_images_pass_through() {
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(dir.path()).await;
    let mut converted = 0;
    for seed in 0..IMAGES {
        converted += u64::from(is_converted(&pull(&stage, seed).await));
        assert!(
            size(dir.path()) <= MAX_SIZE,
            "{} bytes after {} images",
            size(dir.path()),
            seed + 1
        );
    }
    assert!((1..IMAGES).contains(&converted), "{converted}");
    // Objects that another replica stored count as well.
    let another = self::stage(dir.path()).await;
    assert!(!is_converted(&pull(&another, IMAGES - 1).await));
    assert!(size(dir.path()) <= MAX_SIZE);
    assert!(
        is_converted(&pull(&another, 0).await),
        "stored images are served"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_above_its_size_evicts_the_least_recently_used() {
    let dir = tempfile::tempdir().unwrap();
    let first = stage(dir.path()).await;
    for seed in 0..IMAGES {
        pull(&first, seed).await;
    }
    age(dir.path(), Duration::from_secs(9 * 60));
    let minutes_later = stage(dir.path()).await;
    assert!(
        !is_converted(&pull(&minutes_later, IMAGES - 1).await),
        "images used in the last minutes stay"
    );
    age(dir.path(), Duration::from_secs(11 * 60));
    let later = stage(dir.path()).await;
    for seed in (0..IMAGES).rev().take(2) {
        assert!(
            is_converted(&pull(&later, seed).await),
            "no space for image {seed}"
        );
        assert!(size(dir.path()) <= MAX_SIZE, "{}", size(dir.path()));
    }
}

#[tokio::test]
async fn a_lowered_limit_is_kept_by_the_next_sweep_except_for_objects_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(dir.path()).await;
    pull(&stage, 0).await;
    pull(&stage, 1).await;
    let before = size(dir.path());
    let retention = Retention {
        max_size: Some(ByteSize::b(before / 2)),
        ..Retention::default()
    };
    let config = store::Config {
        location: dir.path().display().to_string(),
        retention,
        ..store::Config::default()
    };
    let lowered = Store::open(&config).await.unwrap();
    let report = lowered.sweep(SystemTime::now()).await.unwrap();
    assert_eq!(
        (report.images, report.objects),
        (0, 0),
        "all images were requested a moment ago"
    );
    assert_eq!(report.kept_bytes, before);
    lowered
        .sweep(SystemTime::now() + Duration::from_secs(11 * 60))
        .await
        .unwrap();
    assert!(
        size(dir.path()) <= before / 2,
        "{} of {before}",
        size(dir.path())
    );
}
