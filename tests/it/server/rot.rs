//! A store that rots: bits flip, files are cut, emptied, deleted, zeroed. No completed answer has a
//! wrong byte, and the pull soon succeeds again without intervention.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use starlift::oci::Digest;
use starlift::store::{self, Damage, Finding, Store};

use super::Stage;
use crate::support::eventually::eventually_async;
use crate::support::image::{Image, ImageBuilder, Random};
use crate::support::s3::S3;

/// Number of rotten stores for each kind of file.
const SEEDS: u64 = 12;

/// A way to damage a file.
#[derive(Debug, Clone, Copy)]
enum Rot {
    Bit,
    Cut,
    Empty,
    Gone,
    /// Zeros of the same length, as after a crash.
    Zeros,
}

impl Rot {
    fn of(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::Cut,
            1 => Self::Empty,
            2 => Self::Gone,
            3 => Self::Zeros,
            _ => Self::Bit,
        }
    }

    /// Returns the damaged content, or `None` if the file is deleted.
    fn spoil(self, content: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        let mut content = content.to_vec();
        let at = usize::try_from(random.below(content.len() as u64)).unwrap();
        match self {
            Self::Bit => content[at] ^= 1_u8 << random.below(8),
            Self::Cut => content.truncate(at),
            Self::Empty => content.clear(),
            Self::Gone => return None,
            Self::Zeros => content.fill(0),
        }
        Some(content)
    }
}

/// The result of pulling a tag and all it names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pulled {
    /// Manifest, configuration and layers were right. The digest is that of the manifest.
    All(String),
    /// A request failed or broke off.
    Broken(String),
}

/// Pulls like a client. A completed answer with wrong bytes fails the test.
async fn pull(stage: &Stage) -> Pulled {
    let fetch = async |path: String| -> Result<(String, Bytes), Pulled> {
        let request = stage.request(reqwest::Method::GET, &path);
        let response = request
            .send()
            .await
            .map_err(|error| Pulled::Broken(format!("{path}: {error}")))?;
        if response.status() != 200 {
            return Err(Pulled::Broken(format!("{path}: {}", response.status())));
        }
        let digest = response.headers()["docker-content-digest"]
            .to_str()
            .unwrap()
            .to_owned();
        let bytes = response
            .bytes()
            .await
            .map_err(|error| Pulled::Broken(format!("{path}: {error}")))?;
        assert_eq!(
            Digest::sha256_of(&bytes).to_string(),
            digest,
            "completed answer with wrong bytes: {path}"
        );
        Ok((digest, bytes))
    };
    let all = async {
        let (digest, manifest) = fetch("/v2/local/app/manifests/v1".to_owned()).await?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for blob in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&manifest["config"]])
        {
            let named = blob["digest"].as_str().unwrap();
            let (digest, bytes) = fetch(format!("/v2/local/app/blobs/{named}")).await?;
            assert_eq!(
                (digest.as_str(), bytes.len() as u64),
                (named, blob["size"].as_u64().unwrap())
            );
        }
        Ok(Pulled::All(digest))
    };
    all.await.unwrap_or_else(|broken| broken)
}

/// Pulls until the result is right again, three times at most. Returns the results.
async fn pull_again(stage: &Stage, right: &Pulled) -> Vec<Pulled> {
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(pull(stage).await);
        if seen.last() == Some(right) {
            break;
        }
    }
    seen
}

fn image() -> Image {
    ImageBuilder::new(11)
        .layers(1)
        .files(4)
        .max_file(900)
        .build()
}

/// Returns every file under `root` with its relative path and its content.
fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push((
                    path.strip_prefix(root).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                )),
            }
        }
    }
    files.sort();
    files
}

/// Returns the kind of a file, which is its first two folders.
fn kind(path: &Path) -> String {
    let folders: Vec<_> = path
        .parent()
        .unwrap()
        .iter()
        .take(2)
        .map(|name| name.to_string_lossy())
        .collect();
    folders.join("/")
}

