//! The targets: calls with hostile bytes, and invariants that hold afterwards.

use std::io::Cursor;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use estargz::chunk::Chunk;
use estargz::codec::Codec;
use estargz::digest::Digest;
use estargz::footer::{self, Footer};
use estargz::pool::Pool;
use estargz::toc::{Kind, Limits, Toc, UnverifiedToc};
use estargz::verify::{self, Expected};
use estargz::write::{Compression, Layout, Options, TocPlacement, write};

/// Bytes of payload of the blob of a hostile TOC.
const PAYLOAD: u64 = 1 << 40;
/// Most bytes that a source is inflated to here, so that one input does not take the whole time.
/// libFuzzer keeps the inputs that reach a limit and mutates them again and again.
const STREAM: u64 = if cfg!(fuzzing) { 1 << 16 } else { 1 << 20 };
/// The header of a gzip member without a name or a time (RFC 1952, section 2.3).
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Most bytes of a stored block (RFC 1951, section 3.2.4).
const MAX_STORED: usize = 0xffff;

/// `data` is the tail of a blob that has 10,000 bytes before it.
pub(crate) fn footer(data: &[u8]) {
    let blob_size = data.len() as u64 + 10_000;
    let tail = footer::tail_range(data.len() as u64);
    let data = &data[usize::try_from(tail.start).unwrap()..];
    let blob_size = if data.len() < 72 {
        data.len() as u64
    } else {
        blob_size
    };
    if let Ok(footer) = Footer::parse(data, blob_size) {
        let toc = footer.toc_range().unwrap_or(footer.start()..footer.start());
        assert!(toc.start <= toc.end && toc.end <= footer.start() && footer.start() <= blob_size);
        assert!(footer.payload_end() <= toc.start);
    }
}

/// `data` is the JSON of a TOC.
pub(crate) fn toc(data: &[u8]) {
    let section = stored_gzip(&tar_of_toc(data));
    let Ok(unverified) = UnverifiedToc::parse(&section, &footer_for(&section), &limits()) else {
        panic!("a whole section is always inflated");
    };
    assert_eq!(unverified.json(), data);
    let digest = unverified.digest();
    if let Ok(toc) = unverified.verify(&digest) {
        check_tree(&toc);
    }
}

/// `data` is the compressed bytes of a TOC.
pub(crate) fn section(data: &[u8]) {
    if let Ok(unverified) = UnverifiedToc::parse(data, &footer_for(data), &limits()) {
        let digest = unverified.digest();
        if let Ok(toc) = unverified.verify(&digest) {
            check_tree(&toc);
        }
    }
}

/// `data` is the codec, an inner offset, a size, whether the digest is right, and the bytes of a
/// member.
pub(crate) fn member(data: &[u8]) {
    let Some((&[codec, inner_offset, low, high], member)) = data.split_first_chunk() else {
        return;
    };
    let codec = if codec & 1 == 0 {
        Codec::Gzip
    } else {
        Codec::Zstd
    };
    let chunk = |digest| Chunk {
        range: 0..member.len() as u64,
        inner_offset: u64::from(inner_offset),
        file_offset: 0,
        size: u64::from(low) | u64::from(high) << 8,
        digest: Some(digest),
        codec,
    };
    match chunk(Digest::of(b"")).decode(member) {
        Err(estargz::chunk::ChunkError::Digest { actual, .. }) => {
            let content = chunk(actual).decode(member).unwrap();
            assert_eq!(Digest::of(&content), actual);
        }
        Ok(content) => assert!(content.is_empty()),
        Err(_) => {}
    }
}

