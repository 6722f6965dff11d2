//! The stream and the TOC of each layout.

use estargz::Digest;
use estargz::write::{Compression, Layout, Options, TocPlacement};

use crate::support::{Tar, convert, every_type, from_base64, noise, read_back, stream};

pub(crate) fn all_options() -> Vec<Options> {
    let mut all = Vec::new();
    for compression in [
        Compression::Gzip(6),
        Compression::Gzip(1),
        Compression::Zstd(3),
    ] {
        for layout in [Layout::SourceFirst, Layout::Classic] {
            for (chunk_size, min_chunk_size) in [(4 << 20, 0), (1000, 0), (50_000, 20_000)] {
                let base = Options::default();
                all.push(
                    base.clone()
                        .with_layout(layout)
                        .with_compression(compression)
                        .with_chunk_size(chunk_size)
                        .with_min_chunk_size(min_chunk_size),
                );
                if matches!(compression, Compression::Gzip(_)) {
                    let toc = TocPlacement::External;
                    all.push(
                        base.with_layout(layout)
                            .with_compression(compression)
                            .with_chunk_size(chunk_size)
                            .with_min_chunk_size(min_chunk_size)
                            .with_toc(toc),
                    );
                }
            }
        }
    }
    all
}

#[test]
fn every_type_is_listed_in_every_layout() {
    let source = every_type();
    for options in all_options() {
        let (blob, written) = convert(&source, &options);
        let listed = read_back(&blob, &written, &options);
        let text = |name: &str| String::from_utf8(listed.contents[name].clone()).unwrap();
        assert_eq!(text("etc/passwd"), "root:x:0:0::/:/bin/sh\n");
        assert_eq!(text("contiguous"), "in one piece");
        assert_eq!(text("twice"), "second");
        assert_eq!(text(&"n".repeat(300)), "long name");
        assert_eq!(listed.contents["large"], noise(7, 300_000));
        assert_eq!(listed.entry("etc/hard")["linkName"], "etc/passwd");
        assert_eq!(listed.entry("dev/null")["devMajor"], 8);
        assert_eq!(listed.entry("old/")["type"], "dir");
        assert_eq!(
            listed.entry("bin/attributes")["modtime"],
            "2023-11-14T22:13:21Z"
        );
        assert_eq!(listed.entry("bin/attributes")["uid"], 3_000_000);
        assert_eq!(
            from_base64(&listed.entry("bin/attributes")["xattrs"]["user.bin"]),
            b"\0\xff=\n"
        );
        assert_eq!(
            from_base64(&listed.entry("latin-\u{fffd}")["rawName"]),
            b"latin-\xe9"
        );
        assert_eq!(
            from_base64(&listed.entry("to-latin")["rawLinkName"]),
            b"latin-\xe9"
        );
        assert!(!listed.names().contains(&"stargz.index.json"));
        assert_eq!(written.entries, listed.names().len() as u64);
        assert_eq!(written.blob_digest, Digest::of(&blob));
        assert_eq!(written.blob_size, blob.len() as u64);
        let stream = stream(&blob, options.compression);
        assert_eq!(written.diff_id, Digest::of(&stream));
        assert_eq!(written.uncompressed_size, stream.len() as u64);
        assert_eq!(
            (written.source_diff_id, written.source_size),
            (Digest::of(&source), source.len() as u64)
        );
    }
}

#[test]
fn owner_names_are_listed_where_they_change() {
    let (blob, written) = convert(&every_type(), &Options::default());
    let listed = read_back(&blob, &written, &Options::default());
    assert_eq!(listed.entry("./")["userName"], "app");
    assert!(listed.entry("etc/")["userName"].is_null());
    assert_eq!(
        listed.entry("bin/attributes")["userName"],
        "app",
        "another uid"
    );
}

#[test]
fn the_landmark_of_the_writer_is_hidden() {
    let options = Options::default();
    let source = every_type();
    let (blob, written) = convert(&source, &options);
    let listed = read_back(&blob, &written, &options);
    assert_eq!(listed.contents[".no.prefetch.landmark"], [0x0f]);
    assert_eq!(listed.names().last(), Some(&".no.prefetch.landmark"));
    let stream = stream(&blob, options.compression);
    assert!(stream.starts_with(&source));
    let seen = |tar: &[u8]| -> Vec<Vec<u8>> {
        let mut archive = tar::Archive::new(tar);
        archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path_bytes().into_owned())
            .collect()
    };
    assert_eq!(
        seen(&stream),
        seen(&source),
        "an extractor stops at the source's end marker"
    );
}

