//! The store over S3: a fake that fails on command, and moto.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::http::Method;
use bytes::Bytes;
use bytesize::ByteSize;
use futures::TryStreamExt as _;
use starlift::oci::Digest;
use starlift::store::{Config, Error, RangeCacheConfig, Store};

use super::contract::{self, bytes_of, generation, put_image, put_layer, read, source_of};
use crate::support::eventually::eventually_async;
use crate::support::moto::Moto;
use crate::support::place::Place;
use crate::support::s3::{self, Asked, BUCKET, Fault, S3};

fn in_a_year() -> SystemTime {
    SystemTime::now() + Duration::from_secs(366 * 24 * 60 * 60)
}

async fn open(s3: &S3) -> Store {
    Store::open(&s3.config("some/prefix")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_contract() {
    let s3 = S3::start().await;
    contract::all(&open(&s3).await).await;
    assert_eq!(s3.open_uploads(), 0);
    assert!(
        s3.keys().iter().all(|key| key.starts_with("some/prefix/")),
        "{:?}",
        s3.keys()
    );
    let other = Store::open(&s3.config("other")).await.unwrap();
    assert_eq!(
        other.image(&generation(), &source_of(2000)).await.unwrap(),
        None
    );
    open(&s3).await.sweep(in_a_year()).await.unwrap();
    open(&s3).await.sweep(in_a_year()).await.unwrap();
    assert_eq!(s3.keys(), ["some/prefix/salt.json"]);
}

/// Reads two ranges of a layer, one of them over two pieces of the cache, and returns the number of
/// GET requests to the bucket.
async fn requests_for_ranges(s3: &S3, store: &Store, layer: &Bytes) -> usize {
    let object = store.find(&Digest::sha256_of(layer)).await.unwrap();
    let object = object.unwrap();
    // A use of the layer is noted in the background, by a PUT.
    let (gets, counted) = (Arc::new(AtomicUsize::new(0)), Method::GET);
    let seen = Arc::clone(&gets);
    s3.fail(move |asked| {
        seen.fetch_add(usize::from(asked.method == counted), Ordering::Relaxed);
        Fault::None
    });
    for range in [100..70_000, 200_000..300_000] {
        let bytes = store.read(&object, range.clone()).await.unwrap();
        let pieces: Vec<Bytes> = bytes.try_collect().await.unwrap();
        let place = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert_eq!(pieces.concat(), layer[place]);
    }
    gets.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_range_costs_one_request_to_the_bucket_and_none_once_it_is_cached() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = s3.config("");
    // Checks of whole layers are requests too.
    config.scrub.rate = ByteSize(0);
    let layer = bytes_of(1 << 20, 5);
    let plain = Store::open(&config).await.unwrap();
    put_layer(&plain, &source_of(5), &layer).await.unwrap();
    assert_eq!(requests_for_ranges(&s3, &plain, &layer).await, 2);
    config.cache = Some(RangeCacheConfig {
        folder: folder.path().to_owned(),
        max_size: ByteSize::mib(16),
    });
    let cached = Store::open(&config).await.unwrap();
    assert_eq!(
        requests_for_ranges(&s3, &cached, &layer).await,
        2,
        "three parts of two pieces"
    );
    assert_eq!(requests_for_ranges(&s3, &cached, &layer).await, 0);
    drop(cached);
    let again = Store::open(&config).await.unwrap();
    assert_eq!(
        requests_for_ranges(&s3, &again, &layer).await,
        0,
        "the pieces outlive the process"
    );
}

#[tokio::test]
async fn a_layer_that_left_the_bucket_is_forgotten_with_its_cached_pieces() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = s3.config("");
    config.scrub.rate = ByteSize(0);
    config.cache = Some(RangeCacheConfig {
        folder: folder.path().to_owned(),
        max_size: ByteSize::mib(16),
    });
    let layer = bytes_of(1 << 20, 6);
    let store = Store::open(&config).await.unwrap();
    put_layer(&store, &source_of(6), &layer).await.unwrap();
    requests_for_ranges(&s3, &store, &layer).await;
    let object = store.find(&Digest::sha256_of(&layer)).await.unwrap();
    let object = object.unwrap();
    let stored = |key: &String| s3.object(key).is_some_and(|bytes| bytes == layer);
    let key = s3.keys().into_iter().find(stored).unwrap();
    s3.replace(&key, None);
    let cached = store.read(&object, 5..15).await.unwrap();
    let cached: Vec<Bytes> = cached.try_collect().await.unwrap();
    assert_eq!(cached.concat(), layer[5..15], "still the right bytes");
    let beyond = store.read(&object, 700_000..700_010).await;
    assert!(matches!(beyond, Err(Error::Gone(_))));
    assert_eq!(store.find(&object.digest).await.unwrap(), None);
    let is_file = |entry: io::Result<fs::DirEntry>| entry.unwrap().path().is_file();
    let places = fs::read_dir(folder.path()).unwrap();
    let files = places.flat_map(|place| fs::read_dir(place.unwrap().path()).unwrap());
    assert_eq!(
        files.filter_map(|file| is_file(file).then_some(())).count(),
        0
    );
}

#[tokio::test]
async fn a_cache_before_a_folder_is_a_mistake_in_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        location: folder.path().display().to_string(),
        cache: Some(RangeCacheConfig {
            folder: folder.path().join("cache"),
            max_size: ByteSize::mib(16),
        }),
        ..Config::default()
    };
    let refused = Store::open(&config).await.unwrap_err();
    assert!(refused.to_string().contains("store.cache"), "{refused}");
}

