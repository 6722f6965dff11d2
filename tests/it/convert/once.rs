//! No work is done twice: in one process, in two over one store, for two images, for a caller that
//! left.

use futures::future::join_all;
use starlift::store::{self, Store};

use super::bench::{Bench, config, timeless};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Gate;

#[tokio::test]
async fn a_hundred_callers_fetch_each_layer_once() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(1).layers(3).build();
    let records = join_all((0..100).map(|_| bench.convert(&image))).await;
    let first = records[0].as_ref().unwrap();
    assert!(
        records
            .iter()
            .all(|record| record.as_ref().unwrap() == first)
    );
    for blob in &image.blobs {
        assert_eq!(bench.fetched(blob), 1);
    }
}

#[tokio::test]
async fn two_processes_over_one_folder_convert_once() {
    let folder = tempfile::tempdir().unwrap();
    let store_config = store::Config {
        location: folder.path().display().to_string(),
        ..store::Config::default()
    };
    let bench = Bench::with(&config(), Store::open(&store_config).await.unwrap()).await;
    let theirs = Store::open(&store_config).await.unwrap();
    let other = starlift::convert::Converter::new(&config(), theirs).unwrap();
    let image = ImageBuilder::new(2).layers(2).build();
    let gate = Gate::new();
    bench.registry.on("/blobs/").skip(2).gate(&gate);
    let open = async {
        gate.reached(2).await;
        gate.open();
    };
    let (ours, theirs, ()) = tokio::join!(
        bench.convert(&image),
        bench.convert_with(&other, &image),
        open
    );
    assert_eq!(timeless(&ours.unwrap()), timeless(&theirs.unwrap()));
    for layer in image.layers() {
        assert_eq!(bench.fetched(layer), 1);
    }
}

#[tokio::test]
async fn a_layer_known_from_another_image_is_not_fetched() {
    let bench = Bench::new().await;
    let first = ImageBuilder::new(3).layers(2).build();
    bench.convert(&first).await.unwrap();
    let mut second = first.clone();
    second.bytes = with_history(&first);
    let record = bench.convert(&second).await.unwrap();
    bench.check_converted(&second, &record).await;
    for layer in first.layers() {
        assert_eq!(bench.fetched(layer), 1);
    }
}

#[tokio::test]
async fn a_layer_twice_in_one_image_is_converted_once() {
    let bench = Bench::new().await;
    let image = repeated(&ImageBuilder::new(4).layers(1).build());
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
    assert_eq!(bench.fetched(&image.layers()[0]), 1);
}

#[tokio::test]
async fn the_work_goes_on_when_the_caller_leaves() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(5).layers(1).build();
    let gate = Gate::new();
    bench.registry.on("/blobs/").skip(1).gate(&gate);
    tokio::select! {
        _ = bench.convert(&image) => panic!("the gate is closed"),
        () = gate.reached(1) => {}
    }
    gate.open();
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
    assert_eq!(
        bench.fetched(&image.layers()[0]),
        1,
        "the second caller joined the first one's work"
    );
}

#[tokio::test]
async fn a_recorded_image_is_answered_without_the_registry() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(6).build();
    let record = bench.convert(&image).await.unwrap();
    let bench = bench.restarted();
    bench.registry.forget_requests();
    assert_eq!(
        bench.converter.lookup(&image.digest()).await.unwrap(),
        Some(record.clone())
    );
    assert_eq!(bench.convert(&image).await.unwrap(), record);
    assert_eq!(bench.registry.seen().len(), 0);
}

/// Returns the same image under another manifest.
fn with_history(image: &Image) -> bytes::Bytes {
    let mut document = image.document();
    document["annotations"] = serde_json::json!({"org.example": "another"});
    document.to_string().into()
}

/// Returns an image of one layer that contains this layer twice.
fn repeated(image: &Image) -> Image {
    let mut config: serde_json::Value = serde_json::from_slice(&image.blobs[0]).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    diff_ids.push(diff_ids[0].clone());
    let config = bytes::Bytes::from(config.to_string());
    let mut document = image.document();
    document["config"]["digest"] = starlift::oci::Digest::sha256_of(&config).to_string().into();
    document["config"]["size"] = config.len().into();
    let layers = document["layers"].as_array_mut().unwrap();
    layers.push(layers[0].clone());
    let layer = &image.layers()[0];
    Image {
        bytes: document.to_string().into(),
        blobs: vec![config, layer.clone(), layer.clone()],
        ..image.clone()
    }
}
