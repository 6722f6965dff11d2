//! Whole-blob verification: no findings for written blobs, and a finding for each manipulation.

use std::io::{Cursor, Read, Write};

use estargz::footer::{self, Footer};
use estargz::toc::{Limits, TocWriter, UnverifiedToc};
use estargz::verify::{self, Expected, Finding, Report};
use estargz::write::{Layout, Options, TocPlacement, Written};
use estargz::{Digest, Entry, EntryKind};

use crate::layout::all_options;
use crate::support::{Tar, convert, every_type, noise};

fn expected<'a>(written: &'a Written, layout: Layout) -> Expected<'a> {
    let is_prefix = layout == Layout::SourceFirst;
    Expected::default()
        .with_toc_digest(Some(written.toc_digest))
        .with_external_toc(written.external_toc.as_deref())
        .with_diff_id(Some(written.diff_id))
        .with_source_diff_id(is_prefix.then_some(written.source_diff_id))
        .with_source_size(is_prefix.then_some(written.source_size))
}

fn verify(blob: &[u8], expected: &Expected<'_>) -> Report {
    verify::blob(Cursor::new(blob), expected).unwrap()
}

fn assert_clean(source: &[u8], options: &Options) {
    let (blob, written) = convert(source, options);
    let report = verify(&blob, &expected(&written, options.layout));
    assert_eq!(report.findings, [], "{options:?}");
    assert_eq!(
        (report.entries, report.chunks),
        (written.entries, written.chunks),
        "{options:?}"
    );
    assert_eq!(
        (report.diff_id, report.uncompressed_size),
        (written.diff_id, written.uncompressed_size)
    );
}

#[test]
fn written_blobs_have_no_findings() {
    for options in all_options() {
        assert_clean(&every_type(), &options);
    }
}

#[test]
fn sources_without_an_end_or_with_garbage_after_it_have_no_findings() {
    let whole = Tar::default().file("a", b"content").end();
    let cut = &whole[..whole.len() - 1024];
    let garbage = [whole.as_slice(), &[0; 9000], b"not a tar \x01\x02\x03"].concat();
    for source in [cut, &cut[..cut.len() - 300], &garbage, &[], &[0; 1024]] {
        assert_clean(source, &Options::default());
        assert_clean(source, &Options::default().with_layout(Layout::Classic));
        assert_clean(source, &Options::default().with_toc(TocPlacement::External));
    }
}

#[test]
fn sparse_files_have_no_findings() {
    for tar in [
        &include_bytes!("golden/sparse-0.0.tar.gz")[..],
        include_bytes!("golden/sparse-0.1.tar.gz"),
        include_bytes!("golden/sparse-1.0.tar.gz"),
        include_bytes!("golden/sparse-gnu.tar.gz"),
    ] {
        let mut source = Vec::new();
        flate2::read::GzDecoder::new(tar)
            .read_to_end(&mut source)
            .unwrap();
        assert_clean(&source, &Options::default());
        assert_clean(&source, &Options::default().with_layout(Layout::Classic));
    }
}

/// The findings for the blob of a small tar whose TOC has been rewritten by `change`.
fn findings_after(change: impl Fn(&mut Vec<Entry>)) -> Vec<Finding> {
    let source = Tar::default()
        .pax(b'x', &[("SCHILY.xattr.user.note", b"value")])
        .dir("d/")
        .file("d/file", b"0123456789")
        .file("d/other", b"other")
        .entry(b'2', b"d/link", b"file", b"")
        .entry(b'3', b"d/null", b"", b"")
        .end();
    let (blob, _) = convert(&source, &Options::default().with_chunk_size(4));
    let size = blob.len() as u64;
    let cut = |range: std::ops::Range<u64>| {
        &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let footer = Footer::parse(cut(footer::tail_range(size)), size).unwrap();
    let range = footer.toc_range().unwrap();
    let toc = UnverifiedToc::parse(cut(range.clone()), &footer, &Limits::default()).unwrap();
    let document: serde_json::Value = serde_json::from_slice(toc.json()).unwrap();
    let mut entries: Vec<Entry> = serde_json::from_value(document["entries"].clone()).unwrap();
    change(&mut entries);
    let mut writer = TocWriter::new();
    entries.iter().for_each(|entry| writer.push(entry));
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    member
        .write_all(
            &Tar::default()
                .file("stargz.index.json", &writer.finish())
                .end(),
        )
        .unwrap();
    let tampered = [
        cut(0..range.start),
        &member.finish().unwrap(),
        &footer::gzip(range.start),
    ]
    .concat();
    verify(&tampered, &Expected::default()).findings
}

fn entry_mut<'e>(entries: &'e mut [Entry], name: &str) -> &'e mut Entry {
    entries.iter_mut().find(|entry| entry.name == name).unwrap()
}

#[test]
fn a_toc_put_back_unchanged_has_no_findings() {
    assert_eq!(findings_after(|_| ()), []);
}

/// A field, an entry, and a change of the field.
type Change = (&'static str, &'static str, fn(&mut Entry));

