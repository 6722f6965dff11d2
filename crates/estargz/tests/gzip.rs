//! A reader of gzip layers, also in a build without default features, which compiles no C.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test by panicking"
)]

use estargz::archive::{Archive, Source};

const BLOB: &[u8] = include_bytes!("golden/estargz.blob");
const TOC: &str = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de";

fn archive() -> Archive {
    Archive::open(Source::bytes(BLOB), &TOC.parse().unwrap()).unwrap()
}

#[test]
fn a_gzip_layer_is_read_without_default_features() {
    let archive = archive();
    let reader = archive.entry("dir/hello.txt").unwrap().reader().unwrap();
    assert_eq!(std::io::read_to_string(reader).unwrap(), "hello\n");
}

#[test]
fn a_gzip_layer_is_verified_without_default_features() {
    let report = archive().verify().unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.entries, report.chunks), (18, 8));
}

#[cfg(not(feature = "zstd"))]
#[test]
fn a_zstd_layer_is_an_error_that_names_the_feature() {
    let blob: &[u8] = include_bytes!("golden/zstdchunked.blob");
    let error = Archive::open_unverified(Source::bytes(blob)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("the feature `zstd`"), "{cause}");
}
