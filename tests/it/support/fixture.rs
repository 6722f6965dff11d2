//! The images that real clients pull. `fixtures/make-image` makes them once per machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use starlift::oci::Digest;

use super::cache;
use super::place::Place;
use super::registry::Registry;

/// An OCI layout in the cache, with the tag `1`.
#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
}

/// The tools that are needed to make any image.
pub(crate) const TOOLS: &[&str] = &[
    "buildah",
    "busybox",
    "curl",
    "debootstrap",
    "jq",
    "openssl",
    "setcap",
    "setfattr",
    "skopeo",
    "umoci",
    "zstd",
];

impl Fixture {
    /// Returns the image of this name, and makes it unless this machine has made it before.
    pub(crate) fn get(name: &str) -> Self {
        if name == "multi" {
            // It is made from this image, which must be beside it.
            Self::get("app");
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/make-image");
        let make = |dir: &Path| {
            let status = Command::new(&script).arg(name).arg(dir).status()?;
            assert!(status.success(), "making the image {name}: {status}");
            std::io::Result::Ok(())
        };
        let dir = cache::made(&cache::of_script(&script), name, make).unwrap();
        Self { dir }
    }

    /// Returns the image's name in the syntax of skopeo and umoci.
    pub(crate) fn oci(&self) -> String {
        format!("oci:{}:1", self.dir.display())
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout(self.dir.clone())
    }
}

/// Converts the tag `1` of a layout with `starlift convert`, into the workspace's layout `name`.
pub(crate) fn converted(place: &Place, source: &Path, name: &str) -> Layout {
    let target = place.path().join(name);
    place.run(&format!(
        "{} convert oci:{}:1 oci:{}:1",
        env!("CARGO_BIN_EXE_starlift"),
        source.display(),
        target.display()
    ));
    Layout(target)
}

/// Returns the converted image of `app`, with a command on which a pod's sandbox can run.
pub(crate) fn sleeping_app(place: &Place) -> Layout {
    let plain = place.path().join("plain");
    place.run(&format!(
        "cp -r {} {}",
        Fixture::get("app").dir.display(),
        plain.display()
    ));
    let command =
        "--clear config.entrypoint --clear config.cmd --config.cmd /bin/sleep --config.cmd 1000";
    place.run(&format!(
        "umoci config --image {}:1 {command}",
        plain.display()
    ));
    converted(place, &plain, "converted")
}

/// An OCI layout that a test reads directly.
#[derive(Debug, Clone)]
pub(crate) struct Layout(pub(crate) PathBuf);

impl Layout {
    /// Returns the digest of `tag`.
    pub(crate) fn digest(&self, tag: &str) -> String {
        let index: Value =
            serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap();
        let named =
            |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let entry = index["manifests"].as_array().unwrap().iter().find(named);
        entry.unwrap_or_else(|| panic!("no tag {tag} in {index}"))["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.0
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    }

    pub(crate) fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob_path(digest)).unwrap()).unwrap()
    }

    /// Returns the manifest of `tag`.
    pub(crate) fn manifest(&self, tag: &str) -> Value {
        self.json(&self.digest(tag))
    }
}

impl Registry {
    /// Stores the image that a layout has under the tag `1`.
    pub(crate) fn push_layout(&self, repository: &str, tag: &str, layout: &Layout) -> Digest {
        let manifest = layout.manifest("1");
        let read =
            |digest: &Value| std::fs::read(layout.blob_path(digest.as_str().unwrap())).unwrap();
        for descriptor in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&manifest["config"]])
        {
            self.put_blob(read(&descriptor["digest"]));
        }
        let media_type = manifest["mediaType"].as_str().unwrap();
        let digest = self.put_manifest(repository, media_type, read(&layout.digest("1").into()));
        self.tag(repository, tag, &digest);
        digest
    }
}
