//! `src/store/sweep/mod.rs` against `src/store/records.rs` and `src/convert/layer_converter.rs`: a sweep lets an old layer go while
//! an image is built on it, converted again, and read.
//!
//! Each operation on the bucket is one step; a lease is an object that only one can create.

use std::collections::BTreeMap;

use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use crate::ORDERS;

const MARK: &str = "used";
const RECORD: &str = "records/digest";
const BYTES: &str = "layers";
const IMAGE: &str = "records/image";
const LEASE: &str = "leases/layer";

/// Keys with the time they were written.
#[derive(Default)]
struct Bucket {
    objects: Mutex<(u64, BTreeMap<&'static str, u64>)>,
}

impl Bucket {
    fn put(&self, key: &'static str) {
        let mut objects = self.objects.lock().unwrap();
        objects.0 += 1;
        let now = objects.0;
        objects.1.insert(key, now);
    }

    fn create(&self, key: &'static str) -> bool {
        let mut objects = self.objects.lock().unwrap();
        let is_new = !objects.1.contains_key(key);
        if is_new {
            objects.0 += 1;
            let now = objects.0;
            objects.1.insert(key, now);
        }
        is_new
    }

    fn head(&self, key: &'static str) -> Option<u64> {
        self.objects.lock().unwrap().1.get(key).copied()
    }

    fn delete(&self, key: &'static str) {
        self.objects.lock().unwrap().1.remove(key);
    }

    fn is_visible(&self) -> bool {
        self.head(RECORD).is_some() && self.head(BYTES).is_some()
    }
}

/// A layer that nobody used for long.
fn old_layer() -> Arc<Bucket> {
    let bucket = Arc::new(Bucket::default());
    for key in [MARK, BYTES, RECORD] {
        bucket.put(key);
    }
    bucket
}

/// `Sweep::object`, after an inventory that saw the mark and the record of these times.
fn sweep(bucket: &Bucket, marked: Option<u64>, recorded: Option<u64>) {
    let used_since = || bucket.head(MARK) != marked;
    if used_since() || bucket.head(RECORD) != recorded {
        return;
    }
    bucket.delete(RECORD);
    if used_since() {
        return bucket.put(RECORD);
    }
    if !bucket.create(LEASE) {
        return;
    }
    if bucket.head(RECORD).is_none() {
        bucket.delete(BYTES);
    }
    bucket.delete(LEASE);
}

/// `Layers::converted` and `Store::put_image`: whether the image was committed.
fn build(bucket: &Bucket) -> bool {
    // `Store::layer`.
    bucket.put(MARK);
    if !bucket.is_visible() && !convert(bucket) {
        return false;
    }
    bucket.put(IMAGE);
    let is_whole = bucket.is_visible();
    if !is_whole {
        bucket.delete(IMAGE);
    }
    is_whole
}

/// `Layers::convert_alone`: whether the layer is there now.
fn convert(bucket: &Bucket) -> bool {
    if !bucket.create(LEASE) {
        return false;
    }
    if !bucket.is_visible() {
        bucket.put(BYTES);
        assert!(
            bucket.head(BYTES).is_some(),
            "bytes went whose lease is held"
        );
        bucket.put(RECORD);
        assert!(
            bucket.head(BYTES).is_some(),
            "bytes went whose lease is held"
        );
    }
    bucket.delete(LEASE);
    true
}

#[test]
fn no_image_is_committed_on_a_layer_that_a_sweep_lets_go() {
    let model = || {
        let bucket = old_layer();
        let (marked, recorded) = (bucket.head(MARK), bucket.head(RECORD));
        let sweeper = thread::spawn({
            let bucket = Arc::clone(&bucket);
            move || sweep(&bucket, marked, recorded)
        });
        let builder = thread::spawn({
            let bucket = Arc::clone(&bucket);
            move || build(&bucket)
        });
        let reader = thread::spawn({
            let bucket = Arc::clone(&bucket);
            // `Store::read`: what is gone is forgotten only while its record is there, and then it is damage.
            move || {
                bucket.head(RECORD).is_none()
                    || bucket.head(BYTES).is_some()
                    || bucket.head(RECORD).is_none()
            }
        });
        sweeper.join().unwrap();
        let is_committed = builder.join().unwrap();
        assert_eq!(is_committed, bucket.head(IMAGE).is_some());
        assert!(
            !is_committed || bucket.is_visible(),
            "a live image names a layer that is gone"
        );
        assert!(bucket.head(LEASE).is_none());
        let _is_no_damage = reader.join().unwrap();
        // A second try is not disturbed by what the first left.
        assert!(build(&bucket) && bucket.is_visible());
    };
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, 3);
}

#[test]
fn a_sweep_and_two_builders_agree() {
    shuttle::check_random(
        || {
            let bucket = old_layer();
            let (marked, recorded) = (bucket.head(MARK), bucket.head(RECORD));
            let builders: Vec<_> = (0..2)
                .map(|_| {
                    let bucket = Arc::clone(&bucket);
                    thread::spawn(move || build(&bucket))
                })
                .collect();
            sweep(&bucket, marked, recorded);
            let committed: Vec<bool> = builders
                .into_iter()
                .map(|builder| builder.join().unwrap())
                .collect();
            if committed.contains(&true) && bucket.head(IMAGE).is_some() {
                assert!(
                    bucket.is_visible(),
                    "a live image names a layer that is gone"
                );
            }
        },
        ORDERS,
    );
}
