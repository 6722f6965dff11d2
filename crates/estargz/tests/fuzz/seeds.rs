//! Good inputs to begin with.

use std::io::Read;
use std::num::NonZeroUsize;

use estargz::footer;
use estargz::pool::Pool;
use estargz::tar::build;
use estargz::write::write;

use crate::targets::{options, stored_gzip, tar_of_toc};

const SOURCE: &[u8] = include_bytes!("../golden/source.tar.gz");
const ESTARGZ: &[u8] = include_bytes!("../golden/estargz.blob");
const ZSTD_CHUNKED: &[u8] = include_bytes!("../golden/zstdchunked.blob");
const SPARSE: &[u8] = include_bytes!("../write/golden/sparse-gnu.tar.gz");
const TOC: &str = r#"{"version":1,"entries":[
{"name":"./","type":"dir","mode":493,"userName":"root"},
{"name":"a","type":"reg","size":9,"offset":100,"chunkSize":4,"digest":"DIGEST","chunkDigest":"DIGEST"},
{"name":"a","type":"chunk","offset":200,"innerOffset":3,"chunkOffset":4,"chunkDigest":"DIGEST"},
{"name":"d/b","type":"reg","size":1,"offset":300,"endOffset":400,"chunkDigest":"DIGEST","xattrs":{"user.a":"AA=="}},
{"name":"d/c","type":"hardlink","linkName":"a","modtime":"2020-09-13T12:26:40Z"},
{"name":"e","type":"hardlink","linkName":"f"},{"name":"f","type":"hardlink","linkName":"a"},
{"name":"s","type":"symlink","linkName":"d","rawName":"/w==","rawLinkName":"/g=="},
{"name":"h","type":"reg","size":8,"chunkSize":8,"chunkType":"zeros"},
{"name":"c","type":"char","devMajor":1,"devMinor":3},{"name":"p","type":"fifo","uid":-1}]}"#;

pub(crate) fn footers() -> Vec<Vec<u8>> {
    let zstd = [
        &[0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0][..],
        &footer::zstd_chunked(500, 600, 700),
    ]
    .concat();
    [&footer::gzip(500)[..], &footer::external(), &zstd]
        .map(|footer| [&[0; 100], footer].concat())
        .into_iter()
        .chain([footer::external().to_vec()])
        .collect()
}

pub(crate) fn tocs() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    vec![
        TOC.replace("DIGEST", &digest).into_bytes(),
        br#"{"version":1,"entries":null}"#.to_vec(),
    ]
}

pub(crate) fn sections() -> Vec<Vec<u8>> {
    let deflated = |bytes: &[u8]| {
        let mut member = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast())
            .read_to_end(&mut member)
            .unwrap();
        member
    };
    let tars: Vec<Vec<u8>> = tocs().iter().map(|json| tar_of_toc(json)).collect();
    tars.iter()
        .map(|tar| stored_gzip(tar))
        .chain(tars.iter().map(|tar| deflated(tar)))
        .collect()
}

pub(crate) fn members() -> Vec<Vec<u8>> {
    let content = b"padding and headers, content, more padding and more headers";
    let zstd = zstd::encode_all(&content[..], 3).unwrap();
    vec![
        [&[0, 21, 7, 0][..], &stored_gzip(content)].concat(),
        [
            &[0, 0, 59, 0][..],
            &stored_gzip(&content[..20]),
            &stored_gzip(&content[20..]),
        ]
        .concat(),
        [&[1, 21, 7, 0][..], &zstd].concat(),
        [&[1, 0, 118, 0][..], &zstd, &zstd].concat(),
    ]
}

pub(crate) fn tars() -> Vec<Vec<u8>> {
    let inflate = |tar: &[u8]| {
        let mut bytes = vec![0];
        flate2::read::GzDecoder::new(tar)
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    let mut source = inflate(SOURCE);
    cut_large_file(&mut source);
    let chunked = [&[4], &source[1..]].concat();
    vec![
        source,
        chunked,
        sparse_by_records(),
        sparse_by_lines(),
        first_header(inflate(SPARSE)),
        vec![0; 1025],
    ]
}

/// Version 0.1: the map is a record.
fn sparse_by_records() -> Vec<u8> {
    let records: [(&[u8], &[u8]); 3] = [
        (b"GNU.sparse.map", b"2,5,900,3"),
        (b"GNU.sparse.size", b"1000"),
        (b"GNU.sparse.name", b"holes"),
    ];
    [
        &[0],
        &build::pax_header(&records)[..],
        &build::file("ignored", b"12345678"),
        &[0; 1024],
    ]
    .concat()
}

/// Version 1.0: the map precedes the content.
fn sparse_by_lines() -> Vec<u8> {
    let records: [(&[u8], &[u8]); 4] = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"holes"),
        (b"GNU.sparse.realsize", b"1000"),
    ];
    let mut content = b"2\n2\n5\n900\n3\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(b"12345678");
    [
        &[0],
        &build::pax_header(&records)[..],
        &build::file("ignored", &content),
        &[0; 1024],
    ]
    .concat()
}

/// A sparse file of the old GNU format whose header continues for some blocks, without its content.
fn first_header(mut source: Vec<u8>) -> Vec<u8> {
    source.truncate(1 + 4096);
    source
}

/// Drops the payload of the one large file, so that an input takes little time.
fn cut_large_file(source: &mut Vec<u8>) {
    let name = source
        .windows(5)
        .position(|window| window == b"./big")
        .unwrap();
    source[name + 124..name + 135].copy_from_slice(b"00000000000");
    drop(source.drain(name + 512..name + 512 + 200_000_usize.next_multiple_of(512)));
}

pub(crate) fn blobs() -> Vec<Vec<u8>> {
    let mut blobs = vec![ESTARGZ.to_vec(), ZSTD_CHUNKED.to_vec()];
    blobs.extend((0..4).map(small_blob));
    blobs
}

/// A blob of some hundred bytes, of which every mutation matters.
fn small_blob(how: u8) -> Vec<u8> {
    let tar = [&build::file("a", b"content"), &sparse_by_records()[1..]].concat();
    let pool = Pool::new(NonZeroUsize::MIN, 1 << 20);
    let mut blob = Vec::new();
    write(tar.as_slice(), &mut blob, &options(how), &pool).unwrap();
    blob
}