#[test]
fn each_field_that_differs_is_named() {
    let changes: [Change; 10] = [
        ("mode", "d/file", |entry| entry.mode = 0o4755),
        ("uid", "d/file", |entry| entry.uid = 7),
        ("gid", "d/other", |entry| entry.gid = 7),
        ("modtime", "d/link", |entry| {
            entry.mod_time = "2001-01-01T00:00:00Z".to_owned()
        }),
        ("linkName", "d/link", |entry| {
            entry.link_name = "/etc/passwd".to_owned()
        }),
        ("name", "d/other", |entry| {
            entry.name = "./d/other".to_owned()
        }),
        ("xattrs", "d/", |entry| entry.xattrs.clear()),
        ("devMajor", "d/null", |entry| entry.dev_major = 1),
        ("devMinor", "d/null", |entry| entry.dev_minor = 9),
        ("type", "d/null", |entry| entry.kind = EntryKind::Block),
    ];
    for (field, name, change) in changes {
        let findings = findings_after(|entries| change(entry_mut(entries, name)));
        // The owner's name belongs to the id, so another id has another name.
        let is_all = findings.len() == 1 || matches!(field, "uid" | "gid");
        let is_named =
            matches!(&findings[0], Finding::Field { field: found, .. } if *found == field);
        assert!(is_all && is_named, "{field}: {findings:?}");
    }
}

#[test]
fn a_size_that_differs_is_named() {
    let findings = findings_after(|entries| {
        let other = entries
            .iter()
            .position(|entry| entry.name == "d/other")
            .unwrap();
        entries.remove(other + 1);
        entries[other].size = 4;
    });
    assert!(
        matches!(&findings[..], [Finding::Field { field: "size", .. }]),
        "{findings:?}"
    );
}

#[test]
fn owner_names_that_differ_are_named() {
    let findings =
        findings_after(|entries| entries.iter_mut().for_each(|entry| entry.user_name.clear()));
    assert!(
        matches!(
            findings[0],
            Finding::Field {
                field: "userName",
                ..
            }
        ),
        "{findings:?}"
    );
}

#[test]
fn entries_on_one_side_only_are_named() {
    let findings = findings_after(|entries| entries.retain(|entry| entry.name != "d/link"));
    assert_eq!(
        findings,
        [Finding::NotInToc {
            path: "d/link".to_owned()
        }]
    );
    let findings = findings_after(|entries| {
        let mut extra = entries[0].clone();
        extra.name = "extra".to_owned();
        entries.push(extra);
    });
    assert_eq!(
        findings,
        [Finding::NotInTar {
            path: "extra".to_owned()
        }]
    );
}

#[test]
fn digests_and_places_that_differ_are_named() {
    let wrong = Digest::of(b"wrong").to_string();
    let findings = findings_after(|entries| entry_mut(entries, "d/file").digest = wrong.clone());
    assert!(
        matches!(&findings[..], [Finding::FileDigest { path, .. }] if path == "d/file"),
        "{findings:?}"
    );
    let findings =
        findings_after(|entries| entry_mut(entries, "d/file").chunk_digest = wrong.clone());
    assert!(
        matches!(&findings[..], [Finding::ChunkDigest { file_offset: 0, .. }]),
        "{findings:?}"
    );
    let findings = findings_after(|entries| entry_mut(entries, "d/file").offset += 1);
    assert!(
        matches!(&findings[..], [Finding::ChunkPlace { file_offset: 0, .. }]),
        "{findings:?}"
    );
    let findings = findings_after(|entries| entry_mut(entries, "d/file").inner_offset = 3);
    assert!(
        matches!(&findings[..], [Finding::ChunkPlace { file_offset: 0, .. }]),
        "{findings:?}"
    );
}

#[test]
fn expected_digests_are_compared() {
    let (blob, written) = convert(&every_type(), &Options::default());
    let wrong = Some(Digest::of(b"wrong"));
    let good = expected(&written, Layout::SourceFirst);
    let what = |expected: Expected<'_>| match &verify(&blob, &expected).findings[..] {
        [Finding::Digest { what, .. }] => *what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(good.clone().with_toc_digest(wrong)), "the TOC");
    assert_eq!(
        what(good.clone().with_diff_id(wrong)),
        "the decompressed blob"
    );
    assert_eq!(
        what(good.clone().with_source_diff_id(wrong)),
        "the source tar"
    );
    let longer = good
        .clone()
        .with_source_size(Some(written.source_size + 512));
    assert!(matches!(
        verify(&blob, &longer).findings[0],
        Finding::Digest {
            what: "the source tar",
            ..
        }
    ));
    let beyond = verify(&blob, &good.with_source_size(Some(u64::MAX))).findings;
    assert!(
        beyond
            .iter()
            .any(|finding| matches!(finding, Finding::SourceSize { .. })),
        "{beyond:?}"
    );
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let source = Tar::default()
        .dir("d/")
        .file("d/a", b"first")
        .file("d/b", &noise(3, 500))
        .end();
    let (blob, written) = convert(&source, &Options::default());
    let good = expected(&written, Layout::SourceFirst);
    let mut unnoticed = Vec::new();
    for at in 0..blob.len() {
        let mut broken = blob.clone();
        broken[at] ^= 0x55;
        if verify::blob(Cursor::new(&broken), &good).is_ok_and(|report| report.is_clean()) {
            unnoticed.push(at);
        }
    }
    // Modification time, extra flags and system in each gzip header, which readers ignore.
    assert!(
        unnoticed.iter().all(|at| is_idle_header_byte(&blob, *at)),
        "{unnoticed:?}"
    );
}

fn is_idle_header_byte(blob: &[u8], at: usize) -> bool {
    (4..10).any(|distance| at >= distance && blob[at - distance..].starts_with(&[0x1f, 0x8b, 8]))
}
