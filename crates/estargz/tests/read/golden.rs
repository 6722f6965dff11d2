//! Blobs made by `ctr-remote` 0.12 as in golden/README.md.

use std::io::Read;

use estargz::footer::{self, Footer, Form};
use estargz::toc::{Kind, Limits, Toc, TocWriter, UnverifiedToc};
use estargz::verify::{self, Expected};
use estargz::{Digest, Entry};

const ESTARGZ: &[u8] = include_bytes!("../golden/estargz.blob");
const ZSTD_CHUNKED: &[u8] = include_bytes!("../golden/zstdchunked.blob");
const SOURCE: &[u8] = include_bytes!("../golden/source.tar.gz");

/// Annotations of the layers, `containerd.io/snapshot/stargz/toc.digest`.
const ESTARGZ_TOC: &str = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de";
const ZSTD_CHUNKED_TOC: &str =
    "sha256:73ec00f3ce319e0212e4237d298a9a333c3a232d13c5d7abb713f513d611048a";
/// `io.containers.zstd-chunked.manifest-checksum`.
const ZSTD_CHUNKED_CHECKSUM: &str =
    "sha256:16000f74295203a1f2adc4d419025790c15a6d36906c3d4c1f91852c7b35260b";

fn cut(blob: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn unverified(blob: &[u8]) -> (Footer, UnverifiedToc) {
    let size = blob.len() as u64;
    let footer = Footer::parse(cut(blob, footer::tail_range(size)), size).unwrap();
    let toc = UnverifiedToc::parse(
        cut(blob, footer.toc_range().unwrap()),
        &footer,
        &Limits::default(),
    )
    .unwrap();
    (footer, toc)
}

fn read(toc: &Toc, blob: &[u8], path: &str) -> Vec<u8> {
    let chunks = toc.lookup(path).unwrap().chunks();
    chunks
        .flat_map(|chunk| chunk.decode(cut(blob, chunk.range.clone())).unwrap())
        .collect()
}

/// Every file of the source has the same content in the blob, and no file is missing.
fn assert_holds_the_source(toc: &Toc, blob: &[u8]) {
    let mut source = tar::Archive::new(flate2::read::GzDecoder::new(SOURCE));
    let mut files = 0;
    for entry in source.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let path = path.to_str().unwrap();
        let node = toc
            .lookup(path)
            .unwrap_or_else(|| panic!("{path} is missing"));
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!(read(toc, blob, path), content, "{path}");
            files += 1;
        }
        if !entry.header().entry_type().is_hard_link() {
            assert_eq!(
                u32::from(node.mode()),
                entry.header().mode().unwrap(),
                "{path}"
            );
        }
    }
    assert_eq!(files, 7);
}

#[test]
fn the_reference_s_estargz_is_read_and_verified() {
    let (footer, toc) = unverified(ESTARGZ);
    assert_eq!(footer.form(), Form::Estargz);
    let toc = toc.verify(&ESTARGZ_TOC.parse().unwrap()).unwrap();
    assert_eq!(toc.lookup("big").unwrap().chunks().len(), 4);
    assert_eq!(
        toc.lookup("dir/hello.txt").unwrap().id(),
        toc.lookup("dir/hard").unwrap().id()
    );
    assert_eq!(toc.lookup("blk").unwrap().device(), (7, 0));
    assert_eq!(
        toc.lookup("dir/sub/link").unwrap().target(),
        b"../dir/hello.txt"
    );
    assert_eq!(
        toc.lookup("cap")
            .unwrap()
            .xattrs()
            .map(|(name, _)| name)
            .next(),
        Some(&b"security.capability"[..])
    );
    assert_eq!(toc.lookup("dir").unwrap().user(), "root");
    assert_eq!(toc.lookup("fifo").unwrap().kind(), Kind::Fifo);
    assert_holds_the_source(&toc, ESTARGZ);
}

#[test]
fn the_reference_s_zstd_chunked_is_read_and_verified() {
    let (footer, toc) = unverified(ZSTD_CHUNKED);
    assert_eq!(footer.form(), Form::ZstdChunked);
    assert_eq!(footer.toc_json_size(), Some(toc.json().len() as u64));
    assert_eq!(toc.section_digest(), ZSTD_CHUNKED_CHECKSUM.parse().unwrap());
    assert_eq!(toc.digest(), ZSTD_CHUNKED_TOC.parse().unwrap());
    let toc = toc
        .verify_section(&ZSTD_CHUNKED_CHECKSUM.parse().unwrap())
        .unwrap();
    assert_holds_the_source(&toc, ZSTD_CHUNKED);
}

#[test]
fn the_toc_writer_reproduces_the_tocs_of_the_reference() {
    for blob in [ESTARGZ, ZSTD_CHUNKED] {
        let (_, toc) = unverified(blob);
        let document: serde_json::Value = serde_json::from_slice(toc.json()).unwrap();
        let mut writer = TocWriter::new();
        for entry in document["entries"].as_array().unwrap() {
            writer.push(&serde_json::from_value::<Entry>(entry.clone()).unwrap());
        }
        let json = writer.finish();
        assert_eq!(
            String::from_utf8(json.clone()).unwrap(),
            String::from_utf8(toc.json().to_vec()).unwrap()
        );
        assert_eq!(Digest::of(&json), toc.digest());
    }
}

#[test]
fn the_reference_s_blobs_agree_with_themselves() {
    for (blob, toc_digest) in [(ESTARGZ, ESTARGZ_TOC), (ZSTD_CHUNKED, ZSTD_CHUNKED_TOC)] {
        let expected = Expected::default().with_toc_digest(Some(toc_digest.parse().unwrap()));
        let report = verify::blob(std::io::Cursor::new(blob), &expected).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.entries, report.chunks), (18, 8));
    }
}
