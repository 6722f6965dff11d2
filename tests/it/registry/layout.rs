//! Images from files: an OCI layout, and archives that skopeo writes from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use futures::TryStreamExt as _;
use serde_json::{Value, json};
use starlift::oci::{Digest, Manifest, Reference, Repository, media_type};
use starlift::registry::{Config, Error, UpstreamConfig};
use starlift::transport::{Source, Upstreams};
use tempfile::TempDir;

use crate::support::image::{Compression, Image, ImageBuilder, compress};

/// A directory with a layout, and archives beside it.
struct Files(TempDir);

impl Files {
    /// Writes the images with their `org.opencontainers.image.ref.name`, which is omitted if empty.
    fn layout(images: &[(&str, &Image)]) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(files.path("layout/blobs/sha256")).unwrap();
        std::fs::write(
            files.path("layout/oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let manifests = images.iter().map(|(name, image)| {
            files.add(image);
            let mut entry = json!({"mediaType": image.media_type, "digest": image.digest().to_string(),
                "size": image.bytes.len()});
            if !name.is_empty() {
                entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            }
            entry
        });
        let index = json!({"schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>()});
        std::fs::write(files.path("layout/index.json"), index.to_string()).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.path("layout/blobs/sha256").join(digest.hex())
    }

    fn add(&self, image: &Image) {
        for bytes in image.blobs.iter().chain([&image.bytes]) {
            std::fs::write(self.blob(&Digest::sha256_of(bytes)), bytes).unwrap();
        }
        image.children.iter().for_each(|child| self.add(child));
    }

    /// Makes skopeo write the archive that `docker save` would write of the only image.
    fn save(&self, archive: &str, name: &str) {
        let _ = std::fs::remove_file(self.path(archive));
        let from = format!("oci:{}", self.path("layout").display());
        let to = format!("docker-archive:{}:{name}", self.path(archive).display());
        let done = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &from, &to])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    fn directory(&self) -> Source {
        source("oci:", &self.path("layout"))
    }

    fn archive(&self, name: &str) -> Source {
        source("docker-archive:", &self.path(name))
    }
}

fn source(scheme: &str, path: &Path) -> Source {
    let upstream = UpstreamConfig {
        url: format!("{scheme}{}", path.display()),
        ..UpstreamConfig::default()
    };
    let config = Config {
        upstream: [("local".to_owned(), upstream)].into(),
        ..Config::default()
    };
    Upstreams::new(&config).unwrap().get("local").unwrap()
}

async fn manifest(source: &Source, repository: &str, reference: &str) -> Result<Manifest, Error> {
    let repository: Repository = repository.parse().unwrap();
    let reference: Reference = reference.parse().unwrap();
    let found = source.manifest(&repository, &reference).await;
    let resolved = source.resolve(&repository, &reference).await;
    assert_eq!(found.is_ok(), resolved.is_ok());
    if let (Ok(found), Ok(resolved)) = (&found, resolved) {
        assert_eq!(
            (resolved.digest, resolved.size),
            (found.digest.clone(), found.size())
        );
    }
    found
}

async fn read(
    source: &Source,
    digest: &Digest,
    range: Option<std::ops::Range<u64>>,
) -> Result<Bytes, Error> {
    let body = source.blob(&"any".parse().unwrap(), digest, range).await?;
    let length = body.range.end - body.range.start;
    let bytes: Vec<Bytes> = body.stream.try_collect().await?;
    let bytes = bytes.concat();
    assert_eq!(bytes.len() as u64, length);
    Ok(bytes.into())
}

async fn tags(
    source: &Source,
    repository: &str,
    n: Option<usize>,
    last: Option<&str>,
) -> (Vec<String>, bool) {
    let tags = source
        .tags(&repository.parse().unwrap(), n, last)
        .await
        .unwrap();
    (tags.tags, tags.more)
}

/// An image with files larger than one read.
fn image(seed: u64) -> ImageBuilder {
    ImageBuilder::new(seed).files(4).max_file(400_000)
}

