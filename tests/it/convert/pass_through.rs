//! One unusual part never fails an image: the part passes through, and the reason is recorded.

use bytes::Bytes;
use bytesize::ByteSize;
use serde_json::Value;
use starlift::convert::Config;
use starlift::oci::{Digest, media_type};
use starlift::store::{LayerOutcome, Store};

use super::bench::{Bench, config, digest};
use crate::support::image::{Compression, Image, ImageBuilder, Random, compress};

/// Replaces the last layer and adapts the manifest to it.
fn with_last_layer(image: &Image, layer: Bytes, media_type: Option<&str>) -> Image {
    let mut document = image.document();
    let descriptor = document["layers"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap();
    descriptor["digest"] = Digest::sha256_of(&layer).to_string().into();
    descriptor["size"] = layer.len().into();
    if let Some(media_type) = media_type {
        descriptor["mediaType"] = media_type.into();
    }
    let mut blobs = image.blobs.clone();
    *blobs.last_mut().unwrap() = layer;
    Image {
        bytes: document.to_string().into(),
        blobs,
        ..image.clone()
    }
}

async fn last_layer_stays(bench: &Bench, image: &Image, part_of_reason: &str) {
    let record = bench.convert(image).await.unwrap();
    let converted = bench.converted(&record).await;
    let last = |document: &Value| {
        document["layers"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone()
    };
    assert_eq!(last(&converted), last(&image.document()));
    assert_ne!(
        converted["layers"][0]["digest"],
        image.document()["layers"][0]["digest"]
    );
    let stays = Digest::sha256_of(image.layers().last().unwrap());
    let entry = record
        .passed_through
        .iter()
        .find(|entry| entry.digest == stays)
        .expect("the reason is recorded");
    assert!(entry.reason.contains(part_of_reason), "{}", entry.reason);
}

#[tokio::test]
async fn a_layer_that_is_not_a_tar_passes_through_and_is_not_fetched_again() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(1).build();
    let noise = Bytes::from(Random::new(9).bytes(100_000));
    let garbled = [
        compress(b"not a tar, but long enough", Compression::Gzip),
        Bytes::from_static(b"garbage"),
    ]
    .concat();
    for layer in [noise, garbled.into()] {
        let image = with_last_layer(&image, layer.clone(), None);
        last_layer_stays(&bench, &image, "").await;
        let record = bench
            .store
            .layer(bench.converter.generation(), &Digest::sha256_of(&layer))
            .await
            .unwrap();
        assert!(matches!(
            record.unwrap().outcome,
            LayerOutcome::PassedThrough { .. }
        ));
        assert_eq!(bench.fetched(&layer), 1);
    }
}

#[tokio::test]
async fn a_layer_of_an_unknown_type_is_not_even_fetched() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(2).build();
    let layer = Bytes::from_static(b"secret");
    let image = with_last_layer(
        &image,
        layer.clone(),
        Some("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
    );
    last_layer_stays(&bench, &image, "encrypted").await;
    assert_eq!(bench.fetched(&layer), 0);
}

#[tokio::test]
async fn a_bomb_passes_through() {
    let bench = Bench::with(
        &Config {
            max_unpacked_size: ByteSize::mib(1),
            ..config()
        },
        Store::in_memory(),
    )
    .await;
    let image = ImageBuilder::new(3).build();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(64 << 20);
    header.set_mode(0o644);
    tar.append_data(
        &mut header,
        "bomb",
        std::io::Read::take(std::io::repeat(0), 64 << 20),
    )
    .unwrap();
    let bomb = compress(&tar.into_inner().unwrap(), Compression::Gzip);
    assert!(bomb.len() < 1 << 20);
    last_layer_stays(&bench, &with_last_layer(&image, bomb, None), "limit").await;
}

#[tokio::test]
async fn a_layer_over_the_size_limit_stays() {
    let bench = Bench::with(
        &Config {
            max_layer_size: ByteSize::kib(60),
            ..config()
        },
        Store::in_memory(),
    )
    .await;
    let image = ImageBuilder::new(4).max_file(1000).build();
    let large = Bytes::from(Random::new(5).bytes(61 << 10));
    last_layer_stays(&bench, &with_last_layer(&image, large, None), "limit").await;
}

#[tokio::test]
async fn a_lazily_readable_layer_is_known_by_its_footer() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(6).build();
    let record = bench.convert(&image).await.unwrap();
    let converted = bench.converted(&record).await;
    let estargz = bench
        .bytes(&digest(&converted["layers"][1]["digest"]))
        .await;
    last_layer_stays(
        &bench,
        &with_last_layer(&image, estargz, None),
        "lazily readable already",
    )
    .await;
}