#[test]
fn an_external_toc_does_not_change_the_stream() {
    let options = Options::default().with_toc(TocPlacement::External);
    for end in [0, 100, 512, 700, 1024, 5000] {
        let mut source = Tar::default()
            .file("a", b"content")
            .file("b", &noise(1, 5000))
            .bytes;
        source.resize(source.len() + end, 0);
        let (blob, written) = convert(&source, &options);
        assert_eq!(stream(&blob, options.compression), source);
        assert_eq!(written.diff_id, written.source_diff_id);
        assert_eq!(read_back(&blob, &written, &options).names(), ["a", "b"]);
    }
}

#[test]
fn an_end_marker_is_completed_and_garbage_after_it_is_kept() {
    let options = Options::default();
    let entries = Tar::default().file("a", b"content").bytes;
    // The last two cut the padding of the last entry: 512 bytes of header, 7 of content.
    for end in [0_usize, 100, 512, 700, 1023] {
        let source = [&entries[..], &vec![0; end]].concat();
        check_completed(&source, &options);
    }
    for cut in [1, 505] {
        check_completed(&entries[..entries.len() - cut], &options);
    }
    let garbage = [&entries[..], &[0; 1024], &noise(3, 70_001)].concat();
    check_completed(&garbage, &options);
    check_completed(b"", &options);
}

fn check_completed(source: &[u8], options: &Options) {
    for layout in [Layout::SourceFirst, Layout::Classic] {
        let options = options.clone().with_layout(layout);
        let (blob, written) = convert(source, &options);
        let stream = stream(&blob, options.compression);
        assert!(layout == Layout::Classic || stream.starts_with(source));
        assert_eq!(written.source_diff_id, Digest::of(source));
        let expected = if source.is_empty() {
            &[][..]
        } else {
            &["a"][..]
        };
        let listed = read_back(&blob, &written, &options);
        let names: Vec<&str> = listed
            .names()
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert_eq!(names, expected);
        let names: Vec<String> = tar::Archive::new(&stream[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .filter(|name| name == "a")
            .collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn fewer_members_with_a_minimum() {
    let mut tar = Tar::default();
    for index in 0..200_u64 {
        tar = tar.file(&format!("f{index}"), &noise(index, 300));
    }
    let source = tar.end();
    let options = Options::default().with_min_chunk_size(20_000);
    let (blob, written) = convert(&source, &options);
    let listed = read_back(&blob, &written, &options);
    let mut offsets: Vec<u64> = listed
        .entries
        .iter()
        .map(|entry| entry["offset"].as_u64().unwrap_or(0))
        .collect();
    offsets.dedup();
    assert!(offsets.len() < 20, "{} members", offsets.len());
    assert!(written.blob_size < convert(&source, &Options::default()).1.blob_size);
}

#[test]
fn twenty_thousand_duplicates_are_one_entry() {
    let mut tar = Tar::default();
    for _ in 0..20_000 {
        tar = tar.entry(b'0', b"same", b"", b"x");
    }
    let (blob, written) = convert(&tar.end(), &Options::fast());
    let listed = read_back(&blob, &written, &Options::fast());
    assert_eq!(listed.names(), ["same", ".no.prefetch.landmark"]);
}

#[test]
fn a_landmark_of_the_source_counts_only_when_asked_for() {
    use estargz::write::Landmark;
    let source = Tar::default()
        .file("first", b"1")
        .file(".prefetch.landmark", b"\x0f")
        .file("rest", b"2")
        .end();
    for layout in [Layout::SourceFirst, Layout::Classic] {
        let options = Options::default()
            .with_layout(layout)
            .with_landmark(Landmark::InSource);
        let (blob, written) = convert(&source, &options);
        assert_eq!(
            read_back(&blob, &written, &options).names(),
            ["first", ".prefetch.landmark", "rest"]
        );
        let options = Options::default().with_layout(layout);
        let (blob, written) = convert(&source, &options);
        let listed = read_back(&blob, &written, &options);
        assert!(!listed.names().contains(&".prefetch.landmark"));
        assert!(listed.names().contains(&".no.prefetch.landmark"));
    }
}
