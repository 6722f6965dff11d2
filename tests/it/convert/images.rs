//! The contents of converted images.

use bytesize::ByteSize;
use serde_json::json;
use starlift::convert::{Config, Format, State};
use starlift::oci::{Digest, media_type};
use starlift::store::Store;

use super::bench::{Bench, config, digest, inflate, timeless};
use crate::support::image::{Compression, ImageBuilder};

#[tokio::test]
async fn every_kind_of_layer_becomes_estargz_of_its_family() {
    let bench = Bench::new().await;
    let compressions = [Compression::Plain, Compression::Gzip, Compression::Zstd];
    for (seed, compression) in compressions.into_iter().enumerate() {
        let builder = ImageBuilder::new(seed as u64)
            .layers(3)
            .compression(compression);
        for (image, layer_type) in [
            (builder.clone().build(), media_type::OCI_LAYER_GZIP),
            (builder.docker().build(), media_type::DOCKER_LAYER_GZIP),
        ] {
            let record = bench.convert(&image).await.unwrap();
            bench.check_converted(&image, &record).await;
            assert_eq!(record.media_type, image.media_type);
            let converted = bench.converted(&record).await;
            assert_eq!(converted["mediaType"], image.media_type);
            assert_eq!(
                converted["annotations"]["dev.starlift.source.digest"],
                image.digest().to_string()
            );
            for layer in converted["layers"].as_array().unwrap() {
                assert_eq!(layer["mediaType"], layer_type);
            }
        }
    }
}

#[tokio::test]
async fn everything_of_the_configuration_but_diff_ids_stays() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(1).build();
    let converted = bench.converted(&bench.convert(&image).await.unwrap()).await;
    let mut config = bench
        .document(&digest(&converted["config"]["digest"]))
        .await;
    let mut source: serde_json::Value = serde_json::from_slice(&image.blobs[0]).unwrap();
    assert_ne!(config["rootfs"]["diff_ids"], source["rootfs"]["diff_ids"]);
    config["rootfs"]["diff_ids"] = json!([]);
    source["rootfs"]["diff_ids"] = json!([]);
    assert_eq!(config.to_string(), source.to_string());
}

#[tokio::test]
async fn a_converted_image_does_not_depend_on_the_number_of_threads() {
    let image = ImageBuilder::new(2).layers(3).max_file(200_000).build();
    let mut records = Vec::new();
    for threads in [1, 3] {
        let config = Config {
            threads: std::num::NonZeroUsize::new(threads),
            ..config()
        };
        let bench = Bench::with(&config, Store::in_memory()).await;
        records.push(bench.convert(&image).await.unwrap());
    }
    assert_eq!(timeless(&records[0]), timeless(&records[1]));
}

#[tokio::test]
async fn a_layer_larger_than_every_channel_goes_through() {
    let config = Config {
        memory: ByteSize::mib(32),
        chunk_size: ByteSize::kib(64),
        ..config()
    };
    let bench = Bench::with(&config, Store::in_memory()).await;
    let image = ImageBuilder::new(3)
        .layers(2)
        .files(20)
        .max_file(2_000_000)
        .build();
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
}

#[tokio::test]
async fn an_external_toc_keeps_diff_ids_and_has_an_image_of_its_own() {
    let config = Config {
        format: Format::EstargzExternalToc,
        ..config()
    };
    let bench = Bench::with(&config, Store::in_memory()).await;
    let image = ImageBuilder::new(4).layers(2).build();
    let record = bench.convert(&image).await.unwrap();
    let converted = bench.converted(&record).await;
    assert_eq!(converted["config"], image.document()["config"]);
    let tocs = bench.toc_image(&record).await.unwrap();
    let tocs = bench.document(&tocs.digest).await;
    for (layer, source) in converted["layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(image.layers())
    {
        assert_eq!(
            inflate(&bench.bytes(&digest(&layer["digest"])).await),
            inflate(source)
        );
        let names_it = |toc: &&serde_json::Value| {
            toc["annotations"]["containerd.io/snapshot/stargz/layer.digest"] == layer["digest"]
        };
        let toc = tocs["layers"]
            .as_array()
            .unwrap()
            .iter()
            .find(names_it)
            .expect("a TOC of the layer");
        assert!(!inflate(&bench.bytes(&digest(&toc["digest"])).await).is_empty());
    }
    assert_eq!(
        bench.document(&digest(&tocs["config"]["digest"])).await,
        json!({})
    );
}

#[tokio::test]
async fn an_image_without_external_tocs_has_no_image_of_them() {
    let bench = Bench::new().await;
    let record = bench.convert(&ImageBuilder::new(5).build()).await.unwrap();
    assert_eq!(bench.toc_image(&record).await, None);
}

#[tokio::test]
async fn zstd_chunked_is_zstd_with_its_annotations() {
    let config = Config {
        format: Format::Zstdchunked,
        ..config()
    };
    let bench = Bench::with(&config, Store::in_memory()).await;
    let image = ImageBuilder::new(6).docker().build();
    let record = bench.convert(&image).await.unwrap();
    bench.check_converted(&image, &record).await;
    assert_eq!(
        record.media_type,
        media_type::OCI_MANIFEST,
        "clients accept no zstd in Docker manifests"
    );
    let layer = &bench.converted(&record).await["layers"][0];
    assert_eq!(layer["mediaType"], media_type::OCI_LAYER_ZSTD);
    let annotation = |name: &str| layer["annotations"][name].as_str().map(str::to_owned);
    let checksum = annotation("io.github.containers.zstd-chunked.manifest-checksum").unwrap();
    let position = annotation("io.github.containers.zstd-chunked.manifest-position").unwrap();
    let numbers: Vec<usize> = position
        .split(':')
        .map(|number| number.parse().unwrap())
        .collect();
    let blob = bench.bytes(&digest(&layer["digest"])).await;
    assert_eq!(
        Digest::sha256_of(&blob[numbers[0]..numbers[0] + numbers[1]]).to_string(),
        checksum
    );
}

#[tokio::test]
async fn the_status_reports_finished_conversions_and_their_bytes() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(7).layers(2).build();
    let record = bench.convert(&image).await.unwrap();
    let conversions = bench.converter.status();
    assert_eq!(conversions.len(), 1);
    assert_eq!(conversions[0].state, State::Converted);
    assert_eq!(conversions[0].converted, Some(record.converted));
    for (layer, source) in conversions[0].layers.iter().zip(image.layers()) {
        assert_eq!(
            (layer.done, layer.total),
            (source.len() as u64, source.len() as u64)
        );
    }
}