#[tokio::test]
async fn a_layer_with_an_unexpected_diff_id_passes_through_in_that_image_only() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(7).build();
    let other_tar = ImageBuilder::new(8).layers(1).build().layers()[0].clone();
    last_layer_stays(&bench, &with_last_layer(&image, other_tar, None), "diff-id").await;
    let honest = ImageBuilder::new(8).layers(1).build();
    let record = bench.convert(&honest).await.unwrap();
    bench.check_converted(&honest, &record).await;
}

#[tokio::test]
async fn a_manifest_that_is_not_an_image_passes_through() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(9).build();
    let mut nonsense_config = image.clone();
    nonsense_config.blobs[0] = Bytes::from_static(b"{}");
    let mut document = image.document();
    document["config"]["digest"] = Digest::sha256_of(b"{}").to_string().into();
    nonsense_config.bytes = document.to_string().into();
    let mut schema1 = image.clone();
    schema1.media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned();
    let mut nonsense = image.clone();
    nonsense.bytes = Bytes::from_static(b"[1, 2");
    for odd in [
        image.referrer("application/x-signature"),
        nonsense_config,
        schema1,
        nonsense,
    ] {
        let record = bench.convert(&odd).await.unwrap();
        assert_eq!(
            (&record.converted, &record.media_type),
            (&odd.digest(), &odd.media_type)
        );
        assert_eq!(record.size, odd.bytes.len() as u64);
        assert!(!record.passed_through[0].reason.is_empty());
        assert_eq!(
            bench.converter.lookup(&odd.digest()).await.unwrap(),
            Some(record),
            "the result is recorded"
        );
    }
    let mut empty = image.document();
    empty["layers"] = serde_json::json!([]);
    let empty = Image {
        bytes: empty.to_string().into(),
        ..image
    };
    assert_eq!(
        bench.convert(&empty).await.unwrap().converted,
        empty.digest()
    );
    assert_eq!(
        media_type::manifest_kind(&empty.media_type),
        Some(media_type::ManifestKind::Image)
    );
}

#[tokio::test]
async fn a_layer_with_paths_through_its_own_symlink_passes_through() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(10).build();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "lib", "usr/lib").unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    tar.append_data(&mut header, "lib/x", &b"x"[..]).unwrap();
    let mut linking = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(1);
    linking
        .append_data(&mut header, "usr/lib/x", &b"x"[..])
        .unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    linking.append_link(&mut header, "lib", "usr/lib").unwrap();
    header.set_entry_type(tar::EntryType::Link);
    linking.append_link(&mut header, "y", "lib/x").unwrap();
    for tar in [tar, linking] {
        let layer = compress(&tar.into_inner().unwrap(), Compression::Gzip);
        last_layer_stays(
            &bench,
            &with_last_layer(&image, layer, None),
            "below something that is not a directory",
        )
        .await;
    }
}

/// Returns a bench over the same store with other limits.
fn with_limits(bench: Bench, change: impl FnOnce(&mut Config)) -> Bench {
    let mut config = config();
    change(&mut config);
    let converter = starlift::convert::Converter::new(&config, bench.store.clone()).unwrap();
    Bench { converter, ..bench }
}

#[tokio::test]
async fn a_limit_that_is_raised_lets_the_layer_be_tried_again() {
    let large = ImageBuilder::new(11).layers(2).max_file(100_000).build();
    let index = Image::index(vec![("linux/amd64", large.clone())], false);
    let limits: [fn(&mut Config); 2] = [
        |config| config.max_layer_size = ByteSize::kib(2),
        |config| config.max_unpacked_size = ByteSize::kib(20),
    ];
    for limit in limits {
        let bench = with_limits(Bench::new().await, limit);
        let record = bench.convert(&index).await.unwrap();
        assert_eq!(record.converted, index.digest(), "nothing is converted");
        assert_eq!(
            bench.converter.lookup(&index.digest()).await.unwrap(),
            Some(record.clone()),
            "the result is recorded"
        );
        let lowered = with_limits(bench, |config| {
            (limit(config), config.max_layer_size = ByteSize::kib(1)).0
        });
        assert_eq!(
            lowered.convert(&index).await.unwrap(),
            record,
            "a lower limit changes nothing"
        );
        let raised = with_limits(lowered, |_| {});
        assert_eq!(
            raised.converter.lookup(&index.digest()).await.unwrap(),
            None
        );
        let record = raised.convert(&index).await.unwrap();
        assert_ne!(record.converted, index.digest());
        assert_eq!(
            raised.converter.lookup(&index.digest()).await.unwrap(),
            Some(record)
        );
        let child = raised
            .converter
            .lookup(&large.digest())
            .await
            .unwrap()
            .unwrap();
        raised.check_converted(&large, &child).await;
    }
}

