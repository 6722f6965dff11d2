//! Blobs: whole, in ranges, over broken connections, behind redirects.

use std::ops::Range;

use bytes::Bytes;
use futures::TryStreamExt as _;
use starlift::oci::Digest;
use starlift::registry::{Config, Error};
use starlift::transport::Source;

use super::{app, at, config, read, source, source_of};
use crate::support::image::Random;
use crate::support::registry::{Gate, Lacks, Registry};

const SIZE: usize = 300_000;

async fn with_blob() -> (Registry, Bytes, Digest) {
    let registry = Registry::start().await;
    let blob = Bytes::from(Random::new(1).bytes(SIZE));
    let digest = registry.put_blob(blob.clone());
    (registry, blob, digest)
}

fn ranges_seen(registry: &Registry) -> Vec<String> {
    let header = |seen: &crate::support::registry::Seen| {
        seen.headers
            .get("range")
            .map_or("whole".to_owned(), |range| {
                range.to_str().unwrap().to_owned()
            })
    };
    registry.seen().iter().map(header).collect()
}

#[tokio::test]
async fn every_range_gives_the_same_bytes_as_a_slice() {
    let (registry, blob, digest) = with_blob().await;
    let source = source(&registry);
    let mut random = Random::new(2);
    for lacks_ranges in [false, true] {
        registry.lack(Lacks {
            ranges: lacks_ranges,
            ..Lacks::default()
        });
        for _ in 0..20 {
            let start = random.below(SIZE as u64);
            let end = start + random.below(SIZE as u64);
            let body = source
                .blob(&app(), &digest, Some(start..end))
                .await
                .unwrap();
            let cut = start..end.min(SIZE as u64);
            assert_eq!((body.blob_size, &body.range), (SIZE as u64, &cut));
            let (got, ended) = read(&source, &digest, Some(start..end)).await;
            ended.unwrap();
            let slice = usize::try_from(cut.start).unwrap()..usize::try_from(cut.end).unwrap();
            assert_eq!(got, blob[slice], "{start}..{end}");
        }
        let behind = source
            .blob(&app(), &digest, Some(SIZE as u64..u64::MAX))
            .await;
        assert!(
            matches!(behind, Err(Error::RangeNotSatisfiable { size: Some(size) }) if size == SIZE as u64)
        );
        let (got, ended) = read(&source, &digest, None).await;
        ended.unwrap();
        assert_eq!(got, blob);
    }
}

/// Reads the last bytes of a blob completely.
async fn tail(source: &Source, digest: &Digest, len: u64) -> (u64, Range<u64>, Vec<u8>) {
    let body = source.blob_tail(&app(), digest, len).await.unwrap();
    let got = body.stream.try_collect::<Vec<Bytes>>().await.unwrap();
    (body.blob_size, body.range, got.concat())
}

#[tokio::test]
async fn the_tail_of_a_blob_is_one_request() {
    let (registry, blob, digest) = with_blob().await;
    let source = source(&registry);
    let size = SIZE as u64;
    for len in [1, 51, size - 1, size, size + 1, u64::MAX] {
        let start = size.saturating_sub(len);
        let got = tail(&source, &digest, len).await;
        assert_eq!(
            got,
            (
                size,
                start..size,
                blob[usize::try_from(start).unwrap()..].to_vec()
            ),
            "{len}"
        );
    }
    let seen = ranges_seen(&registry);
    assert_eq!((seen.len(), seen[1].as_str()), (6, "bytes=-51"));
    assert_eq!(
        tail(&source, &digest, 0).await,
        (size, size..size, Vec::new())
    );
    registry
        .on("/blobs/")
        .method("GET")
        .times(1)
        .cut_after(1000);
    assert_eq!(tail(&source, &digest, 5000).await.2, blob[SIZE - 5000..]);
    assert_eq!(
        ranges_seen(&registry)[7..],
        [
            "bytes=-5000".to_owned(),
            format!("bytes={}-{}", SIZE - 4000, SIZE - 1)
        ]
    );
}