async fn folder(root: &Path) -> Store {
    let config = store::Config {
        location: root.display().to_string(),
        ..store::Config::default()
    };
    Store::open(&config).await.unwrap()
}

async fn stage_over(store: Store) -> Stage {
    let stage = Stage::over(store, |_| {}).await;
    stage.registry.push("app", "v1", &image());
    stage
}

/// Returns the result of a pull and the store's files after it. The server has a runtime of its own:
/// once that has ended, no task writes in the background.
async fn sound(root: &Path) -> (Pulled, Vec<(PathBuf, Vec<u8>)>) {
    let own = root.to_owned();
    let serve_once = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { pull(&stage_over(folder(&own).await).await).await })
    };
    let right = tokio::task::spawn_blocking(serve_once).await.unwrap();
    assert!(
        matches!(&right, Pulled::All(digest) if *digest != image().digest().to_string()),
        "{right:?}"
    );
    folder(root).await.salt().await.unwrap();
    (right, files(root))
}

/// Returns a new folder with the files of `sound`, one of them replaced.
fn spoiled(
    sound: &[(PathBuf, Vec<u8>)],
    path: &Path,
    content: Option<Vec<u8>>,
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in sound {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    put_one(dir.path(), path, content);
    dir
}

fn put_one(root: &Path, path: &Path, content: Option<Vec<u8>>) {
    match content {
        Some(content) => fs::write(root.join(path), content).unwrap(),
        None => fs::remove_file(root.join(path)).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_folder_gives_no_wrong_bytes_and_the_pull_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (right, sound) = sound(&root).await;
    let rotten: Vec<_> = sound
        .iter()
        .filter(|(_, content)| !content.is_empty())
        .collect();
    let mut kinds: Vec<_> = rotten.iter().map(|(path, _)| kind(path)).collect();
    kinds.dedup();
    assert!(kinds.len() >= 6, "{kinds:?}");
    for kind_of_file in kinds {
        let candidates: Vec<_> = rotten
            .iter()
            .filter(|(path, _)| kind(path) == kind_of_file)
            .collect();
        for seed in 0..SEEDS {
            let mut random = Random::new(seed);
            let (path, content) =
                candidates[usize::try_from(random.below(candidates.len() as u64)).unwrap()];
            let rot = Rot::of(&mut random);
            let dir = spoiled(&sound, path, rot.spoil(content, &mut random));
            // A newly started server has nothing in memory.
            let seen = pull_again(&stage_over(folder(dir.path()).await).await, &right).await;
            assert_eq!(
                seen.last(),
                Some(&right),
                "{rot:?} in {} with seed {seed}: {seen:?}",
                path.display()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_rot_under_a_running_server_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (right, sound) = sound(&root).await;
    for (path, content) in sound
        .iter()
        .filter(|(path, _)| path.starts_with("layers") || path.starts_with("blobs"))
    {
        for rot in [Rot::Bit, Rot::Cut, Rot::Empty, Rot::Gone, Rot::Zeros] {
            let stage = stage_over(folder(&root).await).await;
            assert_eq!(pull(&stage).await, right);
            put_one(&root, path, rot.spoil(content, &mut Random::new(7)));
            let seen = pull_again(&stage, &right).await;
            assert_eq!(
                seen.last(),
                Some(&right),
                "{rot:?} in {}: {seen:?}",
                path.display()
            );
            // Manifests and configurations are served from memory, and read from the store after a
            // restart.
            let seen = pull_again(&stage_over(folder(&root).await).await, &right).await;
            assert_eq!(
                seen.last(),
                Some(&right),
                "{rot:?} in {}: {seen:?}",
                path.display()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_bucket_gives_no_wrong_bytes_and_the_pull_recovers() {
    let s3 = S3::start().await;
    let open = async || Store::open(&s3.config("")).await.unwrap();
    let right = pull(&stage_over(open().await).await).await;
    for key in s3
        .keys()
        .into_iter()
        .filter(|key| !key.starts_with("used/") && !key.starts_with("leases/"))
    {
        for seed in 0..4 {
            let mut random = Random::new(seed);
            // A layer's record is made again only when another image needs it.
            let Some(content) = s3.object(&key) else {
                continue;
            };
            let rot = [Rot::Bit, Rot::Cut, Rot::Gone, Rot::Empty][usize::try_from(seed).unwrap()];
            s3.replace(&key, rot.spoil(&content, &mut random));
            let seen = pull_again(&stage_over(open().await).await, &right).await;
            assert_eq!(seen.last(), Some(&right), "{rot:?} in {key}: {seen:?}");
        }
    }
}

/// A range cannot be verified by itself. But the read triggers a check of the whole layer.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_rotten_layer_has_the_layer_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (right, sound) = sound(&root).await;
    let (path, content) = sound
        .iter()
        .find(|(path, _)| path.starts_with("layers"))
        .unwrap();
    put_one(&root, path, Rot::Bit.spoil(content, &mut Random::new(3)));
    let stage = stage_over(folder(&root).await).await;
    let blob = format!("/v2/local/app/blobs/{}", Digest::sha256_of(content));
    let range = stage
        .ask(reqwest::Method::GET, &blob, &[("range", "bytes=0-9")])
        .await;
    assert_eq!(range.status, 206);
    withdrawn(&stage, content).await;
    assert_eq!(pull(&stage).await, right);
}

/// Waits until the server has no object of this content any more.
async fn withdrawn(stage: &Stage, content: &[u8]) {
    let digest = Digest::sha256_of(content);
    eventually_async("the damaged object is withdrawn", async || {
        stage.store.find(&digest).await.unwrap().is_none()
    })
    .await;
}

async fn scrub(store: &Store, repair: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let report = store
        .scrub(repair, 0, &mut |finding| found.push(finding.clone()))
        .await
        .unwrap();
    assert_eq!(report.damaged, found.len() as u64);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_all_rot_and_repairs_it_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (right, sound) = sound(&root).await;
    assert_eq!(scrub(&folder(&root).await, false).await, []);
    let read = ["layers", "blobs", "records", "profiles", "salt.json"];
    for (path, content) in sound
        .iter()
        .filter(|(path, _)| read.iter().any(|top| path.starts_with(top)))
    {
        let dir = spoiled(&sound, path, Rot::Bit.spoil(content, &mut Random::new(5)));
        let root = dir.path().to_owned();
        for repair in [false, false, true] {
            let found = scrub(&folder(&root).await, repair).await;
            assert!(
                found
                    .iter()
                    .any(|finding| Path::new(&finding.key.to_string()) == path),
                "{path:?}: {found:?}"
            );
        }
        // Images that name deleted objects are found in the same scrub or in the next.
        assert!(
            scrub(&folder(&root).await, true)
                .await
                .iter()
                .all(|finding| finding.damage == Damage::Dangling)
        );
        assert_eq!(scrub(&folder(&root).await, false).await, [], "{path:?}");
        assert_eq!(
            pull_again(&stage_over(folder(&root).await).await, &right)
                .await
                .last(),
            Some(&right),
            "{path:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_scrubs_its_store_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (_, sound) = sound(&root).await;
    let (path, content) = sound
        .iter()
        .find(|(path, _)| path.starts_with("layers"))
        .unwrap();
    put_one(&root, path, Rot::Bit.spoil(content, &mut Random::new(3)));
    let scrub = store::Scrub {
        interval: std::time::Duration::from_millis(10),
        ..store::Scrub::default()
    };
    let config = store::Config {
        location: root.display().to_string(),
        scrub,
        ..store::Config::default()
    };
    let stage = stage_over(Store::open(&config).await.unwrap()).await;
    withdrawn(&stage, content).await;
    assert!(stage.store.sweep(SystemTime::now()).await.is_ok());
}
