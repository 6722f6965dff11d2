//! Blobs, whole and in ranges, from the store and from the upstream.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use reqwest::Method;
use starlift::oci::Digest;
use starlift::store::Holder;

use super::{Answer, Stage};

/// Returns a blob of the store and one of the upstream. Answers must not differ between them.
async fn blobs(stage: &Stage) -> Vec<(String, Bytes)> {
    let ours = held(stage, "app", pattern(9000, 7)).await;
    let theirs = stage.registry.put_blob(pattern(120_000, 11));
    vec![
        (path(&ours), pattern(9000, 7)),
        (path(&theirs), pattern(120_000, 11)),
    ]
}

/// Stores a blob, and links a repository of `local` to it.
async fn held(stage: &Stage, repository: &str, bytes: Bytes) -> Digest {
    let object = stage.store.put("application/octet-stream", bytes).await;
    let digest = object.unwrap().digest;
    let holder = Holder::repository("local", &repository.parse().unwrap());
    stage.store.link(&holder, &digest, None).await.unwrap();
    digest
}

fn pattern(length: u32, step: u32) -> Bytes {
    (0..length)
        .map(|at| u8::try_from(at * step % 251).unwrap())
        .collect()
}

fn path(digest: &Digest) -> String {
    format!("/v2/local/app/blobs/{digest}")
}

async fn range(stage: &Stage, path: &str, range: &str) -> Answer {
    stage.ask(Method::GET, path, &[("range", range)]).await
}

/// Returns the parts of a multipart answer, as offset and bytes.
fn parts(answer: &Answer) -> Vec<(usize, Bytes)> {
    let content_type = answer.header("content-type");
    let Some(boundary) = content_type.strip_prefix("multipart/byteranges; boundary=") else {
        let first = answer
            .header("content-range")
            .strip_prefix("bytes ")
            .unwrap()
            .split('-')
            .next()
            .unwrap();
        return vec![(first.parse().unwrap(), answer.body.clone())];
    };
    assert!(boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let (delimiter, mut rest, mut parts) =
        (format!("--{boundary}\r\n"), answer.body.clone(), Vec::new());
    while rest.starts_with(delimiter.as_bytes()) {
        let head_end = rest
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(rest[..head_end].to_vec()).unwrap();
        let (first, last) = head
            .split("bytes ")
            .nth(1)
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .split_once('-')
            .unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let (start, end) = (head_end + 4, head_end + 4 + last + 1 - first);
        parts.push((first, rest.slice(start..end)));
        rest = rest.slice(end + 2..);
    }
    assert_eq!(rest, format!("--{boundary}--\r\n"));
    parts
}

#[tokio::test]
async fn a_whole_blob_is_described_alike_by_get_and_head() {
    let stage = Stage::new().await;
    for (path, bytes) in blobs(&stage).await {
        let answer = stage.get_and_head(&path, &[]).await;
        assert_eq!((answer.status, &answer.body), (200, &bytes));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("content-encoding"), "");
        assert!(path.ends_with(answer.digest()));
        let encoded = stage
            .ask(
                Method::GET,
                &path,
                &[("accept-encoding", "zstd,gzip,deflate")],
            )
            .await;
        assert_eq!(
            (encoded.header("content-encoding"), &encoded.body),
            ("", &bytes)
        );
    }
}

#[tokio::test]
async fn every_form_of_range_gives_its_slice() {
    let stage = Stage::new().await;
    for (path, bytes) in blobs(&stage).await {
        let length = bytes.len();
        for (header, expected) in [
            ("bytes=0-1".to_owned(), 0..2),
            ("bytes=100-".to_owned(), 100..length),
            ("bytes=-47".to_owned(), length - 47..length),
            (format!("bytes=5-{}", length + 10), 5..length),
            (format!("bytes=0-{}", length - 1), 0..length),
        ] {
            let answer = range(&stage, &path, &header).await;
            assert_eq!(answer.status, 206, "{header}");
            assert_eq!(answer.body, bytes.slice(expected.clone()), "{header}");
            let content_range = format!("bytes {}-{}/{length}", expected.start, expected.end - 1);
            assert_eq!(answer.header("content-range"), content_range);
            assert_eq!(answer.header("content-length"), expected.len().to_string());
        }
    }
}

#[tokio::test]
async fn random_sets_of_ranges_give_the_bytes_of_a_naive_reader() {
    let stage = Stage::new().await;
    let mut runner = TestRunner::deterministic();
    for (path, bytes) in blobs(&stage).await {
        for _ in 0..40 {
            let strategy = prop::collection::vec((0..bytes.len(), 0_usize..3000), 1..12);
            let asked = strategy.new_tree(&mut runner).unwrap().current();
            let header: Vec<_> = asked
                .iter()
                .map(|(first, more)| format!("{first}-{}", first + more))
                .collect();
            let answer = range(&stage, &path, &format!("bytes={}", header.join(","))).await;
            assert_eq!(answer.status, 206);
            let mut covered = vec![false; bytes.len()];
            for (first, part) in parts(&answer) {
                assert_eq!(part, bytes.slice(first..first + part.len()));
                covered[first..first + part.len()].fill(true);
            }
            for (at, is_covered) in covered.into_iter().enumerate() {
                let is_asked = asked
                    .iter()
                    .any(|(first, more)| (*first..=first + more).contains(&at));
                assert_eq!(is_covered, is_asked, "byte {at} of {header:?}");
            }
        }
    }
}

