//! The store's promises, as functions over a store. Each backend runs all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::join_all;
use starlift::oci::Digest;
use starlift::profile::{Extents, FileUse, Knowledge, Observation, Source, Workload};
use starlift::store::records::ConvertedLayer;
use starlift::store::{
    Error, Generation, ImageRecord, LayerOutcome, LayerRecord, Merge, Object, StackRecord, Store,
};

pub(crate) fn generation() -> Generation {
    Generation("g1-test".to_owned())
}

/// Returns bytes that differ at every position.
pub(crate) fn bytes_of(length: usize, seed: u32) -> Bytes {
    let words = (0_u32..).map(|at| (at ^ seed).wrapping_mul(0x9e37_79b1));
    words.flat_map(u32::to_le_bytes).take(length).collect()
}

pub(crate) fn layer_record(source: &Digest, layer: &Bytes) -> LayerRecord {
    let digest = Digest::sha256_of(layer);
    LayerRecord {
        source: source.clone(),
        outcome: LayerOutcome::Converted(ConvertedLayer {
            digest: digest.clone(),
            size: layer.len() as u64,
            diff_id: digest.clone(),
            uncompressed_size: layer.len() as u64,
            source_diff_id: digest.clone(),
            source_size: layer.len() as u64,
            toc_digest: digest,
            compression: "gzip".to_owned(),
            external_toc: None,
            zstd_manifest_position: None,
            zstd_manifest_checksum: None,
        }),
    }
}

/// Returns a record as the store writes it: prefixed with a checksum of its key and its own bytes.
pub(crate) fn sealed(path: &str, record: &serde_json::Value) -> String {
    let json = record.to_string();
    let rest = json.strip_prefix('{').unwrap();
    let checksum = Digest::sha256_of(format!("{path}\n{rest}").as_bytes());
    format!("{{\"checksum\":\"{}\",{rest}", checksum.hex())
}

/// Uploads and commits a layer.
pub(crate) async fn put_layer(
    store: &Store,
    source: &Digest,
    layer: &Bytes,
) -> Result<LayerRecord, Error> {
    let mut upload = store.upload_layer(&generation(), source, 0).await?;
    for piece in layer.chunks(700_001) {
        upload.write(layer.slice_ref(piece)).await?;
    }
    upload.finish(&Digest::sha256_of(layer)).await?;
    let record = layer_record(source, layer);
    store.put_layer(&generation(), &record).await?;
    Ok(record)
}

/// Stores an image of one layer in the same order as a conversion.
pub(crate) async fn put_image(
    store: &Store,
    seed: u32,
    layer_len: usize,
) -> Result<ImageRecord, Error> {
    let layer = bytes_of(layer_len, seed);
    put_layer(store, &source_of(seed), &layer).await?;
    let config = store
        .put(
            "application/vnd.oci.image.config.v1+json",
            bytes_of(300, seed ^ 1),
        )
        .await?;
    let converted = store
        .put(
            "application/vnd.oci.image.manifest.v1+json",
            bytes_of(500, seed ^ 2),
        )
        .await?;
    let record = ImageRecord {
        source: source_of(seed),
        converted: converted.digest.clone(),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: converted.size,
        translated: None,
        platforms: Vec::new(),
        objects: vec![converted.digest, config.digest, Digest::sha256_of(&layer)],
        passed_through: Vec::new(),
        limits: Vec::new(),
        order: None,
        origin: None,
    };
    store.put_image(&generation(), &record).await?;
    Ok(record)
}

pub(crate) fn source_of(seed: u32) -> Digest {
    Digest::sha256_of(&seed.to_le_bytes())
}

pub(crate) async fn read(
    store: &Store,
    object: &Object,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = store.read(object, range).await?.try_collect().await?;
    Ok(pieces.concat())
}

/// Checks every promise in turn.
pub(crate) async fn all(store: &Store) {
    small_objects_are_found_and_read(store).await;
    an_upload_is_invisible_until_its_record(store).await;
    ranges_are_exact(store, (8 << 20) + 5).await;
    ranges_are_exact(store, 1_000).await;
    ranges_are_exact(store, 0).await;
    records_are_read_back_under_their_own_generation_only(store).await;
    an_image_without_its_objects_is_not_committed(store).await;
    one_of_many_gets_the_lease(store).await;
    concurrent_observations_are_all_kept(store).await;
}

async fn small_objects_are_found_and_read(store: &Store) {
    let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
    let digest = Digest::sha256_of(&bytes);
    assert_eq!(store.find(&digest).await.unwrap(), None);
    let put = store
        .put("application/x-test", bytes.clone())
        .await
        .unwrap();
    assert_eq!(put.media_type.as_deref(), Some("application/x-test"));
    assert_eq!(
        store
            .put("application/x-test", bytes.clone())
            .await
            .unwrap(),
        put
    );
    assert_eq!(store.find(&digest).await.unwrap().as_ref(), Some(&put));
    for _cached in [false, true] {
        assert_eq!(store.read_all(&put).await.unwrap(), bytes);
    }
}

async fn an_upload_is_invisible_until_its_record(store: &Store) {
    let layer = bytes_of(9 << 20, 77);
    let (source, digest) = (source_of(77), Digest::sha256_of(&layer));
    let mut upload = store.upload_layer(&generation(), &source, 0).await.unwrap();
    upload.write(layer.clone()).await.unwrap();
    upload.abort().await;
    assert_eq!(store.find(&digest).await.unwrap(), None);
    let unfinished = store
        .put_layer(&generation(), &layer_record(&source, &layer))
        .await;
    assert!(matches!(unfinished, Err(Error::Gone(_))), "{unfinished:?}");
    assert_eq!(store.layer(&generation(), &source).await.unwrap(), None);

    let mut upload = store.upload_layer(&generation(), &source, 0).await.unwrap();
    upload.write(layer.clone()).await.unwrap();
    upload.finish(&digest).await.unwrap();
    assert_eq!(store.find(&digest).await.unwrap(), None);
    store
        .put_layer(&generation(), &layer_record(&source, &layer))
        .await
        .unwrap();
    let object = store.find(&digest).await.unwrap().unwrap();
    assert_eq!(read(store, &object, 0..object.size).await.unwrap(), layer);
}

