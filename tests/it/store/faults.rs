//! Crashes, lost answers and races: nothing incomplete is visible, the next try succeeds, nothing
//! is left forever.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use starlift::oci::Digest;
use starlift::store::{Config, Error, Store, SweepReport};

use super::contract::{bytes_of, generation, put_image, put_layer, read, source_of};
use crate::support::bucket::{Bucket, Fate, Gate};

const PART: usize = 64 << 10;
/// Two full parts and one byte.
const LAYER: usize = 2 * PART + 1;

fn open(bucket: &Bucket) -> Store {
    let config = Config {
        part_size: bytesize::ByteSize::b(PART as u64),
        ..Config::default()
    };
    Store::over(Arc::new(bucket.clone()), &config)
}

/// Returns a time after every grace and retention.
fn in_a_year() -> SystemTime {
    SystemTime::now() + Duration::from_secs(366 * 24 * 60 * 60)
}

/// Checks that every visible object is readable, and that the image is complete or absent.
async fn nothing_is_half_visible(bucket: &Bucket, seed: u32) {
    let store = open(bucket);
    for path in bucket.paths().await {
        let Some(place) = path
            .strip_prefix("records/digest/")
            .and_then(|path| path.strip_suffix(".json"))
        else {
            continue;
        };
        let digest: Digest = place.replace('/', ":").parse().unwrap();
        let object = store
            .find(&digest)
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("no object for {path}"));
        assert_eq!(
            Digest::sha256_of(&read(&store, &object, 0..object.size).await.unwrap()),
            digest
        );
    }
    if bucket
        .paths()
        .await
        .iter()
        .any(|path| path.starts_with("records/image/"))
    {
        assert!(
            store
                .image(&generation(), &source_of(seed))
                .await
                .unwrap()
                .is_some()
        );
    }
}

/// Returns the keys after two sweeps. The second deletes the marks of the objects that the first
/// deleted.
async fn left_after_sweeps(bucket: &Bucket) -> Vec<String> {
    for _ in 0..2 {
        open(bucket).sweep(in_a_year()).await.unwrap();
    }
    bucket.paths().await
}

#[tokio::test]
async fn a_crash_at_any_operation_leaves_nothing_half_visible() {
    for number in 0.. {
        let bucket = Bucket::new();
        let dying = bucket.dead_from(number);
        let committed = put_image(&open(&dying), 1, LAYER).await.is_ok();
        nothing_is_half_visible(&bucket, 1).await;
        if number % 2 == 0 {
            put_image(&open(&bucket), 1, LAYER).await.unwrap();
            nothing_is_half_visible(&bucket, 1).await;
        }
        assert_eq!(
            left_after_sweeps(&bucket).await,
            [""; 0],
            "after a crash at operation {number}"
        );
        if committed {
            assert!(
                number > 10,
                "the image was committed in {number} operations"
            );
            return;
        }
    }
}

#[tokio::test]
async fn a_lost_answer_is_an_error_or_no_matter() {
    let whole = Bucket::new().broken(|_| Fate::Pass);
    put_image(&open(&whole), 2, LAYER).await.unwrap();
    for number in 0..whole.operations() {
        let bucket = Bucket::new();
        let losing = bucket.broken(move |operation| {
            if operation.number == number {
                Fate::LoseAnswer
            } else {
                Fate::Pass
            }
        });
        let store = open(&losing);
        let _either = put_image(&store, 2, LAYER).await;
        nothing_is_half_visible(&bucket, 2).await;
        let image = put_image(&store, 2, LAYER).await.unwrap();
        assert_eq!(
            open(&bucket)
                .image(&generation(), &image.source)
                .await
                .unwrap(),
            Some(image)
        );
    }
}