#[tokio::test]
async fn a_layout_gives_its_images_and_blobs() {
    let (one, two) = (image(1).build(), image(2).build());
    let index = Image::index(vec![("linux/amd64", two)], true);
    let files = Files::layout(&[("1.0", &one), ("ghcr.io/team/app:2.0", &index)]);
    let source = files.directory();

    let found = manifest(&source, "any", "1.0").await.unwrap();
    assert_eq!(
        (&found.bytes, found.media_type.as_str()),
        (&one.bytes, media_type::OCI_MANIFEST)
    );
    let found = manifest(&source, "team/app", "2.0").await.unwrap();
    assert_eq!(
        (&found.bytes, found.media_type.as_str()),
        (&index.bytes, media_type::OCI_INDEX)
    );
    let child = index.children[0].digest().to_string();
    assert_eq!(
        manifest(&source, "team/app", &child).await.unwrap().bytes,
        index.children[0].bytes
    );
    assert_eq!(
        tags(&source, "other", None, None).await,
        (vec!["1.0".to_owned()], false)
    );
    assert_eq!(
        tags(&source, "team/app", Some(1), None).await,
        (vec!["1.0".to_owned()], true)
    );
    assert_eq!(
        tags(&source, "team/app", Some(1), Some("1.0")).await,
        (vec!["2.0".to_owned()], false)
    );

    let layer = &one.layers()[0];
    let digest = Digest::sha256_of(layer);
    let size = layer.len() as u64;
    assert_eq!(
        source
            .blob_size(&"any".parse().unwrap(), &digest)
            .await
            .unwrap(),
        size
    );
    assert_eq!(read(&source, &digest, None).await.unwrap(), layer);
    assert_eq!(
        read(&source, &digest, Some(7..300_007)).await.unwrap(),
        layer[7..layer.len().min(300_007)]
    );
    assert_eq!(
        read(&source, &digest, Some(size - 3..u64::MAX))
            .await
            .unwrap(),
        layer[layer.len() - 3..]
    );
    for (len, start) in [(51, layer.len() - 51), (size, 0), (u64::MAX, 0)] {
        let tail = source
            .blob_tail(&"any".parse().unwrap(), &digest, len)
            .await
            .unwrap();
        assert_eq!((tail.blob_size, tail.range), (size, start as u64..size));
        assert_eq!(
            tail.stream
                .try_collect::<Vec<Bytes>>()
                .await
                .unwrap()
                .concat(),
            layer[start..]
        );
    }
    let behind = read(&source, &digest, Some(size..size + 1)).await;
    assert!(matches!(behind, Err(Error::RangeNotSatisfiable { size: Some(end) }) if end == size));
}

#[tokio::test]
async fn images_and_blobs_that_a_layout_lacks_are_not_found() {
    let (one, two) = (image(1).build(), image(2).build());
    let files = Files::layout(&[("1.0", &one), ("2.0", &two)]);
    let source = files.directory();
    let config = Digest::sha256_of(&one.blobs[0]).to_string();
    let absent = Digest::sha256_of(b"absent");
    for reference in ["latest", "3.0", &config, &absent.to_string()] {
        assert!(
            matches!(
                manifest(&source, "any", reference).await,
                Err(Error::NotFound)
            ),
            "{reference}"
        );
    }
    assert!(matches!(
        read(&source, &absent, None).await,
        Err(Error::NotFound)
    ));
    let nowhere = self::source("oci:", &files.path("absent"));
    assert!(matches!(
        manifest(&nowhere, "any", "1.0").await,
        Err(Error::Unavailable(_))
    ));
}

#[tokio::test]
async fn the_only_image_is_latest() {
    for name in ["", "1.0"] {
        let one = image(1).build();
        let files = Files::layout(&[(name, &one)]);
        assert_eq!(
            manifest(&files.directory(), "any", "latest")
                .await
                .unwrap()
                .bytes,
            one.bytes
        );
        assert!(matches!(
            manifest(&files.directory(), "any", "2.0").await,
            Err(Error::NotFound)
        ));
    }
}

#[tokio::test]
async fn changed_bytes_are_refused() {
    let one = image(1).build();
    let files = Files::layout(&[("1.0", &one)]);
    for bytes in [&one.bytes, &one.layers()[0]] {
        let mut wrong = bytes.to_vec();
        wrong[9] ^= 1;
        std::fs::write(files.blob(&Digest::sha256_of(bytes)), wrong).unwrap();
    }
    assert!(matches!(
        manifest(&files.directory(), "any", "1.0").await,
        Err(Error::WrongDigest { .. })
    ));
    let layer = read(
        &files.directory(),
        &Digest::sha256_of(&one.layers()[0]),
        None,
    )
    .await;
    assert!(matches!(layer, Err(Error::WrongDigest { .. })));
}

#[tokio::test]
async fn a_link_out_of_the_layout_is_not_followed() {
    let one = image(1).build();
    let files = Files::layout(&[("1.0", &one)]);
    std::fs::write(files.path("secret"), "secret").unwrap();
    let digest = Digest::sha256_of(b"secret");
    std::os::unix::fs::symlink("../../../secret", files.blob(&digest)).unwrap();
    assert!(read(&files.directory(), &digest, Some(0..6)).await.is_err());
}