async fn ranges_are_exact(store: &Store, length: usize) {
    let layer = bytes_of(length, 5);
    put_layer(
        store,
        &source_of(5 + u32::try_from(length).unwrap()),
        &layer,
    )
    .await
    .unwrap();
    let object = store
        .find(&Digest::sha256_of(&layer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(object.size, length as u64);
    let ends = [
        0,
        1,
        length / 3,
        length / 2,
        length.saturating_sub(1),
        length,
    ];
    let bounds: BTreeSet<usize> = ends.into_iter().map(|end| end.min(length)).collect();
    for start in &bounds {
        for end in bounds.range(start..) {
            let bytes = read(store, &object, *start as u64..*end as u64)
                .await
                .unwrap();
            assert!(bytes == layer[*start..*end], "{start}..{end} of {length}");
        }
    }
    let beyond = store.read(&object, 0..object.size + 1).await.map(drop);
    assert!(matches!(beyond, Err(Error::OutOfBounds { .. })));
}

async fn records_are_read_back_under_their_own_generation_only(store: &Store) {
    let passed = LayerRecord {
        source: source_of(1001),
        outcome: LayerOutcome::PassedThrough {
            reason: "encrypted".to_owned(),
            limit: None,
        },
    };
    store.put_layer(&generation(), &passed).await.unwrap();
    assert_eq!(
        store.layer(&generation(), &passed.source).await.unwrap(),
        Some(passed.clone())
    );
    let elsewhere = Generation("g2".to_owned());
    assert_eq!(store.layer(&elsewhere, &passed.source).await.unwrap(), None);

    let image = put_image(store, 2000, 100_000).await.unwrap();
    assert_eq!(
        store.image(&generation(), &image.source).await.unwrap(),
        Some(image.clone())
    );
    assert_eq!(store.image(&elsewhere, &image.source).await.unwrap(), None);
    let layer = store
        .layer(&generation(), &image.source)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(layer, layer_record(&image.source, &bytes_of(100_000, 2000)));
}

async fn an_image_without_its_objects_is_not_committed(store: &Store) {
    let mut image = put_image(store, 3000, 10).await.unwrap();
    image.source = source_of(3001);
    image.objects.push(source_of(3002));
    let refused = store.put_image(&generation(), &image).await;
    assert!(
        matches!(&refused, Err(Error::Gone(digest)) if *digest == source_of(3002)),
        "{refused:?}"
    );
    assert_eq!(
        store.image(&generation(), &image.source).await.unwrap(),
        None
    );
}

async fn one_of_many_gets_the_lease(store: &Store) {
    let name = "layer g1-test sha256:../x";
    assert!(!store.is_leased(name).await.unwrap());
    let taken = join_all((0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.lease(name).await.unwrap() })
    }));
    let mut holders: Vec<_> = taken.await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(holders.len(), 1);
    assert!(store.lease("another").await.unwrap().is_some());
    let holder = holders.pop().unwrap();
    assert!(!holder.is_lost());
    assert!(store.is_leased(name).await.unwrap());
    holder.release().await;
    assert!(!store.is_leased(name).await.unwrap());
    let next = store.lease(name).await.unwrap();
    assert!(next.is_some());
}

async fn concurrent_observations_are_all_kept(store: &Store) {
    let image = Digest::sha256_of(b"configuration");
    assert!(store.knowledge(&image).await.unwrap().is_empty());
    let learn = |number: u32| {
        let path = format!("file{number}");
        let file = FileUse {
            layer: 0,
            path,
            extents: Extents::default(),
            after: Duration::ZERO,
        };
        let seen = Observation::new(vec![file]);
        let merge: Merge = Arc::new(move |known: &mut Knowledge| {
            known.observe(
                &Workload::default(),
                &number.to_string(),
                Source::Agents,
                &seen,
                1,
            );
        });
        let (store, image) = (store.clone(), image.clone());
        tokio::spawn(async move { store.learn(&image, &merge).await.unwrap() })
    };
    join_all((0..6).map(learn))
        .await
        .into_iter()
        .for_each(|ended| drop(ended.unwrap()));
    let known = store.knowledge(&image).await.unwrap();
    assert_eq!(known.profile(&Workload::default()).observers, 6);
    assert_eq!(known.len(), 6);

    let salts = join_all((0..4).map(|_| store.salt())).await;
    assert!(
        salts
            .windows(2)
            .all(|pair| pair[0].as_ref().unwrap() == pair[1].as_ref().unwrap())
    );
    assert_eq!(salts[0].as_ref().unwrap().as_bytes().len(), 32);

    let stack = |source: &str, layers: &[&str]| StackRecord {
        config: Digest::sha256_of(format!("configuration of {source}").as_bytes()),
        source: Digest::sha256_of(source.as_bytes()),
        layers: layers
            .iter()
            .map(|layer| Digest::sha256_of(layer.as_bytes()))
            .collect(),
    };
    let (first, second) = (stack("first", &["a", "b"]), stack("second", &["a", "b"]));
    assert_eq!(store.stack(&first.stack()).await.unwrap(), None);
    for record in [&first, &second, &first] {
        store.put_stack(record).await.unwrap();
    }
    assert_eq!(
        store.stack(&first.stack()).await.unwrap(),
        Some(first),
        "the first of the images with the same layers"
    );
}
