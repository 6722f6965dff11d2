//! Slow and silent upstreams delay only their own conversions, and not for long.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use starlift::convert::{Config, Converter, Error};
use starlift::oci::Digest;
use starlift::store::{ImageRecord, Store};

use super::bench::{Bench, REPOSITORY, config, manifest, repository, source, timeless};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Gate, Registry};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

fn patient() -> Config {
    Config {
        slow_after: NEVER,
        layers_at_once: NonZeroUsize::new(3).unwrap(),
        ..config()
    }
}

fn impatient() -> Config {
    Config {
        slow_after: Duration::from_millis(900),
        ..config()
    }
}

/// Starts a registry that sends the first bytes of each layer and no more.
async fn trickling(images: &[&Image], gate: &Gate) -> Registry {
    let registry = Registry::start().await;
    for image in images {
        registry.push_untagged(REPOSITORY, image);
        for layer in image.layers() {
            registry
                .on(&format!("/blobs/{}", Digest::sha256_of(layer)))
                .gate_after(gate, 10);
        }
    }
    registry
}

fn converting(
    converter: &Converter,
    registry: &Registry,
    image: &Image,
) -> tokio::task::JoinHandle<Result<ImageRecord, Arc<Error>>> {
    let (converter, source, manifest) = (converter.clone(), source(registry), manifest(image));
    tokio::spawn(async move { converter.convert(&source, &repository(), &manifest).await })
}

fn text(error: &Error) -> String {
    starlift::telemetry::log::chain(error)
}

#[tokio::test]
async fn an_upstream_that_trickles_leaves_a_slot_to_others() {
    let bench = Bench::with(&patient(), Store::in_memory()).await;
    let slow: Vec<_> = (1..6)
        .map(|seed| ImageBuilder::new(seed).layers(1).build())
        .collect();
    let gate = Gate::new();
    let registry = trickling(&slow.iter().collect::<Vec<_>>(), &gate).await;
    let waiting: Vec<_> = slow
        .iter()
        .map(|image| converting(&bench.converter, &registry, image))
        .collect();
    gate.reached(2).await;
    let image = ImageBuilder::new(7).layers(3).build();
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
    gate.open();
    for slow in waiting {
        slow.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stalled_layer_fails_and_is_not_requested_again_at_once() {
    let bench = Bench::with(&impatient(), Store::in_memory()).await;
    let image = ImageBuilder::new(1).layers(1).build();
    let gate = Gate::new();
    let layer = Digest::sha256_of(&image.layers()[0]);
    bench
        .registry
        .on(&format!("/blobs/{layer}"))
        .gate_after(&gate, 10);
    let error = bench.convert(&image).await.unwrap_err();
    assert!(
        text(&error).contains("bytes in a second"),
        "{}",
        text(&error)
    );
    assert_eq!(error.retry_after(), Some(Duration::from_secs(300)));
    assert!(!bench.is_visible(&image).await);

    bench.registry.heal();
    bench.registry.forget_requests();
    let mut another = image.clone();
    let mut document = image.document();
    document["annotations"] = serde_json::json!({"org.example": "another"});
    another.bytes = document.to_string().into();
    bench.convert(&another).await.unwrap_err();
    assert_eq!(
        bench.fetched(&image.layers()[0]),
        0,
        "the same layer of the same upstream takes no slot"
    );
    gate.open();
}

#[tokio::test]
async fn a_stalled_configuration_fails_the_conversion() {
    let bench = Bench::with(&impatient(), Store::in_memory()).await;
    let image = ImageBuilder::new(2).build();
    let gate = Gate::new();
    bench
        .registry
        .on(&format!("/blobs/{}", Digest::sha256_of(&image.blobs[0])))
        .gate_after(&gate, 10);
    let error = bench.convert(&image).await.unwrap_err();
    assert!(
        text(&error).contains("bytes in a second"),
        "{}",
        text(&error)
    );
    gate.open();
}

#[tokio::test]
async fn a_layer_fails_after_its_time_limit() {
    let bench = Bench::with(
        &Config {
            layer_within: Duration::from_millis(50),
            ..patient()
        },
        Store::in_memory(),
    )
    .await;
    let image = ImageBuilder::new(3).layers(1).build();
    let gate = Gate::new();
    bench
        .registry
        .on(&format!("/blobs/{}", Digest::sha256_of(&image.layers()[0])))
        .gate_after(&gate, 10);
    let error = bench.convert(&image).await.unwrap_err();
    assert!(text(&error).contains("within 50ms"), "{}", text(&error));
    gate.open();
}

#[tokio::test]
async fn a_conversion_that_waits_in_vain_for_another_fetch_uses_its_own_source() {
    let config = Config {
        slow_after: Duration::from_secs(6),
        ..config()
    };
    let bench = Bench::with(&config, Store::in_memory()).await;
    let image = ImageBuilder::new(4).layers(1).build();
    let gate = Gate::new();
    let slow = trickling(&[&image], &gate).await;
    let theirs = converting(&bench.converter, &slow, &image);
    gate.reached(1).await;
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
    assert_eq!(bench.fetched(&image.layers()[0]), 1);
    assert!(
        !theirs.is_finished(),
        "the slow upstream is still waited for"
    );
    gate.open();
    let theirs = theirs.await.unwrap().unwrap();
    assert_eq!(timeless(&theirs), timeless(&record));
}
