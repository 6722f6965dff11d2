//! The front door: archives over sources, readers of files, and the writer.

use std::error::Error as _;
use std::io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;

use estargz::archive::{OpenError, OpenOptions, ReadError, Source};
use estargz::chunk::ChunkError;
use estargz::footer::FooterError;
use estargz::toc::{Kind, TocError};
use estargz::verify::{Expected, Finding};
use estargz::write::{self, Compression, Options, TocPlacement, Written};
use estargz::{Archive, Digest, Limits, Writer};
use proptest::prelude::*;

use crate::layout::all_options;
use crate::properties;
use crate::support::{Tar, convert, every_type, noise, pool, try_convert};

fn open(blob: Vec<u8>, written: &Written) -> Archive {
    let mut options = OpenOptions::new();
    if let Some(toc) = &written.external_toc {
        options = options.external_toc(toc.clone());
    }
    options
        .open(Source::bytes(blob), &written.toc_digest)
        .unwrap()
}

fn archive_of(tar: &[u8], options: &Options) -> Archive {
    let (blob, written) = convert(tar, options);
    open(blob, &written)
}

fn read(archive: &Archive, path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let mut reader = archive.entry(path).unwrap().reader().unwrap();
    reader.read_to_end(&mut content).unwrap();
    content
}

/// The typed error inside an error of a reader.
fn read_error(error: &io::Error) -> &ReadError {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

/// A tar with one file of ten chunks, and options that cut it so.
fn ten_chunks() -> (Vec<u8>, Vec<u8>, Options) {
    let content = noise(3, 10_000);
    let tar = Tar::default().file("data", &content).end();
    (tar, content, Options::default().with_chunk_size(1000))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_trees_are_read_back(
        items in prop::collection::vec((properties::name(), properties::item()), 1..30),
        options in properties::options(),
    ) {
        let source = properties::archive(&items);
        // A tar that readers would not agree about is refused.
        let Ok((blob, written)) = try_convert(&source, &options) else { return Ok(()) };
        let archive = open(blob, &written);
        for (path, (kind, content)) in properties::oracle(&source) {
            let entry = archive.entry(&path).unwrap();
            // A hard link may have become a file or a dangling link.
            match kind {
                "reg" => {
                    prop_assert_eq!(entry.size(), content.len() as u64);
                    prop_assert_eq!(read(&archive, &path), content);
                }
                "dir" => prop_assert_eq!(entry.kind(), Kind::Directory),
                "symlink" => prop_assert_eq!(entry.kind(), Kind::Symlink),
                "fifo" => prop_assert_eq!(entry.kind(), Kind::Fifo),
                _ => {}
            }
        }
        prop_assert_eq!(archive.verify().unwrap().findings, []);
    }

    #[test]
    fn any_position_of_a_file_can_be_read(
        reads in prop::collection::vec((0_u64..11_000, 0_usize..3000), 1..30),
    ) {
        let (tar, content, options) = ten_chunks();
        let archive = archive_of(&tar, &options);
        let mut reader = archive.entry("data").unwrap().reader().unwrap();
        for (offset, length) in reads {
            reader.seek(SeekFrom::Start(offset)).unwrap();
            let mut bytes = Vec::new();
            reader.by_ref().take(length as u64).read_to_end(&mut bytes).unwrap();
            let start = usize::try_from(offset).unwrap().min(content.len());
            let end = (start + length).min(content.len());
            prop_assert_eq!(&bytes, &content[start..end]);
        }
    }
}

#[test]
fn every_form_is_opened_listed_and_read() {
    let source = every_type();
    for options in all_options() {
        let Ok((blob, written)) = try_convert(&source, &options) else {
            continue;
        };
        let archive = open(blob, &written);
        assert_eq!(read(&archive, "large"), noise(7, 300_000), "{options:?}");
        assert_eq!(read(&archive, "/twice"), b"second");
        assert_eq!(read(&archive, "./etc/empty"), b"");
        let paths: Vec<_> = archive
            .entries()
            .map(|entry| entry.path().to_vec())
            .collect();
        assert!(paths.contains(&b"latin-\xe9".to_vec()));
        assert!(
            paths.is_sorted_by_key(|path| path.split(|byte| *byte == b'/').collect::<Vec<_>>())
        );
        assert_eq!(archive.verify().unwrap().findings, [], "{options:?}");
    }
}

#[test]
fn a_hard_link_reads_the_content_that_it_shares() {
    let archive = archive_of(&every_type(), &Options::default());
    assert_eq!(
        read(&archive, "etc/hard"),
        read(&archive, "etc/passwd"),
        "one file with two names"
    );
    let [hard, file] =
        ["etc/hard", "etc/passwd"].map(|path| archive.entry(path).unwrap().node().id());
    assert_eq!(hard, file);
}

#[test]
fn only_regular_files_have_readers() {
    let archive = archive_of(&every_type(), &Options::default());
    for (path, expected) in [
        ("etc", Kind::Directory),
        ("", Kind::Directory),
        ("etc/link", Kind::Symlink),
        ("etc/dangling", Kind::DanglingLink),
        ("dev/null", Kind::CharDevice),
        ("dev/sda", Kind::BlockDevice),
        ("dev/fifo", Kind::Fifo),
    ] {
        let error = archive.entry(path).unwrap().reader().unwrap_err();
        assert!(matches!(&error, ReadError::NotAFile { kind, .. } if *kind == expected));
        assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(
        archive.entry("etc/link").unwrap().node().target(),
        b"passwd"
    );
}

#[test]
fn a_missing_path_is_an_error_that_names_it() {
    let archive = archive_of(&every_type(), &Options::default());
    // Symbolic links are not followed.
    for path in ["no/such", "etc/passwd/x", "etc/link/x"] {
        let error = archive.entry(path).unwrap_err();
        assert_eq!(error.to_string(), format!("{path:?} is not in the layer"));
        assert_eq!(io::Error::from(error).kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_damaged_chunk_ends_the_reader_before_its_first_byte() {
    let (tar, content, options) = ten_chunks();
    let (mut blob, written) = convert(&tar, &options);
    let offset = {
        let archive = open(blob.clone(), &written);
        let chunk = archive
            .toc()
            .lookup("data")
            .unwrap()
            .chunk_at(4000)
            .unwrap();
        usize::try_from(chunk.range.start).unwrap()
    };
    // The member is a stored block: header, then content.
    blob[offset + 500] ^= 1;
    let archive = open(blob, &written);
    let mut reader = archive.entry("data").unwrap().reader().unwrap();

    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(bytes, content[..4000]);
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let ReadError::Chunk {
        path,
        file_offset: 4000,
        error: cause,
    } = read_error(&error)
    else {
        panic!("{error:?}");
    };
    assert_eq!(path, "data");
    assert!(matches!(
        cause,
        ChunkError::Digest { .. } | ChunkError::Inflate(_)
    ));
    assert_eq!(error.to_string(), "\"data\": chunk at 4000 is damaged");

    // The error repeats, and the rest of the file is still there.
    assert_eq!(reader.stream_position().unwrap(), 4000);
    assert!(reader.read(&mut [0]).is_err());
    assert!(reader.fill_buf().is_err());
    reader.seek(SeekFrom::Start(5000)).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, content[5000..]);

    let report = archive.verify().unwrap();
    assert!(!report.is_clean());
}

#[test]
fn an_error_of_the_source_keeps_its_kind() {
    let (tar, _, options) = ten_chunks();
    let (blob, written) = convert(&tar, &options);
    let size = blob.len() as u64;
    let payload = {
        let archive = open(blob.clone(), &written);
        archive.footer().payload_end()
    };
    let source = Source::new(size, move |offset, buffer| {
        if offset < payload {
            return Err(ErrorKind::ConnectionReset.into());
        }
        (&blob[usize::try_from(offset).unwrap()..]).read(buffer)
    });
    let archive = Archive::open(source, &written.toc_digest).unwrap();
    let mut reader = archive.entry("data").unwrap().reader().unwrap();
    let error = reader.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(matches!(read_error(&error), ReadError::Source { path, .. } if path == "data"));
    assert!(matches!(
        archive.verify().unwrap_err(),
        OpenError::Read(error) if error.kind() == ErrorKind::ConnectionReset
    ));
}

#[test]
fn another_toc_digest_is_refused() {
    let (blob, written) = convert(&every_type(), &Options::default());
    let other = Digest::of(b"other");
    let error = Archive::open(Source::bytes(blob.clone()), &other).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Toc(TocError::Digest { expected, actual })
            if expected == other && actual == written.toc_digest
    ));
    let archive = Archive::open_unverified(Source::bytes(blob)).unwrap();
    assert_eq!(archive.toc().digest(), written.toc_digest);
}

#[test]
fn a_zstd_chunked_layer_is_opened_by_the_digest_of_its_section() {
    let options = Options::default().with_compression(Compression::Zstd(3));
    let (blob, written) = convert(&every_type(), &options);
    let digest = written.zstd_manifest_checksum.unwrap();
    let open = |digest| OpenOptions::new().open_section(Source::bytes(blob.clone()), digest);
    assert_eq!(read(&open(&digest).unwrap(), "twice"), b"second");
    assert!(open(&written.toc_digest).is_err());
}

#[test]
fn a_blob_with_an_external_toc_needs_it() {
    let options = Options::default().with_toc(TocPlacement::External);
    let (tar, content, _) = ten_chunks();
    let (blob, written) = convert(&tar, &options);
    let error = Archive::open_unverified(Source::bytes(blob.clone())).unwrap_err();
    assert!(matches!(error, OpenError::NoExternalToc));
    assert_eq!(read(&open(blob, &written), "data"), content);
}

#[test]
fn bytes_that_are_not_a_layer_are_refused() {
    for bytes in [&b""[..], b"short", &[0; 1000]] {
        let error = Archive::open_unverified(Source::bytes(bytes)).unwrap_err();
        assert!(matches!(error, OpenError::Footer(FooterError::NotAFooter)));
    }
}

#[test]
fn a_toc_over_the_limits_is_refused_before_it_is_built() {
    let (blob, written) = convert(&every_type(), &Options::default());
    let limits = Limits::default();
    for (limits, expected) in [
        (limits.with_max_compressed_bytes(10), "compressed bytes"),
        (limits.with_max_json_bytes(10), "bytes of JSON"),
        (limits.with_max_names(3), "names"),
        (limits.with_max_chunks(2), "chunks"),
        (limits.with_max_chunk_bytes(1000), "bytes in a chunk"),
        (limits.with_max_path_bytes(100), "bytes in a path"),
        (limits.with_max_path_depth(1), "directories in a path"),
        (limits.with_max_xattrs(0), "extended attributes"),
        (limits.with_max_owners(1), "names of owners"),
    ] {
        let error = OpenOptions::new()
            .limits(limits)
            .open(Source::bytes(blob.clone()), &written.toc_digest)
            .unwrap_err();
        assert!(
            matches!(&error, OpenError::Toc(TocError::Limit { what, .. }) if *what == expected),
            "{expected}: {error}"
        );
    }
}

#[test]
fn verification_keeps_its_limit_and_compares_expectations() {
    let (blob, written) = convert(&every_type(), &Options::default());
    let archive = open(blob, &written);
    let limits = Limits::default().with_max_stream_bytes(10_000);
    let report = archive
        .verify_with(&Expected::default().with_limits(limits))
        .unwrap();
    assert!(matches!(report.findings[0], Finding::Stream { .. }));
    let expected = Expected::default().with_diff_id(Digest::of(b"other"));
    let report = archive.verify_with(&expected).unwrap();
    assert!(matches!(
        report.findings[..],
        [Finding::Digest {
            what: "the decompressed blob",
            ..
        }]
    ));
}

#[test]
fn a_file_is_a_source_for_many_threads() {
    let (tar, content, options) = ten_chunks();
    let (blob, written) = convert(&tar, &options);
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, &blob).unwrap();
    let archive = Archive::open(Source::file(file).unwrap(), &written.toc_digest).unwrap();
    assert_eq!(archive.source().size(), written.blob_size);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(read(&archive, "data"), content));
        }
    });
}

