//! Kills a real server with `kill -9` at every step of a cold pull and restarts it over the same
//! store. Nothing incomplete is visible, the next pull gives the same converted image, and a sweep
//! leaves only the objects of an undisturbed pull.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use starlift::convert::Converter;
use starlift::oci::Digest;
use starlift::store::{self, Store};
use tokio::process::{Child, Command};

use crate::support::eventually::eventually;
use crate::support::image::{Image, ImageBuilder};
use crate::support::place::{Place, fetch};
use crate::support::registry::{Gate, Registry};
use crate::support::s3::{self, BUCKET, Fault, S3};
use crate::support::starlift::Starlift;

/// A registry with one image, and a store that outlives its servers.
struct Site {
    place: Place,
    registry: Registry,
    image: Image,
    store: store::Config,
    /// The `[store]` table of the servers.
    table: String,
    bucket: Option<S3>,
}

impl Site {
    async fn over_folder(image: &Image) -> Option<Self> {
        let place = Place::with(&["curl"])?;
        let location = place.path().join("store").display().to_string();
        let table = format!("[store]\nlocation = \"{location}\"\n");
        let store = store::Config {
            location,
            ..store::Config::default()
        };
        Some(Self {
            registry: registry_with(image).await,
            image: image.clone(),
            place,
            store,
            table,
            bucket: None,
        })
    }

    async fn over_bucket(image: &Image) -> Option<Self> {
        let place = Place::with(&["curl"])?;
        let bucket = S3::start().await;
        let table = format!(
            "[store]\nlocation = \"s3://{BUCKET}/\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\nallow_http = true\n\
             access_key_id = \"key\"\nsecret_access_key = \"secret\"\nlease_ttl = \"300ms\"\n",
            bucket.endpoint
        );
        let store = s3::config(&bucket.endpoint, &format!("s3://{BUCKET}/"));
        let registry = registry_with(image).await;
        Some(Self {
            registry,
            image: image.clone(),
            place,
            store,
            table,
            bucket: Some(bucket),
        })
    }

    fn start(&self, more: &str) -> Starlift {
        let config = self
            .place
            .write("starlift.toml", format!("{}{more}", self.table))
            .display()
            .to_string();
        let upstream = format!("local={}", self.registry.url());
        let flags = [
            "--wait",
            "25s",
            "--config",
            &config,
            "--upstream",
            &upstream,
            "--store",
            &self.store.location,
        ];
        Starlift::start(&self.place, &flags)
    }

    /// Returns every key, except those that only record times.
    fn keys(&self) -> BTreeSet<String> {
        let keys = match &self.bucket {
            Some(bucket) => bucket.keys(),
            None => files_in(Path::new(&self.store.location)),
        };
        keys.into_iter()
            .filter(|key| {
                !["used/", "leases/", "probe/"]
                    .iter()
                    .any(|top| key.starts_with(top))
            })
            .collect()
    }

    /// Checks that every visible object and image is complete.
    async fn check_visible(&self, when: &str) {
        let store = Store::open(&self.store).await.unwrap();
        let converter =
            Converter::new(&starlift::convert::Config::default(), store.clone()).unwrap();
        for key in self.keys() {
            let Some(hex) = key.strip_prefix("records/digest/sha256/") else {
                continue;
            };
            let digest: Digest = format!("sha256:{}", hex.strip_suffix(".json").unwrap())
                .parse()
                .unwrap();
            let object = store
                .find(&digest)
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("{when}: no object {digest}"));
            assert_eq!(
                Digest::sha256_of(&store.read_all(&object).await.unwrap()),
                digest,
                "{when}"
            );
        }
        if let Some(record) = converter.lookup(&self.image.digest()).await.unwrap() {
            for digest in &record.objects {
                assert!(
                    store.find(digest).await.unwrap().is_some(),
                    "{when}: no object {digest} of the image"
                );
            }
        }
    }

    /// Checks that a restarted server serves the converted image, and that a sweep leaves the keys
    /// of an undisturbed pull.
    async fn recovers(&self, when: &str, expected: &Undisturbed) {
        self.check_visible(when).await;
        let mut server = self.start("");
        assert_eq!(pull(&server), expected.manifest, "{when}");
        server.daemon.stop();
        self.sweep().await;
        assert_eq!(self.keys(), expected.keys, "{when}");
    }

    /// Sweeps the store with a short grace: a folder in a server, a bucket in this process, which
    /// takes less time.
    async fn sweep(&self) {
        if self.bucket.is_some() {
            let mut config = self.store.clone();
            config.retention.grace = Duration::from_millis(1);
            let store = Store::open(&config).await.unwrap();
            // HTTP dates have a resolution of one second.
            store
                .sweep(SystemTime::now() + Duration::from_secs(2))
                .await
                .unwrap();
            return;
        }
        let mut server =
            self.start("[store.retention]\ngrace = \"1ms\"\n[serve]\nsweep_interval = \"20ms\"\n");
        eventually("the store is swept", || {
            let metrics = String::from_utf8(fetch(&server.url("/metrics")).unwrap()).unwrap();
            metrics.contains(r#"starlift_sweeps_total{outcome="done"}"#)
        });
        server.daemon.stop();
    }
}

/// The manifest and the remaining keys of an undisturbed pull.
struct Undisturbed {
    manifest: Value,
    keys: BTreeSet<String>,
}