#[tokio::test]
async fn referrers_are_found_though_others_are_missing() {
    let one = image(1).build();
    let (signature, lost) = (
        one.referrer("application/vnd.example.signature"),
        image(3).build(),
    );
    let files = Files::layout(&[("1.0", &one), ("", &signature), ("", &lost)]);
    std::fs::remove_file(files.blob(&lost.digest())).unwrap();
    let found = files
        .directory()
        .referrers(&"any".parse().unwrap(), &one.digest())
        .await
        .unwrap();
    assert_eq!(
        found.iter().map(|one| &one.digest).collect::<Vec<_>>(),
        [&signature.digest()]
    );
    assert_eq!(
        found[0].rest["artifactType"],
        "application/vnd.example.signature"
    );
}

#[tokio::test]
async fn an_archive_of_skopeo_gives_plain_layers() {
    let one = image(1).build();
    let plain = image(1).compression(Compression::Plain).build();
    let files = Files::layout(&[("1.0", &one)]);
    files.save("image.tar", "docker.io/library/app:1.0");
    let source = files.archive("image.tar");

    let found = manifest(&source, "library/app", "1.0").await.unwrap();
    assert_eq!(found.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(manifest(&source, "else", "latest").await.unwrap(), found);
    assert_eq!(
        manifest(&source, "else", &found.digest.to_string())
            .await
            .unwrap(),
        found
    );
    assert!(matches!(
        manifest(&source, "library/app", "2.0").await,
        Err(Error::NotFound)
    ));
    assert_eq!(
        tags(&source, "library/app", None, None).await,
        (vec!["1.0".to_owned()], false)
    );

    let document: Value = serde_json::from_slice(&found.bytes).unwrap();
    assert_eq!(document["config"]["mediaType"], media_type::DOCKER_CONFIG);
    let layers = document["layers"].as_array().unwrap();
    assert_eq!(layers.len(), plain.layers().len());
    for (layer, tar) in layers.iter().zip(plain.layers()) {
        assert_eq!(layer["mediaType"], media_type::DOCKER_LAYER);
        let digest = Digest::sha256_of(tar);
        assert_eq!(
            (layer["digest"].as_str(), layer["size"].as_u64()),
            (Some(&*digest.to_string()), Some(tar.len() as u64))
        );
        assert_eq!(read(&source, &digest, None).await.unwrap(), tar);
        assert_eq!(
            read(&source, &digest, Some(1000..300_000)).await.unwrap(),
            tar[1000..tar.len().min(300_000)]
        );
    }
    let config: Digest = document["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let config: Value =
        serde_json::from_slice(&read(&source, &config, None).await.unwrap()).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], layers[0]["digest"]);
}

