//! One layer from file to file: `convert --layer`, and `inspect` and `verify` of a blob.

use starlift::oci::Digest;

use super::Desk;
use crate::support::image::{Compression, ImageBuilder};

/// Returns a desk with `in.tar`, and `in.tar.gz` and `in.tar.zst` of the same tar.
fn desk() -> Desk {
    let desk = Desk::new();
    for (compression, name) in [
        (Compression::Plain, "in.tar"),
        (Compression::Gzip, "in.tar.gz"),
        (Compression::Zstd, "in.tar.zst"),
    ] {
        let image = ImageBuilder::new(5)
            .layers(1)
            .compression(compression)
            .build();
        std::fs::write(desk.path(name), &image.layers()[0]).unwrap();
    }
    desk
}

#[tokio::test]
async fn every_compression_gives_the_same_blob() {
    let desk = desk();
    let mut digests = Vec::new();
    for source in ["in.tar", "in.tar.gz", "in.tar.zst"] {
        let made = desk
            .run(&["convert", "--layer", "--json", source, "out"])
            .await
            .json();
        let blob = std::fs::read(desk.path("out")).unwrap();
        assert_eq!(made["digest"], Digest::sha256_of(&blob).to_string());
        assert_eq!(made["size"], blob.len());
        digests.push(made["digest"].clone());
    }
    assert_eq!((&digests[0], &digests[0]), (&digests[1], &digests[2]));
    assert_eq!(desk.names(), ["in.tar", "in.tar.gz", "in.tar.zst", "out"]);
}

#[tokio::test]
async fn the_toc_is_printed_as_it_is_hashed() {
    let desk = desk();
    let made = desk
        .run(&["convert", "--layer", "--json", "in.tar", "out"])
        .await
        .json();
    let toc = desk.run(&["inspect", "--toc", "out"]).await;
    assert_eq!(
        made["toc_digest"],
        Digest::sha256_of(&toc.stdout).to_string()
    );
    let report = desk.run(&["inspect", "--json", "out"]).await.json();
    assert_eq!(
        (&report["kind"], &report["toc"]["digest"]),
        (&"estargz".into(), &made["toc_digest"])
    );
}

#[tokio::test]
async fn every_format_verifies_against_its_source() {
    for flags in [
        &[][..],
        &["--zstdchunked"],
        &["--fast"],
        &["--chunk-size", "1KiB"],
        &["--min-chunk-size", "64KiB"],
        &["--layout", "classic"],
    ] {
        let desk = desk();
        desk.run(&[&["convert", "--layer", "in.tar.gz", "out"], flags].concat())
            .await
            .text();
        desk.run(&["verify", "out", "--against", "in.tar.zst"])
            .await
            .text();
    }
    let desk = desk();
    desk.run(&["convert", "--layer", "in.tar.gz", "out", "--external-toc"])
        .await
        .text();
    desk.run(&[
        "verify",
        "out",
        "--external-toc",
        "out.toc",
        "--against",
        "in.tar",
    ])
    .await
    .text();
}

#[tokio::test]
async fn a_changed_byte_is_found() {
    let desk = desk();
    desk.run(&["convert", "--layer", "in.tar", "out"])
        .await
        .text();
    let mut blob = std::fs::read(desk.path("out")).unwrap();
    blob[700] ^= 0x40;
    std::fs::write(desk.path("out"), blob).unwrap();
    let ran = desk.run(&["verify", "--json", "out"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let outcome: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(outcome["ok"], false);
    assert!(
        !outcome["parts"][0]["findings"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn verify_against_another_layer_fails() {
    let desk = desk();
    desk.run(&["convert", "--layer", "in.tar", "out"])
        .await
        .text();
    std::fs::write(
        desk.path("other.tar"),
        ImageBuilder::new(6)
            .layers(1)
            .compression(Compression::Plain)
            .build()
            .layers()[0]
            .clone(),
    )
    .unwrap();
    assert_eq!(
        desk.run(&["verify", "out", "--against", "other.tar"])
            .await
            .code,
        Some(1)
    );
}

#[tokio::test]
async fn a_failed_conversion_of_a_layer_leaves_no_files() {
    let desk = desk();
    let whole = std::fs::read(desk.path("in.tar.gz")).unwrap();
    std::fs::write(desk.path("cut.tar.gz"), &whole[..whole.len() / 2]).unwrap();
    let before = desk.names();
    for words in [
        &["convert", "--layer", "cut.tar.gz", "out"][..],
        &["convert", "--layer", "missing", "out"],
        &["convert", "--layer", "in.tar", "out", "--level", "13"],
        &[
            "convert",
            "--layer",
            "in.tar",
            "out",
            "--chunk-size",
            "lots",
        ],
    ] {
        desk.run(words).await.error();
    }
    assert_eq!(desk.names(), before);
}

#[tokio::test]
async fn level_and_output_name_of_the_reference_are_understood() {
    let desk = desk();
    let ours = desk
        .run(&[
            "convert",
            "--layer",
            "--json",
            "in.tar",
            "out",
            "--level",
            "9",
            "--chunk-size",
            "1024",
        ])
        .await;
    let flags = [
        "--estargz",
        "--estargz-compression-level=9",
        "--estargz-chunk-size=1024",
    ];
    let theirs = desk
        .run(
            &[
                &["convert", "--layer", "--json", "in.tar", "out"][..],
                &flags,
            ]
            .concat(),
        )
        .await;
    assert_eq!(ours.json(), theirs.json());
}

#[tokio::test]
async fn a_record_puts_files_first() {
    let desk = desk();
    let record = "{\"path\":\"layer0/file7\"}\n{\"path\":\"layer0/missing\"}\n";
    std::fs::write(desk.path("record"), record).unwrap();
    let ran = desk
        .run(&[
            "convert",
            "--layer",
            "in.tar.gz",
            "out",
            "--estargz-record-in",
            "record",
        ])
        .await;
    assert!(ran.stderr.contains("layer0/missing"), "{}", ran.stderr);
    ran.text();
    let toc: serde_json::Value =
        serde_json::from_str(&desk.run(&["inspect", "--toc", "out"]).await.text()).unwrap();
    let names: Vec<_> = toc["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names[..3],
        ["layer0/", "layer0/file7", ".prefetch.landmark"]
    );
    desk.run(&["verify", "out"]).await.text();
}
