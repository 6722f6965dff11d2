//! After any fault, nothing incomplete is visible, and the next try succeeds.

use std::sync::Arc;
use std::time::Duration;

use starlift::convert::{Converter, Error, State};
use starlift::oci::Digest;
use starlift::store::{self, Store};

use super::bench::{Bench, config, repository, source};
use crate::support::bucket::Bucket;
use crate::support::image::{Image, ImageBuilder, Random};
use crate::support::registry::Gate;

fn blob_path(blob: &[u8]) -> String {
    format!("/blobs/{}", Digest::sha256_of(blob))
}

async fn recovers(bench: Bench, image: &Image) {
    bench.registry.heal();
    let bench = bench.restarted();
    let record = bench.convert(image).await.unwrap();
    bench.check_converted(image, &record).await;
}

#[tokio::test]
async fn wrong_bytes_are_an_error_and_leave_nothing() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(1).layers(1).build();
    bench
        .registry
        .on(&blob_path(&image.layers()[0]))
        .wrong_bytes();
    bench.convert(&image).await.unwrap_err();
    assert!(!bench.is_visible(&image).await);
    assert_eq!(bench.converter.status()[0].state, State::Failed);
    recovers(bench, &image).await;
}

#[tokio::test]
async fn wrong_bytes_of_one_registry_do_not_mark_the_layer() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(2).layers(1).build();
    let digest = Digest::sha256_of(&image.layers()[0]);
    bench
        .registry
        .push_untagged(super::bench::REPOSITORY, &image);
    let lie = Bench::new().await;
    lie.registry.push_untagged(super::bench::REPOSITORY, &image);
    lie.registry
        .put_wrong_blob(&digest, Random::new(1).bytes(50_000));
    let manifest = super::bench::manifest(&image);
    let result = bench
        .converter
        .convert(&source(&lie.registry), &repository(), &manifest)
        .await;
    result.unwrap_err();
    assert!(!bench.is_visible(&image).await);
    let record = bench
        .convert(&image)
        .await
        .expect("the failure of one registry does not delay another");
    bench.check_converted(&image, &record).await;
}

#[tokio::test]
async fn a_broken_connection_leaves_nothing() {
    for after in [0, 1, 100, 5000] {
        let bench = Bench::new().await;
        let image = ImageBuilder::new(3).layers(1).build();
        let layer = blob_path(&image.layers()[0]);
        bench.registry.on(&layer).times(1).cut_after(after);
        bench.registry.on(&layer).skip(1).answer(503, &[]);
        bench.convert(&image).await.unwrap_err();
        assert!(!bench.is_visible(&image).await, "cut after {after}");
        recovers(bench, &image).await;
    }
}

#[tokio::test]
async fn a_failure_is_remembered_for_a_while() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(4).layers(1).build();
    bench.registry.on("/blobs/").answer(404, &[]);
    let first = bench.convert(&image).await.unwrap_err();
    bench.registry.forget_requests();
    let second = bench.convert(&image).await.unwrap_err();
    assert_eq!(first.to_string(), second.to_string());
    assert_eq!(bench.registry.seen().len(), 0);
}

#[tokio::test]
async fn an_upstream_that_asks_for_patience_gets_it() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(5).layers(1).build();
    bench
        .registry
        .on(&blob_path(&image.layers()[0]))
        .answer(429, &[("retry-after", "3600")]);
    let error = bench.convert(&image).await.unwrap_err();
    assert!(matches!(*error, Error::Layer { .. }));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn another_image_is_not_failed_by_a_broken_place_of_the_same_layer() {
    let bench = Bench::new().await;
    let broken = Bench::new().await;
    let image = ImageBuilder::new(6).layers(1).build();
    broken
        .registry
        .push_untagged(super::bench::REPOSITORY, &image);
    let gate = Gate::new();
    broken
        .registry
        .on(&blob_path(&image.layers()[0]))
        .gate(&gate);
    broken
        .registry
        .on(&blob_path(&image.layers()[0]))
        .cut_after(10);
    let manifest = super::bench::manifest(&image);
    let (their_source, repository) = (source(&broken.registry), repository());
    let theirs = bench
        .converter
        .convert(&their_source, &repository, &manifest);
    let ours = async {
        gate.reached(1).await;
        let (ours, ()) = tokio::join!(bench.convert(&image), async { gate.open() });
        ours
    };
    let (theirs, ours) = tokio::join!(theirs, ours);
    let record = ours.unwrap();
    bench.check_converted(&image, &record).await;
    drop(theirs);
}

#[tokio::test]
async fn a_store_that_dies_at_any_step_shows_nothing_incomplete() {
    let image = ImageBuilder::new(7).layers(2).build();
    // The next conversion waits for the dead process's leases.
    let store_config = store::Config {
        lease_ttl: Duration::from_millis(100),
        ..store::Config::default()
    };
    for dies_at in 0.. {
        let bucket = Bucket::new();
        let dying = bucket.dead_from(dies_at);
        let bench = Bench::with(&config(), Store::over(Arc::new(dying), &store_config)).await;
        let outcome = bench.convert(&image).await;
        let healthy = Store::over(Arc::new(bucket), &store_config);
        let converter = Converter::new(&config(), healthy.clone()).unwrap();
        if let Some(record) = converter.lookup(&image.digest()).await.unwrap() {
            for digest in &record.objects {
                assert!(
                    healthy.find(digest).await.unwrap().is_some(),
                    "died at {dies_at}"
                );
            }
        }
        let survived = outcome.is_ok();
        let bench = bench.over(healthy);
        let record = bench.convert(&image).await.unwrap();
        bench.check_converted(&image, &record).await;
        if survived {
            assert!(
                dies_at > 10,
                "a conversion takes more operations than {dies_at}"
            );
            return;
        }
    }
}