#[tokio::test]
async fn a_replaced_archive_is_read_anew() {
    let files = Files::layout(&[("1.0", &image(1).build())]);
    files.save("image.tar", "app:1.0");
    let source = files.archive("image.tar");
    let before = manifest(&source, "app", "1.0").await.unwrap();
    let next = Files::layout(&[("1.0", &image(2).build())]);
    next.save("image.tar", "app:1.0");
    std::fs::copy(next.path("image.tar"), files.path("next.tar")).unwrap();
    std::fs::rename(files.path("next.tar"), files.path("image.tar")).unwrap();
    let after = manifest(&source, "app", "1.0").await.unwrap();
    assert_ne!(before.digest, after.digest);
    assert!(matches!(
        manifest(&source, "app", &before.digest.to_string()).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn a_layout_in_a_tar_gives_its_own_manifests() {
    let (one, two) = (image(1).build(), image(2).build());
    let files = Files::layout(&[("1.0", &one), ("2.0", &two)]);
    let mut tar = tar::Builder::new(std::fs::File::create(files.path("image.tar")).unwrap());
    tar.append_dir_all(".", files.path("layout")).unwrap();
    tar.finish().unwrap();
    let source = files.archive("image.tar");
    assert_eq!(
        manifest(&source, "any", "2.0").await.unwrap().bytes,
        two.bytes
    );
    assert_eq!(
        read(&source, &Digest::sha256_of(&two.layers()[1]), None)
            .await
            .unwrap(),
        two.layers()[1]
    );
}

#[tokio::test]
async fn an_archive_that_makes_no_sense_is_malformed() {
    let files = Files::layout(&[("1.0", &image(1).build())]);
    let save = |list: &str| {
        let mut tar = tar::Builder::new(std::fs::File::create(files.path("image.tar")).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(list.len() as u64);
        tar.append_data(&mut header, "manifest.json", list.as_bytes())
            .unwrap();
        tar.finish().unwrap();
    };
    let source = files.archive("image.tar");
    let many =
        json!([{"Config": "manifest.json", "Layers": vec!["manifest.json"; 1025]}]).to_string();
    for list in [
        "{",
        r#"[{"Config": "absent", "Layers": []}]"#,
        r#"[{"Config": "../secret", "Layers": []}]"#,
        &many,
    ] {
        save(list);
        assert!(
            matches!(
                manifest(&source, "any", "latest").await,
                Err(Error::Malformed(_))
            ),
            "{list:.50}"
        );
    }
    std::fs::write(files.path("image.tar"), vec![1; 4096]).unwrap();
    assert!(matches!(
        manifest(&source, "any", "latest").await,
        Err(Error::Malformed(_))
    ));
}

#[tokio::test]
async fn a_compressed_archive_is_read_like_a_plain_one() {
    let one = image(1).build();
    let files = Files::layout(&[("1.0", &one)]);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", files.path("layout")).unwrap();
    let tar = tar.into_inner().unwrap();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        std::fs::write(files.path("image.tar"), compress(&tar, compression)).unwrap();
        let source = files.archive("image.tar");
        assert_eq!(
            manifest(&source, "any", "1.0").await.unwrap().bytes,
            one.bytes,
            "{compression:?}"
        );
        assert_eq!(
            read(&source, &Digest::sha256_of(&one.layers()[1]), None)
                .await
                .unwrap(),
            one.layers()[1]
        );
    }
    std::fs::write(files.path("image.tar"), b"\xfd7zXZ\0and so on").unwrap();
    let Err(Error::Malformed(text)) = manifest(&files.archive("image.tar"), "any", "1.0").await
    else {
        panic!("xz")
    };
    assert!(text.contains("xz"), "{text}");
}

#[tokio::test]
async fn both_lists_of_an_archive_count() {
    let (one, two) = (image(1).build(), image(2).build());
    let files = Files::layout(&[("docker.io/library/app:1.0", &one)]);
    files.add(&two);
    let saved = |tag: &str, image: &Image| {
        let path = |bytes: &Bytes| format!("blobs/sha256/{}", Digest::sha256_of(bytes).hex());
        json!({"Config": path(&image.blobs[0]), "RepoTags": [tag],
            "Layers": image.layers().iter().map(path).collect::<Vec<_>>()})
    };
    let list = json!([saved("app:1.0", &one), saved("app:2.0", &two)]);
    std::fs::write(files.path("layout/manifest.json"), list.to_string()).unwrap();
    let save = || {
        let mut tar = tar::Builder::new(std::fs::File::create(files.path("image.tar")).unwrap());
        tar.append_dir_all(".", files.path("layout")).unwrap();
        tar.finish().unwrap();
        files.archive("image.tar")
    };
    let source = save();
    let found = manifest(&source, "library/app", "1.0").await.unwrap();
    assert_eq!(found.bytes, one.bytes, "the manifest of the pull");
    let found = manifest(&source, "app", "2.0").await.unwrap();
    assert_eq!(
        found.media_type,
        media_type::DOCKER_MANIFEST,
        "made of the older list"
    );
    for (name, text) in [("index.json", "{"), ("oci-layout", "")] {
        if text.is_empty() {
            std::fs::remove_file(files.path("layout").join(name)).unwrap();
        } else {
            std::fs::write(files.path("layout").join(name), text).unwrap();
        }
        let found = manifest(&save(), "app", "1.0").await.unwrap();
        assert_eq!(found.media_type, media_type::DOCKER_MANIFEST, "{name}");
    }
}

#[tokio::test]
async fn odd_entries_of_a_layout_hide_no_other() {
    let one = image(1).build();
    let files = Files::layout(&[("1.0", &one)]);
    let mut index: Value =
        serde_json::from_slice(&std::fs::read(files.path("layout/index.json")).unwrap()).unwrap();
    let entries = index["manifests"].as_array_mut().unwrap();
    entries[0]["platform"] = Value::Null;
    entries.insert(0, json!({"digest": "blake3:00", "size": 1}));
    entries.push(Value::Null);
    std::fs::write(files.path("layout/index.json"), index.to_string()).unwrap();
    assert_eq!(
        manifest(&files.directory(), "any", "1.0")
            .await
            .unwrap()
            .bytes,
        one.bytes
    );
}
