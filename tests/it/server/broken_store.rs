//! A failing store makes converted images unavailable, never source images.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use starlift::oci::Digest;
use starlift::store::{self, Store};

use super::Stage;
use crate::support::bucket::{Bucket, Fate};

/// Returns a stage whose store fails while the switch is on.
async fn stage() -> (Stage, Arc<AtomicBool>) {
    let is_broken = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_broken);
    let bucket = Bucket::new().broken(move |_| {
        if switch.load(Ordering::SeqCst) {
            Fate::Fail
        } else {
            Fate::Pass
        }
    });
    let store = Store::over(Arc::new(bucket), &store::Config::default());
    (Stage::over(store, |_| {}).await, is_broken)
}

#[tokio::test]
async fn source_images_are_served_without_a_store() {
    let (stage, is_broken) = stage().await;
    let image = stage.push_app();
    is_broken.store(true, Ordering::SeqCst);
    let by_tag = stage.get("/v2/local/app/manifests/v1").await;
    assert_eq!((by_tag.status, by_tag.body), (200, image.bytes.clone()));
    assert!(by_tag.headers.contains_key("warning"));
    let by_digest = stage
        .get(&format!("/v2/local/app/manifests/{}", image.digest()))
        .await;
    assert_eq!(
        (by_digest.status, by_digest.body),
        (200, image.bytes.clone())
    );
    let layer = &image.layers()[0];
    let blob = stage
        .get(&format!("/v2/local/app/blobs/{}", Digest::sha256_of(layer)))
        .await;
    assert_eq!((blob.status, &blob.body), (200, layer));
    assert_eq!(stage.get("/readyz").await.status, 503);
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(stage.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_digest_that_the_store_may_hold_is_not_404_while_it_fails() {
    let (stage, is_broken) = stage().await;
    is_broken.store(true, Ordering::SeqCst);
    let digest = Digest::sha256_of(b"perhaps stored");
    for kind in ["manifests", "blobs"] {
        let answer = stage.get(&format!("/v2/local/app/{kind}/{digest}")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (500, "UNKNOWN"),
            "{kind}"
        );
        assert!(!String::from_utf8_lossy(&answer.body).contains("store failed"));
    }
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(
        stage
            .get(&format!("/v2/local/app/manifests/{digest}"))
            .await
            .status,
        404
    );
}