#[tokio::test]
async fn a_registry_that_does_not_do_suffixes_gives_the_tail_too() {
    let (registry, blob, digest) = with_blob().await;
    let source = source(&registry);
    let expected = (
        SIZE as u64,
        SIZE as u64 - 51..SIZE as u64,
        blob[SIZE - 51..].to_vec(),
    );
    let by_position = format!("bytes={}-{}", SIZE - 51, SIZE - 1);
    for status in [416, 400] {
        registry.forget_requests();
        registry
            .on("/blobs/")
            .method("GET")
            .times(1)
            .answer(status, &[]);
        assert_eq!(tail(&source, &digest, 51).await, expected);
        assert_eq!(
            ranges_seen(&registry),
            ["bytes=-51", "whole", &by_position],
            "{status}"
        );
    }
    registry.forget_requests();
    registry.lack(Lacks {
        suffix_ranges: true,
        ..Lacks::default()
    });
    assert_eq!(tail(&source, &digest, 51).await, expected);
    assert_eq!(ranges_seen(&registry), ["bytes=-51", &by_position]);
    registry.lack(Lacks {
        ranges: true,
        ..Lacks::default()
    });
    assert_eq!(tail(&source, &digest, 51).await, expected);
    assert_eq!(tail(&source, &digest, u64::MAX).await.2, blob);
    // Short and empty blobs, for which a suffix longer than the blob is rejected.
    registry.lack(Lacks::default());
    for bytes in ["", "short"] {
        let digest = registry.put_blob(bytes);
        registry.on("/blobs/").method("GET").times(1).answer(
            416,
            &[("content-range", &format!("bytes */{}", bytes.len()))],
        );
        assert_eq!(tail(&source, &digest, 51).await.2, bytes.as_bytes());
    }
    let absent = Digest::sha256_of(b"absent");
    assert!(matches!(
        source.blob_tail(&app(), &absent, 51).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn a_cut_body_goes_on_where_it_broke() {
    let (registry, blob, digest) = with_blob().await;
    for cut in [0, 1, 65_536, SIZE - 1] {
        for lacks_ranges in [false, true] {
            registry.heal();
            registry.forget_requests();
            registry.lack(Lacks {
                ranges: lacks_ranges,
                ..Lacks::default()
            });
            registry.on("/blobs/").times(1).cut_after(cut);
            let (got, ended) = read(&source(&registry), &digest, None).await;
            ended.unwrap();
            assert!(got == blob, "cut after {cut}");
            assert_eq!(registry.seen().len(), 2);
        }
    }
    assert_eq!(
        ranges_seen(&registry),
        [
            "whole".to_owned(),
            format!("bytes={}-{}", SIZE - 1, SIZE - 1)
        ]
    );
}

#[tokio::test]
async fn a_cut_range_goes_on_where_it_broke() {
    let (registry, blob, digest) = with_blob().await;
    registry.on("/blobs/").times(2).cut_after(1000);
    let (got, ended) = read(&source(&registry), &digest, Some(500..10_000)).await;
    ended.unwrap();
    assert_eq!(got, blob[500..10_000]);
    assert_eq!(
        ranges_seen(&registry),
        ["bytes=500-9999", "bytes=1500-9999", "bytes=2500-9999"]
    );
}

#[tokio::test]
async fn a_silent_body_is_a_broken_one() {
    let (registry, blob, digest) = with_blob().await;
    let gate = Gate::new();
    registry.on("/blobs/").times(1).gate_after(&gate, 1000);
    let config = Config {
        read_timeout: std::time::Duration::from_millis(100),
        ..config()
    };
    let (got, ended) = read(&source_of(config, at(registry.url())), &digest, None).await;
    ended.unwrap();
    assert_eq!(got, blob);
    assert_eq!(registry.seen().len(), 2);
    gate.open();
}

#[tokio::test]
async fn a_body_that_always_breaks_is_given_up() {
    let (registry, _, digest) = with_blob().await;
    registry.on("/blobs/").cut_after(10);
    let (got, ended) = read(&source(&registry), &digest, None).await;
    assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
    assert_eq!((got.len(), registry.seen().len()), (40, 4));
}

#[tokio::test]
async fn wrong_bytes_are_never_returned_completely() {
    let (registry, blob, digest) = with_blob().await;
    registry.on("/blobs/").wrong_bytes();
    let (got, ended) = read(&source(&registry), &digest, None).await;
    assert!(
        matches!(&ended, Err(Error::WrongDigest { expected }) if *expected == digest),
        "{ended:?}"
    );
    assert!(got.len() < blob.len());
    let (_, ended) = read(&source(&registry), &digest, Some(0..SIZE as u64)).await;
    assert!(
        matches!(ended, Err(Error::WrongDigest { .. })),
        "a range of the whole blob is verified too"
    );
}

#[tokio::test]
async fn the_size_is_known_without_the_bytes() {
    let (registry, _, digest) = with_blob().await;
    let source = source(&registry);
    assert_eq!(
        source.blob_size(&app(), &digest).await.unwrap(),
        SIZE as u64
    );
    assert_eq!(registry.count("GET", ""), 0);
    registry.on("/blobs/").method("HEAD").answer(405, &[]);
    assert_eq!(
        source.blob_size(&app(), &digest).await.unwrap(),
        SIZE as u64
    );
    assert_eq!(
        ranges_seen(&registry).last().map(String::as_str),
        Some("bytes=0-0")
    );
    let empty = registry.put_blob("");
    assert_eq!(source.blob_size(&app(), &empty).await.unwrap(), 0);
    let (got, ended) = read(&source, &empty, None).await;
    ended.unwrap();
    assert!(got.is_empty());
    let absent = Digest::sha256_of(b"absent");
    assert!(matches!(
        source.blob_size(&app(), &absent).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn the_size_of_a_body_without_a_length_is_requested() {
    let (registry, blob, digest) = with_blob().await;
    registry
        .on("/blobs/")
        .method("GET")
        .without_header("content-length");
    let body = source(&registry).blob(&app(), &digest, None).await.unwrap();
    assert_eq!(
        (body.blob_size, registry.count("HEAD", "")),
        (SIZE as u64, 1)
    );
    let (got, ended) = read(&source(&registry), &digest, None).await;
    ended.unwrap();
    assert_eq!(got, blob);
}

#[tokio::test]
async fn a_redirect_is_remembered_for_ranges_while_it_works() {
    let (registry, blob, digest) = with_blob().await;
    let bucket = Registry::start().await;
    bucket.put_blob(blob.clone());
    registry
        .on("/blobs/")
        .redirect(&format!("{}/elsewhere/{digest}", bucket.url()));
    let config = Config {
        allowed_hosts: vec![bucket.host().parse().unwrap()],
        ..config()
    };
    let source = source_of(config, at(registry.url()));
    for start in [0, 1000, 2000] {
        let (got, ended) = read(&source, &digest, Some(start..start + 10)).await;
        ended.unwrap();
        assert_eq!(got, blob[usize::try_from(start).unwrap()..][..10]);
    }
    assert_eq!(tail(&source, &digest, 10).await.2, blob[SIZE - 10..]);
    assert_eq!((registry.seen().len(), bucket.seen().len()), (1, 4));
    bucket.on("/elsewhere/").times(1).answer(403, &[]);
    let (_, ended) = read(&source, &digest, Some(0..10)).await;
    ended.unwrap();
    assert_eq!(
        (registry.seen().len(), bucket.seen().len()),
        (2, 6),
        "the registry is asked again when the signed URL has expired"
    );
}

#[tokio::test]
async fn a_blob_of_unknown_length_is_read_whole_and_in_parts() {
    let (registry, blob, digest) = with_blob().await;
    registry.lack(Lacks {
        ranges: true,
        ..Lacks::default()
    });
    registry.on("/blobs/").without_header("content-length");
    let source = source(&registry);
    let (got, ended) = read(&source, &digest, Some(100..200)).await;
    ended.unwrap();
    assert_eq!(got, blob[100..200]);
    registry.forget_requests();
    let (got, ended) = read(&source, &digest, None).await;
    ended.unwrap();
    assert_eq!(
        (got, registry.seen().len()),
        (blob.to_vec(), 1),
        "a verified size is remembered"
    );
    assert_eq!(tail(&source, &digest, 50).await.2, blob[SIZE - 50..]);
    assert_eq!(
        source.blob_size(&app(), &digest).await.unwrap(),
        SIZE as u64
    );
}

#[tokio::test]
async fn no_size_is_remembered_of_bytes_that_are_not_the_blobs() {
    let (registry, _, digest) = with_blob().await;
    registry.lack(Lacks {
        ranges: true,
        ..Lacks::default()
    });
    registry.on("/blobs/").without_header("content-length");
    registry.on("/blobs/").wrong_bytes();
    let size = source(&registry).blob_size(&app(), &digest).await;
    assert!(matches!(size, Err(Error::WrongDigest { .. })), "{size:?}");
}

#[tokio::test]
async fn get_decides_regardless_of_head() {
    let (registry, blob, digest) = with_blob().await;
    for status in [400, 403, 404, 405, 500] {
        registry.heal();
        registry.on("/blobs/").method("HEAD").answer(status, &[]);
        let source = source(&registry);
        assert_eq!(
            source.blob_size(&app(), &digest).await.unwrap(),
            SIZE as u64,
            "{status}"
        );
        let (got, ended) = read(&source, &digest, None).await;
        ended.unwrap();
        assert_eq!(got, blob, "{status}");
    }
    registry.heal();
    registry
        .on("/blobs/")
        .method("HEAD")
        .with_header("content-length", "7");
    let body = source(&registry).blob(&app(), &digest, None).await.unwrap();
    assert_eq!(body.blob_size, SIZE as u64);
}

#[tokio::test]
async fn wrong_ranges_are_cut_or_requested_again() {
    let (registry, blob, digest) = with_blob().await;
    for given in [
        "bytes 5-9/*",
        "bytes 7-11/300000",
        "bytes 9-13/*",
        "nonsense",
        "bytes 5-9/5",
        "items 5-9/300000",
    ] {
        registry.heal();
        registry
            .on("/blobs/")
            .method("GET")
            .times(1)
            .with_header("content-range", given);
        let (got, ended) = read(&source(&registry), &digest, Some(5..10)).await;
        ended.unwrap();
        assert_eq!(got, blob[5..10], "{given}");
    }
    registry.heal();
    registry
        .on("/blobs/")
        .method("GET")
        .times(1)
        .answer(400, &[]);
    let (got, ended) = read(&source(&registry), &digest, Some(5..10)).await;
    ended.unwrap();
    assert_eq!(got, blob[5..10], "without ranges");
}

#[tokio::test]
async fn a_label_of_an_encoding_spoils_no_blob() {
    let (registry, blob, digest) = with_blob().await;
    registry
        .on("/blobs/")
        .with_header("content-encoding", "gzip");
    let (got, ended) = read(&source(&registry), &digest, None).await;
    ended.unwrap();
    assert_eq!(got, blob);
}

#[tokio::test]
async fn a_body_that_breaks_again_and_again_goes_on_while_bytes_come() {
    let (registry, blob, digest) = with_blob().await;
    registry.on("/blobs/").cut_after(20_000);
    let (got, ended) = read(&source(&registry), &digest, None).await;
    ended.unwrap();
    assert_eq!(got, blob);
    assert_eq!(registry.seen().len(), SIZE.div_ceil(20_000));
}
