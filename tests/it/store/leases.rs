//! Leases over a bucket: renewed, lost, and taken over when they expire. (A folder's leases are
//! locks.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::TryFutureExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use starlift::store::{Config, Store};

use super::contract::sealed;
use crate::support::bucket::{Bucket, Fate};
use crate::support::eventually::eventually_async;

const NAME: &str = "layer";

/// Leases are renewed every 400 ms.
const TTL: Duration = Duration::from_millis(1200);

fn open(bucket: &Bucket) -> Store {
    Store::over(
        Arc::new(bucket.clone()),
        &Config {
            lease_ttl: TTL,
            ..Config::default()
        },
    )
}

fn place() -> Path {
    Path::from("leases/layer")
}

async fn claim(bucket: &Bucket) -> serde_json::Value {
    let bytes = bucket
        .get(&place())
        .and_then(|found| found.bytes())
        .await
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Writes a claim as another process would, which expires in `left` milliseconds, or has expired if
/// `left` is negative.
async fn claimed_by_another(bucket: &Bucket, left: i64) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let expires = i64::try_from(now).unwrap() + left;
    let claim = serde_json::json!({ "owner": "another", "epoch": 3, "expires": expires });
    bucket
        .put(&place(), sealed(place().as_ref(), &claim).into())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lease_that_has_run_out_is_taken_over_once() {
    let bucket = Bucket::new();
    claimed_by_another(&bucket, 60_000).await;
    assert!(open(&bucket).lease(NAME).await.unwrap().is_none());
    assert!(open(&bucket).is_leased(NAME).await.unwrap());
    claimed_by_another(&bucket, -1).await;
    assert!(!open(&bucket).is_leased(NAME).await.unwrap());
    let takers = (0..8).map(|_| {
        let store = open(&bucket);
        tokio::spawn(async move { store.lease(NAME).await.unwrap() })
    });
    let taken: Vec<_> = futures::future::join_all(takers)
        .await
        .into_iter()
        .filter_map(Result::unwrap)
        .collect();
    assert_eq!(taken.len(), 1);
    assert_eq!(claim(&bucket).await["epoch"], 4);
}

#[tokio::test]
async fn a_lease_is_renewed_until_it_is_dropped() {
    let bucket = Bucket::new();
    let lease = open(&bucket).lease(NAME).await.unwrap().unwrap();
    eventually_async("the lease is renewed", async || {
        claim(&bucket).await["epoch"].as_u64() >= Some(2)
    })
    .await;
    assert!(!lease.is_lost());
    drop(lease);
    eventually_async("the lease is deleted", async || {
        bucket.paths().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_lease_taken_by_another_owner_is_reported_lost() {
    let bucket = Bucket::new();
    let lease = open(&bucket).lease(NAME).await.unwrap().unwrap();
    claimed_by_another(&bucket, 60_000).await;
    eventually_async("the lease is lost", async || lease.is_lost()).await;
    lease.release().await;
    assert_eq!(claim(&bucket).await["owner"], "another");
}

#[tokio::test]
async fn a_lease_survives_a_hiccup_of_the_store_and_is_lost_to_an_outage() {
    let bucket = Bucket::new();
    let puts = AtomicUsize::new(0);
    let hiccup = bucket.broken(move |operation| match operation.kind {
        "put" if puts.fetch_add(1, Ordering::SeqCst) == 1 => Fate::Fail,
        _ => Fate::Pass,
    });
    let lease = open(&hiccup).lease(NAME).await.unwrap().unwrap();
    eventually_async("renewals are tried again", async || hiccup.operations() > 4).await;
    assert!(!lease.is_lost());
    lease.release().await;

    let puts = AtomicUsize::new(0);
    let outage = bucket.broken(move |operation| match operation.kind {
        "put" if puts.fetch_add(1, Ordering::SeqCst) > 0 => Fate::Fail,
        _ => Fate::Pass,
    });
    let lease = open(&outage).lease(NAME).await.unwrap().unwrap();
    eventually_async("the lease is lost", async || lease.is_lost()).await;
}

#[tokio::test]
async fn the_lost_answer_of_a_claim_does_not_lock_its_owner_out() {
    let bucket = Bucket::new();
    let losing = bucket.broken(|operation| {
        if operation.kind == "put" {
            Fate::LoseAnswer
        } else {
            Fate::Pass
        }
    });
    assert!(open(&losing).lease(NAME).await.unwrap().is_some());
}

#[tokio::test]
async fn a_lease_is_renewed_only_while_its_work_gets_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        location: folder.path().display().to_string(),
        lease_ttl: TTL,
        ..Config::default()
    };
    for store in [open(&Bucket::new()), Store::open(&config).await.unwrap()] {
        let mut asked = 0;
        let moving = move || {
            asked += 1;
            asked < 3
        };
        let lease = store.lease_while(NAME, moving).await.unwrap().unwrap();
        assert!(store.lease(NAME).await.unwrap().is_none());
        eventually_async("the lease is lost", async || lease.is_lost()).await;
        eventually_async("the lease is free", async || {
            store.lease(NAME).await.unwrap().is_some()
        })
        .await;
    }
}