#[tokio::test]
async fn the_lost_answer_of_a_completion_is_no_error() {
    let bucket = Bucket::new();
    let losing = bucket.broken(|operation| {
        if operation.kind == "complete" {
            Fate::LoseAnswer
        } else {
            Fate::Pass
        }
    });
    put_layer(&open(&losing), &source_of(3), &bytes_of(LAYER, 3))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lost_part_fails_the_upload_and_leaves_nothing() {
    let bucket = Bucket::new();
    let losing = bucket.broken(|operation| {
        if operation.kind == "part" {
            Fate::Fail
        } else {
            Fate::Pass
        }
    });
    let failed = put_layer(&open(&losing), &source_of(4), &bytes_of(LAYER, 4)).await;
    assert!(matches!(failed, Err(Error::Backend { .. })), "{failed:?}");
    assert_eq!(bucket.paths().await, [""; 0]);
}

#[tokio::test]
async fn a_layer_deleted_by_hand_is_converted_again() {
    use object_store::ObjectStoreExt as _;
    let bucket = Bucket::new();
    let image = put_image(&open(&bucket), 5, 1000).await.unwrap();
    let layers: Vec<String> = bucket
        .paths()
        .await
        .into_iter()
        .filter(|path| path.starts_with("layers/"))
        .collect();
    let reader = open(&bucket);
    let layer = reader
        .find(image.objects.last().unwrap())
        .await
        .unwrap()
        .unwrap();
    bucket.delete(&layers[0].as_str().into()).await.unwrap();
    assert!(matches!(
        read(&reader, &layer, 0..1000).await,
        Err(Error::Gone(_))
    ));
    assert_eq!(reader.find(&layer.digest).await.unwrap(), None);
    assert_eq!(
        reader.image(&generation(), &image.source).await.unwrap(),
        None
    );
    assert_eq!(
        reader.layer(&generation(), &image.source).await.unwrap(),
        None
    );
    put_image(&reader, 5, 1000).await.unwrap();
    assert_eq!(
        reader.image(&generation(), &image.source).await.unwrap(),
        Some(image)
    );
}

#[tokio::test]
async fn a_torn_object_is_not_found() {
    use object_store::ObjectStoreExt as _;
    let bucket = Bucket::new();
    let image = put_image(&open(&bucket), 6, 1000).await.unwrap();
    let layer = bucket
        .paths()
        .await
        .into_iter()
        .find(|path| path.starts_with("layers/"))
        .unwrap();
    bucket
        .put(&layer.as_str().into(), vec![0; 999].into())
        .await
        .unwrap();
    assert_eq!(
        open(&bucket)
            .find(image.objects.last().unwrap())
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        open(&bucket)
            .image(&generation(), &image.source)
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn damaged_bytes_and_records_are_not_returned() {
    use object_store::ObjectStoreExt as _;
    let bucket = Bucket::new();
    let put = open(&bucket)
        .put("text/plain", "content".into())
        .await
        .unwrap();
    bucket
        .put(&put.key.to_string().into(), "CONTENT".into())
        .await
        .unwrap();
    let reader = open(&bucket);
    let found = reader.find(&put.digest).await.unwrap().unwrap();
    assert!(matches!(
        reader.read_all(&found).await,
        Err(Error::Damaged { .. })
    ));

    let image = put_image(&reader, 7, 10).await.unwrap();
    for record in bucket
        .paths()
        .await
        .into_iter()
        .filter(|path| path.starts_with("records/"))
    {
        bucket
            .put(&record.as_str().into(), "{\"torn".into())
            .await
            .unwrap();
    }
    let reader = open(&bucket);
    assert_eq!(
        reader.image(&generation(), &image.source).await.unwrap(),
        None
    );
    assert_eq!(reader.find(&image.converted).await.unwrap(), None);
    put_image(&reader, 7, 10).await.unwrap();
}

#[tokio::test]
async fn a_young_upload_survives_a_sweep() {
    let bucket = Bucket::new();
    let store = open(&bucket);
    let mut upload = store
        .upload_layer(&generation(), &source_of(8), 0)
        .await
        .unwrap();
    upload.write(bytes_of(100, 8)).await.unwrap();
    upload
        .finish(&Digest::sha256_of(&bytes_of(100, 8)))
        .await
        .unwrap();
    let report = store.sweep(SystemTime::now()).await.unwrap();
    assert_eq!(
        report,
        SweepReport {
            kept_bytes: 100,
            ..SweepReport::default()
        }
    );
    assert_eq!(bucket.paths().await.len(), 1);
    let report = store.sweep(in_a_year()).await.unwrap();
    assert_eq!((report.unrecorded, report.freed_bytes), (1, 100));
    assert_eq!(bucket.paths().await, [""; 0]);
}

#[tokio::test]
async fn an_image_that_is_built_on_an_old_layer_while_it_is_swept_stays_whole() {
    // A gate stops the sweep before each of its deletions in turn, while another replica converts
    // the image.
    for held in 0.. {
        let bucket = Bucket::new();
        put_image(&open(&bucket), 9, 1000).await.unwrap();
        let gate = Gate::new();
        let deletions = std::sync::atomic::AtomicUsize::new(0);
        let at_gate = gate.clone();
        let sweeper = open(&bucket.broken(move |operation| {
            let is_deletion = operation.kind == "delete" && !operation.path.starts_with("leases/");
            let is_held =
                is_deletion && deletions.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == held;
            if is_held {
                Fate::Wait(at_gate.clone())
            } else {
                Fate::Pass
            }
        }));
        let mut sweep = tokio::spawn(async move { sweeper.sweep(in_a_year()).await });
        tokio::select! {
            () = gate.reached() => {}
            swept = &mut sweep => {
                swept.unwrap().unwrap();
                assert!(held > 3, "the sweep deleted {held} objects");
                return;
            }
        }
        let other = open(&bucket);
        let converted = put_image(&other, 9, 1000).await;
        gate.open();
        sweep.await.unwrap().unwrap();
        nothing_is_dangling(&bucket).await;
        // Whichever of the sweep and the conversion was first, the next pull has its image.
        if open(&bucket)
            .image(&generation(), &source_of(9))
            .await
            .unwrap()
            .is_none()
        {
            put_image(&open(&bucket), 9, 1000).await.unwrap();
        }
        drop(converted);
        nothing_is_half_visible(&bucket, 9).await;
    }
}

/// Checks that every visible image is readable. A record may outlive its bytes only if a lookup
/// reports that.
async fn nothing_is_dangling(bucket: &Bucket) {
    let store = open(bucket);
    if let Some(image) = store.image(&generation(), &source_of(9)).await.unwrap() {
        for digest in &image.objects {
            let object = store.find(digest).await.unwrap().unwrap();
            read(&store, &object, 0..object.size).await.unwrap();
        }
    }
}

#[tokio::test]
async fn two_sweeps_at_once_do_the_work_once() {
    let bucket = Bucket::new();
    put_image(&open(&bucket), 10, 1000).await.unwrap();
    let gate = Gate::new();
    let at_gate = gate.clone();
    let slow = open(&bucket.broken(move |operation| {
        if operation.kind == "list" {
            Fate::Wait(at_gate.clone())
        } else {
            Fate::Pass
        }
    }));
    let first = tokio::spawn(async move { slow.sweep(in_a_year()).await });
    gate.reached().await;
    assert!(open(&bucket).sweep(in_a_year()).await.unwrap().busy);
    gate.open();
    let report = first.await.unwrap().unwrap();
    assert_eq!(
        (report.images, report.objects, report.kept_bytes),
        (1, 3, 0)
    );
}

/// A completion whose answer is lost may have found the object of an earlier upload. Only the bytes
/// show the difference.
#[tokio::test]
async fn an_object_of_the_right_length_is_not_mistaken_for_the_upload() {
    let bucket = Bucket::new();
    put_layer(&open(&bucket), &source_of(31), &bytes_of(LAYER, 31))
        .await
        .unwrap();
    let losing = bucket.broken(|operation| {
        if operation.kind == "complete" {
            Fate::Fail
        } else {
            Fate::Pass
        }
    });
    let other = bytes_of(LAYER, 32);
    let failed = put_layer(&open(&losing), &source_of(31), &other).await;
    assert!(failed.is_err(), "{failed:?}");
    let lost = bucket.broken(|operation| {
        if operation.kind == "complete" {
            Fate::LoseAnswer
        } else {
            Fate::Pass
        }
    });
    put_layer(&open(&lost), &source_of(31), &other)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_small_object_that_rotted_is_written_again_by_the_next_put() {
    let bucket = Bucket::new();
    let object = open(&bucket)
        .put("text/plain", "content".into())
        .await
        .unwrap();
    let path = object_store::path::Path::from(object.key.to_string());
    object_store::ObjectStoreExt::put(&bucket, &path, "conTent".into())
        .await
        .unwrap();
    let store = open(&bucket);
    let damaged = store.read_all(&object).await;
    assert!(matches!(damaged, Err(Error::Damaged { .. })), "{damaged:?}");
    assert_eq!(
        store.find(&object.digest).await.unwrap(),
        None,
        "the damaged object is deleted"
    );
    object_store::ObjectStoreExt::put(&bucket, &path, "conTent".into())
        .await
        .unwrap();
    let store = open(&bucket);
    assert_eq!(
        store.put("text/plain", "content".into()).await.unwrap(),
        object
    );
    assert_eq!(store.read_all(&object).await.unwrap(), "content");
}

#[tokio::test]
async fn a_scrub_reads_no_faster_than_its_rate() {
    let store = open(&Bucket::new());
    put_layer(&store, &source_of(33), &bytes_of(LAYER, 33))
        .await
        .unwrap();
    let started = std::time::Instant::now();
    let report = store
        .scrub(false, 10 * LAYER as u64, &mut |finding| {
            panic!("{finding:?}")
        })
        .await
        .unwrap();
    assert_eq!((report.objects, report.bytes), (1, LAYER as u64));
    assert!(
        started.elapsed() >= Duration::from_millis(99),
        "{:?}",
        started.elapsed()
    );
}

/// The mark is written after the sweep's first check and before its last, so the layer stays.
#[tokio::test]
async fn a_layer_that_is_asked_for_while_its_record_goes_gets_it_back() {
    let bucket = Bucket::new();
    let gate = Gate::new();
    put_layer(&open(&bucket), &source_of(34), &bytes_of(LAYER, 34))
        .await
        .unwrap();
    let held = gate.clone();
    let sweeping = bucket.broken(move |operation| {
        match operation.kind == "delete" && operation.path.contains("records/digest") {
            true => Fate::Wait(held.clone()),
            false => Fate::Pass,
        }
    });
    let sweeper = open(&sweeping);
    let sweep = tokio::spawn(async move { sweeper.sweep(in_a_year()).await.unwrap() });
    gate.reached().await;
    let store = open(&bucket);
    assert!(
        store
            .layer(&generation(), &source_of(34))
            .await
            .unwrap()
            .is_none(),
        "the layer's record is deleted first"
    );
    let record = super::contract::layer_record(&source_of(34), &bytes_of(LAYER, 34));
    store.put_layer(&generation(), &record).await.unwrap();
    gate.open();
    sweep.await.unwrap();
    let object = open(&bucket)
        .find(&Digest::sha256_of(&bytes_of(LAYER, 34)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        read(&store, &object, 0..object.size).await.unwrap(),
        bytes_of(LAYER, 34)
    );
}
