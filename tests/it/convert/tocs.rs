//! Stored layers of every format are read file by file.

use std::collections::BTreeMap;
use std::io::Read as _;

use bytesize::ByteSize;
use estargz::toc::Kind;
use starlift::convert::{Config, Format, Layout};
use starlift::oci::Digest;
use starlift::store::Store;
use starlift::tocs::{Error, Tocs};

use super::bench::{Bench, config, digest, inflate};
use crate::support::image::{Image, ImageBuilder};

/// Returns the regular files of a tar.
fn files(tar: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    let regular = entries.filter(|entry| entry.header().entry_type().is_file());
    let content = |mut entry: tar::Entry<'_, &[u8]>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path_bytes().into_owned(), bytes)
    };
    regular.map(content).collect()
}

/// Returns the digests of the converted layers.
async fn layers(bench: &Bench, image: &Image) -> Vec<Digest> {
    let converted = bench.converted(&bench.convert(image).await.unwrap()).await;
    converted["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| digest(&layer["digest"]))
        .collect()
}

#[tokio::test]
async fn files_of_every_format_are_read_from_the_store() {
    let image = ImageBuilder::new(20).layers(2).max_file(300_000).build();
    let base = Config {
        chunk_size: ByteSize::kib(64),
        ..config()
    };
    for config in [
        base.clone(),
        Config {
            layout: Layout::Classic,
            ..base.clone()
        },
        Config {
            min_chunk_size: ByteSize::kib(32),
            ..base.clone()
        },
        Config {
            format: Format::Zstdchunked,
            ..base.clone()
        },
        Config {
            format: Format::EstargzExternalToc,
            ..base
        },
    ] {
        let bench = Bench::with(&config, Store::in_memory()).await;
        let layers = layers(&bench, &image).await;
        let tocs = Tocs::new(bench.store.clone());
        for (layer, source) in layers.iter().zip(image.layers()) {
            let layer = tocs.layer(layer).await.unwrap().expect("it is a layer");
            let toc = tocs.toc(&layer).await.unwrap();
            let mut found = BTreeMap::new();
            for entry in toc
                .entries()
                .filter(|entry| entry.node.kind() == Kind::File)
            {
                let whole = tocs.read(&layer, entry.node, 0..u64::MAX).await.unwrap();
                let part = tocs.read(&layer, entry.node, 65_000..66_000).await.unwrap();
                let end = whole.len().min(66_000);
                assert_eq!(part, whole[65_000.min(end)..end], "{config:?}");
                found.insert(entry.path, whole);
            }
            // The landmark, which all formats add but the one that keeps diff-ids.
            found.remove(&b".no.prefetch.landmark"[..]);
            assert!(found == files(&inflate(source)), "{config:?}");
        }
    }
}

#[tokio::test]
async fn no_chunk_is_larger_than_configured() {
    const CHUNK: u64 = 64 << 10;
    let image = ImageBuilder::new(22).layers(1).max_file(300_000).build();
    for format in [Format::Estargz, Format::Zstdchunked] {
        let config = Config {
            chunk_size: ByteSize(CHUNK),
            format,
            ..config()
        };
        let bench = Bench::with(&config, Store::in_memory()).await;
        let layer = layers(&bench, &image).await.remove(0);
        let tocs = Tocs::new(bench.store.clone());
        let layer = tocs.layer(&layer).await.unwrap().unwrap();
        let toc = tocs.toc(&layer).await.unwrap();
        let files: Vec<_> = toc.entries().map(|entry| entry.node).collect();
        assert!(files.iter().any(|file| file.size() > 2 * CHUNK));
        for file in files {
            assert!(file.chunks().all(|chunk| chunk.size <= CHUNK), "{format:?}");
            let fewest = file.size().div_ceil(CHUNK);
            assert_eq!(file.chunks().count() as u64, fewest, "{format:?}");
        }
    }
}

#[tokio::test]
async fn only_converted_layers_have_a_toc_and_only_their_own() {
    let bench = Bench::new().await;
    let image = ImageBuilder::new(21).build();
    let layers = layers(&bench, &image).await;
    let tocs = Tocs::new(bench.store.clone());
    assert_eq!(tocs.layer(&image.digest()).await.unwrap(), None);
    let manifest = bench
        .converter
        .lookup(&image.digest())
        .await
        .unwrap()
        .unwrap()
        .converted;
    assert_eq!(
        tocs.layer(&manifest).await.unwrap(),
        None,
        "a manifest is not a layer"
    );
    let mut layer = tocs.layer(&layers[0]).await.unwrap().unwrap();
    layer.toc_digest = image.digest();
    let error = tocs.toc(&layer).await.unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error:?}");
}
