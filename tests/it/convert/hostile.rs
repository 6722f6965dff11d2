//! Claims of an upstream or a manifest affect no other image, and one request causes bounded work.

use std::fmt::Write as _;

use bytes::Bytes;
use bytesize::ByteSize;
use serde_json::{Value, json};
use starlift::convert::Config;
use starlift::oci::{Digest, Manifest, media_type};
use starlift::store::Store;

use super::bench::{Bench, REPOSITORY, config, manifest, repository, source};
use crate::support::image::{Image, ImageBuilder, Random};
use crate::support::registry::{Gate, Registry};

/// Starts a registry that has the image, but serves other bytes under the digest of one of its
/// blobs.
async fn lying(image: &Image, blob: usize, bytes: Vec<u8>) -> Registry {
    let registry = Registry::start().await;
    registry.push_untagged(REPOSITORY, image);
    registry.put_wrong_blob(&Digest::sha256_of(&image.blobs[blob]), bytes);
    registry
}

#[tokio::test]
async fn wrong_bytes_of_one_upstream_do_not_affect_others() {
    let limits = Config {
        max_layer_size: ByteSize::kib(100),
        max_unpacked_size: ByteSize::mib(1),
        ..config()
    };
    let image = ImageBuilder::new(1).layers(1).build();
    let layer = image.layers()[0].clone();
    let another = ImageBuilder::new(2).layers(1).build().layers()[0].clone();
    let lies: [(&str, usize, Vec<u8>); 6] = [
        (
            "more than the largest layer",
            1,
            Random::new(1).bytes(200 << 10),
        ),
        ("no tar", 1, Random::new(2).bytes(layer.len())),
        ("another layer", 1, another.to_vec()),
        ("one byte more", 1, [&layer[..], b"x"].concat()),
        ("nothing", 1, Vec::new()),
        (
            "another configuration",
            0,
            br#"{"rootfs": {"type": "layers", "diff_ids": []}}"#.to_vec(),
        ),
    ];
    for (lie, blob, bytes) in lies {
        let bench = Bench::with(&limits, Store::in_memory()).await;
        let liar = lying(&image, blob, bytes).await;
        let result = bench
            .converter
            .convert(&source(&liar), &repository(), &manifest(&image))
            .await;
        assert!(result.is_err(), "{lie}: {result:?}");
        assert!(!bench.is_visible(&image).await, "{lie}");
        let record = bench.convert(&image).await.unwrap();
        bench.check_converted(&image, &record).await;
    }
}

#[tokio::test]
async fn a_claimed_size_counts_only_for_its_own_image() {
    let bench = Bench::with(
        &Config {
            max_layer_size: ByteSize::kib(100),
            ..config()
        },
        Store::in_memory(),
    )
    .await;
    let image = ImageBuilder::new(3).layers(2).build();
    let mut claimed = image.clone();
    let mut document = image.document();
    document["layers"][0]["size"] = json!(1_u64 << 40);
    claimed.bytes = document.to_string().into();
    let record = bench.convert(&claimed).await.unwrap();
    assert_eq!(record.passed_through.len(), 1);
    let record = bench.convert(&image).await.unwrap();
    assert!(record.passed_through.is_empty());
    bench.check_converted(&image, &record).await;
}

#[tokio::test]
async fn an_index_of_many_children_fetches_few_at_once() {
    let bench = Bench::new().await;
    let children: Vec<_> = (10..30)
        .map(|seed| {
            (
                "linux/amd64",
                ImageBuilder::new(seed).layers(1).files(1).build(),
            )
        })
        .collect();
    let index = Image::index(children, false);
    let gate = Gate::new();
    bench.registry.on("/manifests/").gate(&gate);
    let one_after_the_other = async {
        gate.reached(4).await;
        for number in 5..=20 {
            gate.open_for_one();
            gate.reached(number).await;
        }
        gate.open();
    };
    let (record, ()) = tokio::join!(bench.convert(&index), one_after_the_other);
    assert_eq!(gate.most_held(), 4);
    let record = record.unwrap();
    assert!(record.passed_through.is_empty());
    assert_eq!(
        bench.converted(&record).await["manifests"]
            .as_array()
            .unwrap()
            .len(),
        20
    );
}

fn wide(image: &Image, key: &str, value: &str) -> Manifest {
    let mut text = image.document().to_string();
    text.pop();
    write!(text, ",\"{key}\":{value}}}").unwrap();
    Manifest::new(image.media_type.clone(), text.into())
}

#[tokio::test]
async fn documents_of_too_many_values_pass_through_with_a_reason() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(5).layers(1).build();
    bench.registry.push_untagged(REPOSITORY, &image);
    let zeros = format!("[{}0]", "0,".repeat(2_000_000));
    let record = bench
        .converter
        .convert(
            &source(&bench.registry),
            &repository(),
            &wide(&image, "x", &zeros),
        )
        .await;
    let record = record.unwrap();
    assert_eq!(record.converted, record.source);
    assert!(
        record.passed_through[0].reason.contains("too many values"),
        "{:?}",
        record.passed_through
    );

    let mut config: Value = serde_json::from_slice(&image.blobs[0]).unwrap();
    config["history"] = json!(vec![0; 1_000_000]);
    let config = Bytes::from(config.to_string());
    let mut document = image.document();
    document["config"]["digest"] = json!(Digest::sha256_of(&config));
    let large = Image {
        bytes: document.to_string().into(),
        blobs: vec![config, image.blobs[1].clone()],
        ..image
    };
    let record = bench.convert(&large).await.unwrap();
    assert_eq!(record.converted, record.source);
    assert!(
        record.passed_through[0]
            .reason
            .contains("its configuration"),
        "{:?}",
        record.passed_through
    );
}

#[tokio::test]
async fn a_reason_quotes_little_of_foreign_text() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(6).build();
    let mut document = image.document();
    document["layers"][0]["mediaType"] = json!(format!("a\u{1b}[31m{}", "b".repeat(1 << 20)));
    let odd = Image {
        bytes: document.to_string().into(),
        ..image
    };
    let record = bench.convert(&odd).await.unwrap();
    let reason = &record.passed_through[0].reason;
    assert!(
        reason.len() < 1000 && !reason.contains('\u{1b}'),
        "{reason}"
    );
}

#[tokio::test]
async fn a_large_manifest_that_is_all_text_is_converted() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(7).layers(1).build();
    bench.registry.push_untagged(REPOSITORY, &image);
    let long = format!("\"{}\"", "x".repeat(3 << 20));
    let manifest = wide(&image, "com.example.text", &long);
    let record = bench
        .converter
        .convert(&source(&bench.registry), &repository(), &manifest)
        .await
        .unwrap();
    let converted = bench.converted(&record).await;
    assert_eq!(
        converted["com.example.text"].as_str().unwrap().len(),
        3 << 20
    );
    assert_eq!(converted["mediaType"], media_type::OCI_MANIFEST);
}