#[tokio::test]
async fn images_converted_under_a_lower_limit_stay_readable() {
    let image = with_last_layer(
        &ImageBuilder::new(12).max_file(1000).build(),
        ImageBuilder::new(13)
            .layers(1)
            .max_file(200_000)
            .build()
            .layers()[0]
            .clone(),
        None,
    );
    let bench = with_limits(Bench::new().await, |config| {
        config.max_layer_size = ByteSize::kib(60)
    });
    let before = bench.convert(&image).await.unwrap();
    assert_eq!(before.limits.len(), 1);
    let bench = with_limits(bench, |_| {});
    let after = bench.convert(&image).await.unwrap();
    assert!(
        before
            .objects
            .iter()
            .all(|object| after.objects.contains(object))
    );
    assert_eq!(after.limits, []);
}

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Returns the image with these annotations on one of its layers.
fn annotated(image: &Image, layer: usize, annotations: Value) -> Image {
    let mut document = image.document();
    document["layers"][layer]["annotations"] = annotations;
    Image {
        bytes: document.to_string().into(),
        ..image.clone()
    }
}

#[tokio::test]
async fn a_layer_with_wrong_annotations_is_converted_without_them() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(14).build();
    let wrong = Digest::sha256_of(b"another TOC").to_string();
    for claims in [
        serde_json::json!({TOC_DIGEST: wrong, "io.containers.estargz.uncompressed-size": "1"}),
        serde_json::json!({"io.github.containers.zstd-chunked.manifest-checksum": wrong,
            "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1"}),
        serde_json::json!({"io.containers.zstd-chunked.manifest-checksum": wrong}),
    ] {
        let stale = annotated(&image, 1, claims);
        let record = bench.convert(&stale).await.unwrap();
        bench.check_converted(&stale, &record).await;
        let converted = bench.converted(&record).await;
        let annotations = converted["layers"][1]["annotations"].as_object().unwrap();
        assert!(
            annotations.keys().all(|key| !key.contains("zstd-chunked")),
            "{annotations:?}"
        );
        assert_ne!(annotations[TOC_DIGEST], wrong);
        assert_ne!(annotations["io.containers.estargz.uncompressed-size"], "1");
    }
}

#[tokio::test]
async fn a_layer_with_right_annotations_is_not_fetched() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(15).build();
    let record = bench.convert(&image).await.unwrap();
    let converted = bench.converted(&record).await;
    let mut blobs = vec![bench.bytes(&digest(&converted["config"]["digest"])).await];
    for layer in converted["layers"].as_array().unwrap() {
        blobs.push(bench.bytes(&digest(&layer["digest"])).await);
    }
    let lazy = Image {
        bytes: bench.bytes(&record.converted).await,
        blobs,
        ..image
    };
    let record = bench.convert(&lazy).await.unwrap();
    assert_eq!(record.converted, lazy.digest());
    assert!(
        record.passed_through[0].reason.contains("eStargz already"),
        "{:?}",
        record.passed_through
    );
    let layer = format!("/blobs/{}", Digest::sha256_of(&lazy.layers()[0]));
    let whole = |seen: &crate::support::registry::Seen| {
        seen.method == "GET"
            && seen.path_and_query.contains(&layer)
            && !seen.headers.contains_key("range")
    };
    assert!(
        !bench.registry.seen().iter().any(whole),
        "only the end of the layer is fetched"
    );
    let renamed = annotated(
        &lazy,
        0,
        serde_json::json!({TOC_DIGEST: Digest::sha256_of(b"x").to_string()}),
    );
    let record = bench.convert(&renamed).await.unwrap();
    let renewed = bench.converted(&record).await;
    assert_ne!(
        renewed["layers"][0]["digest"],
        converted["layers"][0]["digest"]
    );
    assert_eq!(renewed["layers"][1], converted["layers"][1]);
}