#[test]
fn a_writer_writes_the_same_bytes_with_any_threads() {
    let source = every_type();
    for options in [Options::default(), Options::fast().with_chunk_size(1000)] {
        let (expected, _) = convert(&source, &options);
        let pool = pool(1);
        let writer = Writer::new(options);
        for writer in [
            writer.clone(),
            writer.clone().threads(NonZeroUsize::MIN).memory(1 << 20),
            writer.clone().memory(1 << 20).threads(NonZeroUsize::MIN),
            writer.pool(&pool),
        ] {
            let mut blob = Vec::new();
            let written = writer.write(&source[..], &mut blob).unwrap();
            assert_eq!(blob, expected);
            assert_eq!(written.blob_digest, Digest::of(&blob));
        }
    }
}

#[test]
fn a_writer_with_invalid_options_writes_nothing() {
    let mut blob = Vec::new();
    let writer = Writer::new(Options::default().with_chunk_size(0));
    let error = writer.write(&every_type()[..], &mut blob).unwrap_err();
    assert!(matches!(error, write::Error::Options(_)));
    assert!(blob.is_empty());
}

#[test]
fn an_error_and_its_source_say_different_things() {
    let blob = Source::new(100, |_offset, _buffer| Err(io::Error::other("no route")));
    let error = Archive::open_unverified(blob).unwrap_err();
    assert_eq!(error.to_string(), "blob cannot be read");
    assert_eq!(error.source().unwrap().to_string(), "no route");
}