impl Undisturbed {
    async fn of(site: &Site) -> Self {
        let mut server = site.start("");
        let manifest = pull(&server);
        server.daemon.stop();
        site.sweep().await;
        let keys = site.keys();
        assert!(
            keys.len() > 8,
            "two layers, a configuration, a manifest, and their records: {keys:?}"
        );
        Self { manifest, keys }
    }
}

async fn registry_with(image: &Image) -> Registry {
    let registry = Registry::start().await;
    registry.push("app", "v1", image);
    registry
}

fn files_in(root: &Path) -> Vec<String> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }
    files
}

/// Returns the converted image's manifest after reading and verifying all it names.
fn pull(server: &Starlift) -> Value {
    let manifest = server.converted("local/app", "v1");
    for descriptor in
        std::iter::once(&manifest["config"]).chain(manifest["layers"].as_array().unwrap())
    {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = fetch(&server.url(&format!("/v2/local/app/blobs/{digest}")))
            .expect("a blob of the converted image");
        assert_eq!(Digest::sha256_of(&bytes).to_string(), digest);
    }
    manifest
}

/// Requests the manifest and does not wait for the answer.
fn ask(server: &Starlift) -> Child {
    let mut command = Command::new("curl");
    command.args([
        "-s",
        "--max-time",
        "60",
        &server.url("/v2/local/app/manifests/v1"),
    ]);
    command
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn blob_path(blob: &[u8]) -> String {
    format!("/blobs/{}", Digest::sha256_of(blob))
}

/// Kills the server when a request has reached the gate that `hold` sets and `then` returns true.
async fn killed_at(when: &str, hold: impl Fn(&Registry, &Gate), then: impl Fn(&Site) -> bool) {
    let image = ImageBuilder::new(1)
        .layers(2)
        .files(6)
        .max_file(60_000)
        .build();
    let Some(site) = Site::over_folder(&image).await else {
        return;
    };
    let gate = Gate::new();
    hold(&site.registry, &gate);
    let mut server = site.start("");
    let _client = ask(&server);
    gate.reached(1).await;
    eventually(when, || then(&site));
    server.daemon.kill();
    site.registry.heal();
    gate.open();
    let undisturbed = Undisturbed::of(&Site::over_folder(&image).await.unwrap()).await;
    site.recovers(when, &undisturbed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_any_byte_of_the_image() {
    killed_at(
        "resolving",
        |registry, gate| registry.on("/manifests/v1").method("HEAD").gate(gate),
        |_| true,
    )
    .await;
    killed_at(
        "manifest",
        |registry, gate| registry.on("/manifests/").method("GET").gate(gate),
        |_| true,
    )
    .await;
    killed_at(
        "first blob",
        |registry, gate| registry.on("/blobs/").gate(gate),
        |_| true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_layer() {
    // The folder receives a layer in parts of 1 MiB, so the later kills leave some parts behind.
    let image = ImageBuilder::new(1)
        .layers(2)
        .files(20)
        .max_file(1 << 20)
        .build();
    let layer = &image.layers()[0];
    let Some(site) = Site::over_folder(&image).await else {
        return;
    };
    let undisturbed = Undisturbed::of(&site).await;
    drop(site);
    let length = layer.len();
    for bytes in [
        1,
        18,
        length / 8,
        length / 4,
        length / 2,
        length * 3 / 4,
        length - 9,
        length - 1,
    ] {
        let site = Site::over_folder(&image).await.unwrap();
        let gate = Gate::new();
        site.registry
            .on(&blob_path(layer))
            .method("GET")
            .gate_after(&gate, bytes);
        let mut server = site.start("");
        let _client = ask(&server);
        gate.reached(1).await;
        if bytes > length / 2 {
            eventually("parts are there", || {
                site.keys().iter().any(|key| key.contains('#'))
            });
        }
        server.daemon.kill();
        site.registry.heal();
        gate.open();
        site.recovers(&format!("{bytes} of {length} bytes"), &undisturbed)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_two_layers() {
    let image = ImageBuilder::new(1)
        .layers(2)
        .files(6)
        .max_file(60_000)
        .build();
    let second = blob_path(&image.layers()[1]);
    let has_layer = |site: &Site| {
        site.keys()
            .iter()
            .any(|key| key.starts_with("records/layer/"))
    };
    killed_at(
        "between layers",
        |registry, gate| registry.on(&second).gate(gate),
        has_layer,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_each_operation_of_the_store() {
    let image = ImageBuilder::new(2)
        .layers(2)
        .files(3)
        .max_file(2000)
        .build();
    let Some(site) = Site::over_bucket(&image).await else {
        return;
    };
    let undisturbed = Undisturbed::of(&site).await;
    for step in 0.. {
        let site = Site::over_bucket(&image).await.unwrap();
        let bucket = site.bucket.as_ref().unwrap();
        let mut server = site.start("");
        bucket.fail(move |asked| {
            if asked.number >= step {
                Fault::Silence
            } else {
                Fault::None
            }
        });
        let mut client = ask(&server);
        let mut is_answered = false;
        eventually("the step is reached or all is done", || {
            is_answered = client.try_wait().unwrap().is_some();
            is_answered || bucket.asked() > step
        });
        server.daemon.kill();
        bucket.fail(|_| Fault::None);
        if is_answered {
            assert!(step > 10, "a conversion takes more operations than {step}");
            return;
        }
        site.recovers(&format!("before operation {step}"), &undisturbed)
            .await;
    }
}
