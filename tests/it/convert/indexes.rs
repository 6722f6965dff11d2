//! Indexes keep every child: converted children are replaced, all others stay in place and
//! unchanged.

use serde_json::Value;
use starlift::oci::Digest;

use super::bench::{Bench, digest};
use crate::support::image::{Image, ImageBuilder};

fn image(seed: u64, architecture: &str) -> Image {
    ImageBuilder::new(seed)
        .layers(1)
        .architecture(architecture)
        .build()
}

/// Returns an index of amd64, arm64 and s390x, with an attestation for each.
fn index() -> Image {
    let images = vec![
        ("linux/amd64", image(1, "amd64")),
        ("linux/arm64", image(2, "arm64")),
        ("linux/s390x", image(3, "s390x")),
    ];
    Image::index(images, true)
}

fn children(document: &Value) -> &Vec<Value> {
    document["manifests"].as_array().unwrap()
}

#[tokio::test]
async fn wanted_platforms_are_replaced_and_attestations_follow() {
    let bench = Bench::new().await;
    let index = index();
    let record = bench.convert(&index).await.unwrap();
    let converted = bench.converted(&record).await;
    let source = index.document();
    assert_eq!(children(&converted).len(), children(&source).len());
    for place in 0..2 {
        let child = &children(&converted)[place];
        let child_record = bench
            .converter
            .lookup(&index.children[place].digest())
            .await
            .unwrap()
            .unwrap();
        bench
            .check_converted(&index.children[place], &child_record)
            .await;
        assert_eq!(digest(&child["digest"]), child_record.converted);
        assert_eq!(child["size"], child_record.size);
        assert_eq!(child["platform"], children(&source)[place]["platform"]);
        let attestation = &children(&converted)[place + 3];
        assert_eq!(
            attestation["digest"],
            children(&source)[place + 3]["digest"]
        );
        assert_eq!(
            attestation["annotations"]["vnd.docker.reference.digest"],
            child["digest"]
        );
    }
    assert_eq!(children(&converted)[2], children(&source)[2]);
    assert_eq!(children(&converted)[5], children(&source)[5]);
    let platforms: Vec<_> = record.platforms.iter().map(ToString::to_string).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(bench.fetched(&index.children[2].layers()[0]), 0);
}

#[tokio::test]
async fn a_pulled_platform_joins_the_index_and_older_conversions_stay_readable() {
    let bench = Bench::new().await;
    let index = index();
    let before = bench.convert(&index).await.unwrap();
    let pulled = bench.convert(&index.children[2]).await.unwrap();
    let after = bench.convert(&index).await.unwrap();
    assert_ne!(before.converted, after.converted);
    let converted = bench.converted(&after).await;
    assert_eq!(digest(&children(&converted)[2]["digest"]), pulled.converted);
    assert_eq!(after.platforms.len(), 3);
    bench.bytes(&before.converted).await;
    assert!(
        after.objects.contains(&before.converted),
        "the sweep keeps the earlier conversion"
    );
    let bench = bench.restarted();
    assert_eq!(
        bench.converter.lookup(&index.digest()).await.unwrap(),
        Some(after)
    );
}

#[tokio::test]
async fn a_child_that_fails_leaves_the_others_and_is_tried_again() {
    let bench = Bench::new().await;
    let index = index();
    let layer = format!(
        "/blobs/{}",
        Digest::sha256_of(&index.children[1].layers()[0])
    );
    bench.registry.on(&layer).answer(503, &[]);
    let record = bench.convert(&index).await.unwrap();
    let converted = bench.converted(&record).await;
    assert_ne!(children(&converted)[0], children(&index.document())[0]);
    assert_eq!(children(&converted)[1], children(&index.document())[1]);
    let entry = record
        .passed_through
        .iter()
        .find(|entry| entry.digest == index.children[1].digest())
        .unwrap();
    assert!(
        entry.reason.starts_with("not converted for now"),
        "{}",
        entry.reason
    );
    assert_eq!(
        bench.converter.lookup(&index.digest()).await.unwrap(),
        None,
        "the incomplete conversion is not recorded"
    );
    bench.registry.heal();
    let bench = bench.restarted();
    let record = bench.convert(&index).await.unwrap();
    assert_eq!(record.platforms.len(), 2);
    assert_eq!(bench.fetched(&index.children[0].layers()[0]), 1);
}

#[tokio::test]
async fn an_index_fails_if_all_its_children_fail() {
    let bench = Bench::new().await;
    let index = index();
    bench.registry.on("/blobs/").answer(503, &[]);
    assert!(bench.convert(&index).await.is_err());
    assert_eq!(bench.converter.lookup(&index.digest()).await.unwrap(), None);
}

#[tokio::test]
async fn an_index_of_other_platforms_passes_through_until_one_is_pulled() {
    let bench = Bench::new().await;
    let index = Image::index(vec![("linux/s390x", image(3, "s390x"))], false);
    assert_eq!(
        bench.convert(&index).await.unwrap().converted,
        index.digest()
    );
    bench.convert(&index.children[0]).await.unwrap();
    let record = bench.convert(&index).await.unwrap();
    assert_eq!(children(&bench.converted(&record).await).len(), 1);
}

#[tokio::test]
async fn indexes_within_an_index_are_converted_with_it() {
    let bench = Bench::new().await;
    let nested = Image::index(vec![("linux/amd64", image(1, "amd64"))], true);
    let outer = Image::index(vec![("linux/amd64", nested.clone())], false);
    let record = bench.convert(&outer).await.unwrap();
    let inner = bench
        .converter
        .lookup(&nested.digest())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        digest(&children(&bench.converted(&record).await)[0]["digest"]),
        inner.converted
    );
    let leaf = bench
        .converter
        .lookup(&nested.children[0].digest())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        digest(&children(&bench.converted(&inner).await)[0]["digest"]),
        leaf.converted
    );
    assert!(
        leaf.objects
            .iter()
            .all(|object| record.objects.contains(object)),
        "the sweep keeps the objects of the inner index"
    );
}

#[tokio::test]
async fn a_sparse_index_is_converted_as_far_as_it_goes() {
    let bench = Bench::new().await;
    let index = index();
    bench
        .registry
        .on(&format!("/manifests/{}", index.children[1].digest()))
        .answer(404, &[]);
    let record = bench.convert(&index).await.unwrap();
    assert_eq!(record.platforms, ["linux/amd64".parse().unwrap()]);
    let entry = record
        .passed_through
        .iter()
        .find(|entry| entry.digest == index.children[1].digest())
        .unwrap();
    assert_eq!(entry.reason, "not in the upstream");
    assert_eq!(
        bench.converter.lookup(&index.digest()).await.unwrap(),
        Some(record),
        "the conversion is recorded"
    );
}
