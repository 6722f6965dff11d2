//! Two replicas over one bucket: while one converts a layer, the other waits.

use std::sync::Arc;

use parking_lot::Mutex;
use starlift::convert::Converter;
use starlift::store::{self, Store};

use super::bench::{Bench, config, timeless};
use crate::support::bucket::{Bucket, Fate};
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::registry::Gate;

/// The operations of one replica on the bucket, in order.
type Operations = Arc<Mutex<Vec<String>>>;

/// A second replica, which is seen in `operations`.
fn other_over(bucket: &Bucket) -> (Converter, Operations) {
    let operations = Operations::default();
    let seen = Arc::clone(&operations);
    let bucket = bucket.broken(move |operation| {
        let line = format!("{} {}", operation.kind, operation.path);
        seen.lock().push(line);
        Fate::Pass
    });
    let store = Store::over(Arc::new(bucket), &store::Config::default());
    (Converter::new(&config(), store).unwrap(), operations)
}

async fn bench_over(bucket: &Bucket) -> Bench {
    let store = Store::over(Arc::new(bucket.clone()), &store::Config::default());
    Bench::with(&config(), store).await
}

#[tokio::test]
async fn a_replica_that_waits_reads_only_the_lease() {
    const LOOKS: usize = 4;
    let bucket = Bucket::new();
    let bench = bench_over(&bucket).await;
    let (other, operations) = other_over(&bucket);
    let image = ImageBuilder::new(1).layers(1).build();
    let layer = image.layers()[0].clone();
    let gate = Gate::new();
    let path = format!("/blobs/{}", starlift::oci::Digest::sha256_of(&layer));
    bench.registry.on(&path).gate(&gate);
    let is_look = |operation: &String| operation.starts_with("get leases/");
    let waits = async {
        gate.reached(1).await;
        let theirs = bench.convert_with(&other, &image);
        let looks = eventually_async("the other looks at the lease", async || {
            operations
                .lock()
                .iter()
                .filter(|line| is_look(line))
                .count()
                > LOOKS
        });
        let opened = async {
            looks.await;
            let last: Vec<String> = operations
                .lock()
                .iter()
                .rev()
                .take(LOOKS)
                .cloned()
                .collect();
            gate.open();
            last
        };
        tokio::join!(theirs, opened)
    };
    let (ours, (theirs, last)) = tokio::join!(bench.convert(&image), waits);
    assert!(last.iter().all(is_look), "{last:?}");
    assert_eq!(timeless(&ours.unwrap()), timeless(&theirs.unwrap()));
    assert_eq!(bench.fetched(&layer), 1);
}

#[tokio::test]
async fn a_replica_converts_what_another_failed_to() {
    let bucket = Bucket::new();
    let bench = bench_over(&bucket).await;
    let (other, operations) = other_over(&bucket);
    let image = ImageBuilder::new(2).layers(1).build();
    let layer = image.layers()[0].clone();
    let gate = Gate::new();
    let path = format!("/blobs/{}", starlift::oci::Digest::sha256_of(&layer));
    bench.registry.on(&path).times(1).gate(&gate);
    bench.registry.on(&path).times(1).answer(404, &[]);
    let waits = async {
        gate.reached(1).await;
        let theirs = bench.convert_with(&other, &image);
        let opened = async {
            eventually_async("the other waits for the lease", async || {
                let operations = operations.lock();
                operations
                    .iter()
                    .any(|line| line.starts_with("get leases/"))
            })
            .await;
            gate.open();
        };
        tokio::join!(theirs, opened).0
    };
    let (ours, theirs) = tokio::join!(bench.convert(&image), waits);
    ours.unwrap_err();
    let record = theirs.unwrap();
    bench.check_converted(&image, &record).await;
}

#[tokio::test]
async fn a_replica_waits_through_a_failing_store() {
    let bucket = Bucket::new();
    let bench = bench_over(&bucket).await;
    let looks = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&looks);
    // The first read of the lease is that of the attempt to take it.
    let broken = bucket.broken(move |operation| {
        if operation.kind != "get" || !operation.path.starts_with("leases/") {
            return Fate::Pass;
        }
        let mut looks = counted.lock();
        *looks += 1;
        if (2..4).contains(&*looks) {
            Fate::Fail
        } else {
            Fate::Pass
        }
    });
    let store = Store::over(Arc::new(broken), &store::Config::default());
    let other = Converter::new(&config(), store).unwrap();
    let image = ImageBuilder::new(3).layers(1).build();
    let gate = Gate::new();
    let path = format!(
        "/blobs/{}",
        starlift::oci::Digest::sha256_of(&image.layers()[0])
    );
    bench.registry.on(&path).gate(&gate);
    let waits = async {
        gate.reached(1).await;
        let theirs = bench.convert_with(&other, &image);
        let opened = async {
            eventually_async("the lease is read again", async || *looks.lock() > 4).await;
            gate.open();
        };
        tokio::join!(theirs, opened).0
    };
    let (ours, theirs) = tokio::join!(bench.convert(&image), waits);
    assert_eq!(timeless(&ours.unwrap()), timeless(&theirs.unwrap()));
}
