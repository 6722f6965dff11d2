//! A blob against a source: no findings for its own, and a finding for each difference of another.

use std::io::{Cursor, Read};

use estargz::verify::{self, Expected, Finding};
use estargz::write::{Layout, Options};

use crate::layout::all_options;
use crate::support::{Tar, convert, every_type};

fn against(blob_of: &[u8], source: &[u8], options: &Options) -> Vec<Finding> {
    let (blob, written) = convert(blob_of, options);
    let expected = Expected::default().with_external_toc(written.external_toc.as_deref());
    verify::against(Cursor::new(&blob), &expected, source).unwrap()
}

fn differences(blob_of: Tar, source: Tar) -> Vec<Finding> {
    against(&blob_of.end(), &source.end(), &Options::default())
}

#[test]
fn a_blob_equals_its_source_in_every_layout() {
    for options in all_options() {
        assert_eq!(
            against(&every_type(), &every_type(), &options),
            [],
            "{options:?}"
        );
    }
}

#[test]
fn sparse_files_equal_their_source() {
    for tar in [
        &include_bytes!("golden/sparse-1.0.tar.gz")[..],
        include_bytes!("golden/sparse-gnu.tar.gz"),
    ] {
        let mut source = Vec::new();
        flate2::read::GzDecoder::new(tar)
            .read_to_end(&mut source)
            .unwrap();
        for layout in [Layout::SourceFirst, Layout::Classic] {
            let options = Options::default().with_layout(layout).with_chunk_size(3000);
            assert_eq!(against(&source, &source, &options), []);
        }
    }
}

#[test]
fn the_order_of_entries_is_no_difference() {
    let one = Tar::default()
        .dir("a.b/")
        .dir("a/")
        .file("a/x", b"x")
        .file("a.b/y", b"y");
    let other = Tar::default()
        .dir("a/")
        .dir("a.b/")
        .file("a.b/y", b"y")
        .file("a/x", b"x");
    assert_eq!(differences(one, other), []);
}

#[test]
fn an_entry_without_a_name_of_its_owner_may_have_that_of_another() {
    let nameless = || {
        let mut tar = Tar::default();
        // A header of the seventh edition has no names.
        tar.header(b'0', b"a", b"", 0, &[0; 8]);
        tar
    };
    let named = || {
        let records: &[(&str, &[u8])] = &[("uname", b"user"), ("gname", b"group")];
        Tar::default().pax(b'x', records).file("b", b"y")
    };
    let (one, other) = (joined(nameless(), named()), joined(named(), nameless()));
    for (blob_of, source) in [(&one, &other), (&other, &one)] {
        assert_eq!(against(blob_of, source, &Options::default()), []);
    }
    let records: &[(&str, &[u8])] = &[("uname", b"other"), ("gname", b"group")];
    let renamed = joined(
        nameless(),
        Tar::default().pax(b'x', records).file("b", b"y"),
    );
    let found = against(&one, &renamed, &Options::default());
    assert!(
        matches!(&found[..], [Finding::Field { path, field: "userName", .. }] if path == "b"),
        "{found:?}"
    );
}

fn joined(first: Tar, second: Tar) -> Vec<u8> {
    Tar {
        bytes: [first.bytes, second.bytes].concat(),
    }
    .end()
}

#[test]
fn every_difference_is_named() {
    let base = || Tar::default().file("a", b"one").file("b", b"two");
    let path = || "c".to_owned();
    let found = differences(base().file("c", b"new"), base());
    assert_eq!(found, [Finding::NotInTar { path: path() }]);
    let found = differences(base(), base().file("c", b"new"));
    assert_eq!(found, [Finding::NotInToc { path: path() }]);
    let found = differences(base().file("c", b"old"), base().file("c", b"new"));
    assert_eq!(found, [Finding::Content { path: path() }]);
    let found = differences(
        base().file("c", b"old"),
        base().entry(b'2', b"c", b"a", b""),
    );
    assert!(
        matches!(found[0], Finding::Field { field: "type", .. }),
        "{found:?}"
    );
    let found = differences(
        base().entry(b'2', b"c", b"a", b""),
        base().entry(b'2', b"c", b"b", b""),
    );
    assert!(
        matches!(
            &found[..],
            [Finding::Field {
                field: "linkName",
                ..
            }]
        ),
        "{found:?}"
    );
    let attribute = |value| {
        base()
            .pax(b'x', &[("SCHILY.xattr.user.note", value)])
            .file("c", b"same")
    };
    let found = differences(attribute(b"1"), attribute(b"2"));
    assert!(
        matches!(
            &found[..],
            [Finding::Field {
                field: "xattrs",
                ..
            }]
        ),
        "{found:?}"
    );
}

#[test]
fn links_to_another_file_of_the_same_content_are_named() {
    let base = || Tar::default().file("a", b"same").file("b", b"same");
    let found = differences(
        base().entry(b'1', b"c", b"a", b""),
        base().entry(b'1', b"c", b"b", b""),
    );
    assert_eq!(
        found,
        [Finding::Links {
            path: "c".to_owned()
        }]
    );
    let found = differences(
        base().entry(b'1', b"c", b"a", b""),
        base().file("c", b"same"),
    );
    assert_eq!(
        found,
        [Finding::Links {
            path: "c".to_owned()
        }]
    );
}

#[test]
fn a_sparse_file_of_endless_holes_is_an_error() {
    let (blob, _) = convert(&Tar::default().end(), &Options::default());
    let hole = Tar::default().pax(
        b'x',
        &[
            ("GNU.sparse.map", b"0,0"),
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.name", b"hole"),
        ],
    );
    let source = hole.file("hole", b"").end();
    assert!(verify::against(Cursor::new(&blob), &Expected::default(), &source[..]).is_err());
}