/// `data` is a byte of options and a tar. If it can be written, the blob verifies, has the tar's
/// tree, and begins with the tar.
pub(crate) fn tar(data: &[u8]) {
    static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(NonZeroUsize::MIN, 16 << 20));
    let Some((how, tar)) = data.split_first() else {
        return;
    };
    let mut options = options(*how);
    options.limits.max_source_bytes = STREAM;
    let mut blob = Vec::new();
    let Ok(written) = write(tar, &mut blob, &options, &POOL) else {
        return;
    };
    let is_prefix = options.layout == Layout::SourceFirst;
    let expected = Expected::default()
        .with_toc_digest(Some(written.toc_digest))
        .with_external_toc(written.external_toc.as_deref())
        .with_diff_id(Some(written.diff_id))
        .with_source_diff_id(is_prefix.then_some(Digest::of(tar)))
        .with_source_size(is_prefix.then_some(tar.len() as u64))
        .with_limits(Limits::default().with_max_stream_bytes(2 * STREAM));
    match verify::blob(Cursor::new(&blob), &expected) {
        Ok(report) => assert_eq!(report.findings, []),
        Err(error) => panic!("{error}"),
    }
    match verify::against(Cursor::new(&blob), &expected, tar) {
        Ok(findings) => assert_eq!(findings, []),
        Err(error) => panic!("{error}"),
    }
}

/// `data` is a blob.
pub(crate) fn blob(data: &[u8]) {
    let expected = Expected::default().with_limits(limits().with_max_stream_bytes(STREAM));
    let _no_panic = verify::blob(Cursor::new(data), &expected);
}

/// The options that a byte selects.
pub(crate) fn options(how: u8) -> Options {
    Options::default()
        .with_layout(if how & 1 == 0 {
            Layout::SourceFirst
        } else {
            Layout::Classic
        })
        .with_compression(if how & 2 == 0 {
            Compression::Gzip(1)
        } else {
            Compression::Zstd(1)
        })
        .with_chunk_size(if how & 4 == 0 { 1 << 20 } else { 500 })
        .with_min_chunk_size(if how & 8 == 0 { 0 } else { 1000 })
        .with_toc(if how & 18 == 16 {
            TocPlacement::External
        } else {
            TocPlacement::Inside
        })
}

fn limits() -> Limits {
    Limits::default()
        .with_max_json_bytes(16 << 20)
        .with_max_names(100_000)
        .with_max_chunks(100_000)
}

/// Checks that the tree can be walked and every chunk is where one can be.
fn check_tree(toc: &Toc) {
    for entry in toc.entries() {
        let node = entry.node;
        assert_eq!(toc.lookup(&entry.path).unwrap().id(), node.id());
        let mut end = 0;
        for chunk in node.chunks() {
            assert_eq!(chunk.file_offset, end);
            assert!(chunk.range.start <= chunk.range.end && chunk.range.end <= PAYLOAD);
            assert!(chunk.size > 0 && chunk.digest.is_some() != chunk.range.is_empty());
            assert_eq!(node.chunk_at(end).unwrap(), chunk);
            let inflated = chunk.inner_offset + chunk.size;
            assert!(inflated <= 2 * limits().max_chunk_bytes);
            assert!(chunk.range.end - chunk.range.start <= inflated + inflated / 8 + (64 << 10));
            end += chunk.size;
        }
        assert_eq!(end, node.size());
        assert!(node.links() > 0 && node.mode() <= 0o7777);
        assert!(node.kind() == Kind::Directory || node.children().len() == 0);
        let _all = (
            node.xattrs().count(),
            node.user(),
            node.group(),
            node.target(),
            node.modified(),
        );
    }
}

/// The footer of a blob with [`PAYLOAD`] bytes before this section.
fn footer_for(section: &[u8]) -> Footer {
    let tail = [&[0; 21], &footer::gzip(PAYLOAD)[..]].concat();
    // A footer cannot refer to an empty section.
    Footer::parse(&tail, PAYLOAD + section.len().max(1) as u64 + 51).unwrap()
}

pub(crate) fn tar_of_toc(json: &[u8]) -> Vec<u8> {
    estargz::tar::build::file("stargz.index.json", json)
}

/// A gzip member of stored blocks, which is quick and has its content verbatim. An encoder takes
/// longer to begin than most inputs take in all.
pub(crate) fn stored_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut member = GZIP_HEAD.to_vec();
    for block in bytes.chunks(MAX_STORED) {
        let length = u16::try_from(block.len()).unwrap();
        member.push(0);
        member.extend_from_slice(&length.to_le_bytes());
        member.extend_from_slice(&(!length).to_le_bytes());
        member.extend_from_slice(block);
    }
    member.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    member.extend_from_slice(&checksum.sum().to_le_bytes());
    member.extend_from_slice(&checksum.amount().to_le_bytes());
    member
}