#[tokio::test]
async fn a_missing_or_unreachable_bucket_is_an_error_at_the_start() {
    let s3 = S3::start().await;
    let missing = Store::open(&s3::config(&s3.endpoint, "s3://elsewhere")).await;
    assert!(matches!(missing, Err(Error::Backend { .. })), "{missing:?}");
    let mut plain = s3.config("");
    plain.allow_http = false;
    assert!(Store::open(&plain).await.is_err());
}

#[tokio::test]
async fn a_slow_down_is_waited_out() {
    let s3 = S3::start().await;
    let store = open(&s3).await;
    s3.fail(|asked| {
        if asked.number % 3 == 0 {
            Fault::SlowDown
        } else {
            Fault::None
        }
    });
    let image = put_image(&store, 1, 17 << 20).await.unwrap();
    let reader = open(&s3).await;
    assert_eq!(
        reader.image(&generation(), &image.source).await.unwrap(),
        Some(image)
    );
}

#[tokio::test]
async fn a_body_that_is_cut_is_read_on_from_there() {
    let s3 = S3::start().await;
    // A rate of 0 keeps the range from triggering a check of the whole layer.
    let mut config = s3.config("some/prefix");
    config.scrub.rate = bytesize::ByteSize::b(0);
    let store = Store::open(&config).await.unwrap();
    let layer = bytes_of(3 << 20, 2);
    put_layer(&store, &source_of(2), &layer).await.unwrap();
    let object = store
        .find(&Digest::sha256_of(&layer))
        .await
        .unwrap()
        .unwrap();
    s3.fail(|asked| {
        if asked.number < 2 {
            Fault::CutBody(1_000_000)
        } else {
            Fault::None
        }
    });
    assert_eq!(
        read(&store, &object, 5..object.size).await.unwrap(),
        layer[5..]
    );
    assert_eq!(s3.asked(), 3);
}

#[tokio::test]
async fn any_answer_may_be_lost() {
    let whole = S3::start().await;
    let store = open(&whole).await;
    whole.fail(|_| Fault::None);
    put_image(&store, 3, 9 << 20).await.unwrap();
    for number in 0..whole.asked() {
        let s3 = S3::start().await;
        let store = open(&s3).await;
        s3.fail(move |asked| {
            if asked.number == number {
                Fault::LoseAnswer
            } else {
                Fault::None
            }
        });
        let image = put_image(&store, 3, 9 << 20).await.unwrap();
        let reader = open(&s3).await;
        assert_eq!(
            reader.image(&generation(), &image.source).await.unwrap(),
            Some(image),
            "request {number}"
        );
    }
}

#[tokio::test]
async fn an_upload_given_up_leaves_no_parts() {
    let s3 = S3::start().await;
    let store = open(&s3).await;
    for is_dropped in [false, true] {
        let mut upload = store
            .upload_layer(&generation(), &source_of(4), 0)
            .await
            .unwrap();
        upload.write(bytes_of(17 << 20, 4)).await.unwrap();
        eventually_async("an upload is begun", async || s3.open_uploads() == 1).await;
        if is_dropped {
            drop(upload)
        } else {
            upload.abort().await
        }
        eventually_async("the upload is ended", async || s3.open_uploads() == 0).await;
    }
    let is_part = |asked: &Asked| asked.query.contains_key("partNumber");
    s3.fail(move |asked| {
        if is_part(asked) {
            Fault::SlowDown
        } else {
            Fault::None
        }
    });
    let failed = put_layer(&store, &source_of(4), &bytes_of(9 << 20, 4)).await;
    assert!(matches!(failed, Err(Error::Backend { .. })), "{failed:?}");
    eventually_async("the upload is ended", async || s3.open_uploads() == 0).await;
    assert_eq!(s3.keys(), [""; 0]);
}