#[tokio::test]
async fn many_parts_of_a_cold_blob_cost_few_upstream_requests() {
    let stage = Stage::with(|config| config.max_cold_reads = 3).await;
    let digest = stage.registry.put_blob(pattern(4_000_000, 3));
    let asked: Vec<_> = (0..60)
        .map(|at| format!("{}-{}", at * 66_000, at * 66_000 + 40_000))
        .collect();
    let answer = range(
        &stage,
        &path(&digest),
        &format!("bytes={}", asked.join(",")),
    )
    .await;
    assert_eq!((answer.status, parts(&answer).len()), (206, 60));
    assert!(stage.registry.count("GET", "/blobs/") <= 3);
}

#[tokio::test]
async fn far_parts_of_a_cold_blob_do_not_cost_the_upstream_all_of_it() {
    let stage = Stage::new().await;
    let digest = stage.registry.put_blob(pattern(4_000_000, 3));
    let far = |count: usize| {
        let asked: Vec<_> = (0..count)
            .map(|at| format!("{0}-{0}", at * 66_000))
            .collect();
        format!("bytes={}", asked.join(","))
    };
    let few = range(&stage, &path(&digest), &far(32)).await;
    assert_eq!((few.status, parts(&few).len()), (206, 32));
    let asked = stage
        .registry
        .seen()
        .into_iter()
        .filter_map(|seen| Some(seen.headers.get("range")?.clone()));
    for range in asked {
        let range = range
            .to_str()
            .unwrap()
            .trim_start_matches("bytes=")
            .to_owned();
        let (first, last) = range.split_once('-').unwrap();
        let length = last.parse::<u64>().unwrap() + 1 - first.parse::<u64>().unwrap();
        assert!(
            length < 4 * few.body.len() as u64 / 32,
            "{range} for one byte"
        );
    }
    let before = stage.registry.count("GET", "/blobs/");
    let many = range(&stage, &path(&digest), &far(60)).await;
    assert_eq!((many.status, many.code().as_str()), (400, "UNSUPPORTED"));
    assert_eq!(
        stage.registry.count("GET", "/blobs/"),
        before,
        "the upstream was not read"
    );
}

#[tokio::test]
async fn an_upstream_without_ranges_is_no_excuse() {
    let stage = Stage::new().await;
    stage.registry.lack(crate::support::registry::Lacks {
        ranges: true,
        ..Default::default()
    });
    let bytes = pattern(5000, 5);
    let path = path(&stage.registry.put_blob(bytes.clone()));
    let answer = range(&stage, &path, "bytes=1000-1009").await;
    assert_eq!((answer.status, answer.body), (206, bytes.slice(1000..1010)));
    let answer = range(&stage, &path, "bytes=0-0,4000-4009").await;
    assert_eq!(
        parts(&answer),
        [(0, bytes.slice(0..1)), (4000, bytes.slice(4000..4010))]
    );
}

#[tokio::test]
async fn an_unsatisfiable_range_is_416_and_a_malformed_one_is_ignored() {
    let stage = Stage::new().await;
    for (path, bytes) in blobs(&stage).await {
        let length = bytes.len();
        let outside = range(&stage, &path, &format!("bytes={length}-")).await;
        assert_eq!(outside.status, 416);
        assert_eq!(outside.header("content-range"), format!("bytes */{length}"));
        for header in ["bytes=5-2", "bytes=a-b", "lines=0-1", "bytes="] {
            let answer = range(&stage, &path, header).await;
            assert_eq!((answer.status, &answer.body), (200, &bytes), "{header}");
        }
    }
}

#[tokio::test]
async fn more_ranges_than_allowed_give_the_whole() {
    let stage = Stage::with(|config| config.max_ranges = 2).await;
    let (path, bytes) = blobs(&stage).await.remove(0);
    assert_eq!(range(&stage, &path, "bytes=0-0,2-2").await.status, 206);
    let answer = range(&stage, &path, "bytes=0-0,2-2,4-4").await;
    assert_eq!((answer.status, answer.body), (200, bytes));
}

#[tokio::test]
async fn if_range_guards_the_parts() {
    let stage = Stage::new().await;
    let (path, _) = blobs(&stage).await.remove(0);
    let etag = stage.head(&path).await.header("etag").to_owned();
    for (guard, status) in [
        (etag.as_str(), 206),
        ("\"other\"", 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ] {
        let answer = stage
            .ask(
                Method::GET,
                &path,
                &[("range", "bytes=0-1"), ("if-range", guard)],
            )
            .await;
        assert_eq!(answer.status, status, "{guard}");
    }
    let known = stage
        .ask(Method::GET, &path, &[("if-none-match", &etag)])
        .await;
    assert_eq!(known.status, 304);
}

#[tokio::test]
async fn a_blob_with_wrong_bytes_never_arrives_whole() {
    let stage = Stage::new().await;
    let digest = stage.registry.put_blob(pattern(50_000, 13));
    stage.registry.on("/blobs/").method("GET").wrong_bytes();
    let response = stage
        .request(Method::GET, &path(&digest))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err(), "the answer must break off");
}

#[tokio::test]
async fn a_stored_blob_needs_no_upstream() {
    let stage = Stage::new().await;
    let ours = held(&stage, "anything", pattern(100, 1)).await;
    let answer = stage.get(&format!("/v2/local/anything/blobs/{ours}")).await;
    assert_eq!((answer.status, answer.body), (200, pattern(100, 1)));
    assert_eq!(stage.registry.seen().len(), 0);
}