#[tokio::test]
async fn parts_in_flight_are_bounded() {
    let s3 = S3::start().await;
    let store = open(&s3).await;
    let mut upload = store
        .upload_layer(&generation(), &source_of(5), 0)
        .await
        .unwrap();
    // No part ever succeeds, so the fifth part has to wait.
    s3.fail(|asked| {
        if asked.method == Method::PUT {
            Fault::SlowDown
        } else {
            Fault::None
        }
    });
    let part = bytes_of(8 << 20, 5);
    for _ in 0..4 {
        upload.write(part.clone()).await.unwrap();
    }
    tokio::select! {
        _taken = upload.write(part) => panic!("a fifth part was taken"),
        () = eventually_async("the four parts are sent again", async || s3.asked() > 8) => {}
    }
}

#[tokio::test]
async fn a_signed_url_needs_no_credentials() {
    let s3 = S3::start().await;
    let store = open(&s3).await;
    let object = store.put("text/plain", "content".into()).await.unwrap();
    let url = store
        .signed_url(&object, Duration::from_secs(60))
        .await
        .unwrap()
        .unwrap();
    let body = reqwest::get(url.clone())
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert_eq!(body, "content");
    let mut unsigned = url;
    unsigned.set_query(None);
    assert_eq!(reqwest::get(unsigned).await.unwrap().status(), 403);
    assert_eq!(
        Store::in_memory()
            .signed_url(&object, Duration::from_secs(60))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn a_signed_url_is_good_for_as_long_as_configured() {
    let s3 = S3::start().await;
    let store = open(&s3).await;
    let object = store.put("text/plain", "content".into()).await.unwrap();
    let url = store
        .signed_url(&object, Duration::from_secs(67))
        .await
        .unwrap()
        .unwrap();
    let expires = url
        .query_pairs()
        .find(|(name, _)| name == "X-Amz-Expires")
        .unwrap()
        .1;
    assert_eq!(expires, "67");
}

#[tokio::test]
async fn botocore_makes_the_same_signature() {
    if Place::with(&["python3", "moto_server"]).is_none() {
        return;
    }
    let s3 = S3::start().await;
    let store = open(&s3).await;
    let object = store.put("text/plain", "content".into()).await.unwrap();
    let url = store
        .signed_url(&object, Duration::from_secs(900))
        .await
        .unwrap()
        .unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/fixtures/presigned-signature.py"
    );
    let output = std::process::Command::new("python3")
        .args([script, url.as_str(), "key", "secret"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let signature = url
        .query_pairs()
        .find(|(name, _)| name == "X-Amz-Signature")
        .unwrap()
        .1;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), signature);
}

#[tokio::test]
async fn two_stores_over_one_bucket_share_everything_but_a_lease() {
    let s3 = S3::start().await;
    let (one, two) = (open(&s3).await, open(&s3).await);
    let lease = one.lease("layer").await.unwrap().unwrap();
    assert!(two.lease("layer").await.unwrap().is_none());
    let image = put_image(&one, 6, 1000).await.unwrap();
    assert_eq!(
        two.image(&generation(), &image.source).await.unwrap(),
        Some(image)
    );
    lease.release().await;
    assert!(two.lease("layer").await.unwrap().is_some());
}

#[tokio::test]
async fn a_repeated_lookup_sends_no_request_to_the_bucket() {
    let s3 = S3::start().await;
    let image = put_image(&open(&s3).await, 7, 1000).await.unwrap();
    let store = open(&s3).await;
    for is_first in [true, false] {
        let marks = AtomicUsize::new(0);
        s3.fail(move |asked| {
            marks.fetch_add(usize::from(asked.key.contains("/used/")), Ordering::SeqCst);
            Fault::None
        });
        store
            .image(&generation(), &image.source)
            .await
            .unwrap()
            .unwrap();
        let converted = store.find(&image.converted).await.unwrap().unwrap();
        store.read_all(&converted).await.unwrap();
        if is_first {
            // The record of the use is written in the background.
            eventually_async("the use is recorded", async || {
                s3.keys().iter().any(|key| key.contains("/used/"))
            })
            .await;
        } else {
            assert_eq!(s3.asked(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_keeps_the_contract() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let config = s3::config(&moto.endpoint, &format!("s3://{BUCKET}/prefix"));
    let store = Store::open(&config).await.unwrap();
    contract::all(&store).await;
    let report = store.sweep(in_a_year()).await.unwrap();
    assert!(report.images > 0 && report.kept_bytes == 0, "{report:?}");
    assert_eq!(
        store.image(&generation(), &source_of(2000)).await.unwrap(),
        None
    );
}
