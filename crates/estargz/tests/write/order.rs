//! The prioritized order.

use std::io::{Cursor, Read};

use estargz::write::{Error, Landmark, Layout, Options, reorder};

use crate::support::{Tar, convert, noise, read_back};

fn names(tar: &[u8], prioritized: &[&str]) -> (Vec<String>, Vec<Vec<u8>>, Vec<u8>) {
    let prioritized: Vec<Vec<u8>> = prioritized
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let mut reordered = reorder(Cursor::new(tar), &prioritized).unwrap();
    let mut out = Vec::new();
    reordered.read_to_end(&mut out).unwrap();
    let options = Options::default()
        .with_layout(Layout::Classic)
        .with_landmark(Landmark::InSource);
    let (blob, written) = convert(&out, &options);
    let listed = read_back(&blob, &written, &options);
    assert_eq!(listed.contents.get("usr/bin/app"), Some(&noise(2, 5000)));
    (
        listed.names().into_iter().map(str::to_owned).collect(),
        reordered.missing().to_vec(),
        out,
    )
}

fn source() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("etc/")
        .file("etc/conf", b"old")
        .dir("usr/")
        .dir("usr/bin/")
        .file("usr/bin/app", &noise(2, 5000))
        .entry(b'1', b"app", b"usr/bin/app", b"")
        .file("etc/conf", b"new")
        .file(".prefetch.landmark", b"old")
        .file("zz", b"last")
        .end()
}

#[test]
fn named_files_come_first_after_their_dependencies() {
    let (names, missing, _) = names(&source(), &["/etc/conf", "app", "no/such"]);
    let expected = [
        "./",
        "etc/",
        "etc/conf",
        "usr/",
        "usr/bin/",
        "usr/bin/app",
        "app",
        ".prefetch.landmark",
        "zz",
    ];
    assert_eq!(names, expected);
    assert_eq!(missing, [b"no/such"]);
}

#[test]
fn an_empty_list_keeps_the_order_and_adds_the_landmark_against_prefetching() {
    let (names, _, _) = names(&source(), &[]);
    assert_eq!(names[0], ".no.prefetch.landmark");
    assert_eq!(
        names[1..],
        [
            "./",
            "etc/",
            "usr/",
            "usr/bin/",
            "usr/bin/app",
            "app",
            "etc/conf",
            "zz"
        ]
    );
}

#[test]
fn a_replaced_file_with_hard_links_keeps_its_place() {
    let linked = Tar::default()
        .file("a", b"old")
        .entry(b'1', b"l", b"a", b"");
    let again = Tar {
        bytes: linked.bytes.clone(),
    }
    .file("b", b"")
    .file("l", b"new")
    .end();
    assert!(
        reorder(Cursor::new(&again), &[b"b".to_vec()]).is_ok(),
        "the link itself may be replaced"
    );
    let error = reorder(
        Cursor::new(linked.file("a", b"new").end()),
        &[b"l".to_vec()],
    )
    .unwrap_err();
    assert!(
        matches!(&error, Error::Path { path, .. } if path == "a"),
        "{error}"
    );
}

#[test]
fn links_in_a_circle_end() {
    let tar = Tar::default()
        .entry(b'1', b"a", b"b", b"")
        .entry(b'1', b"b", b"a", b"")
        .entry(b'1', b"self", b"self", b"")
        .file("usr/bin/app", &noise(2, 5000))
        .end();
    let (names, _, _) = names(&tar, &["a", "self"]);
    assert_eq!(names.len(), 5);
    assert_eq!(names[2..], ["self", ".prefetch.landmark", "usr/bin/app"]);
}

#[test]
fn a_last_entry_without_its_padding_is_moved_with_it() {
    let tar = Tar::default()
        .dir("usr/")
        .file("zz", b"1")
        .file("usr/bin/app", &noise(2, 5000))
        .bytes;
    let (names, _, out) = names(&tar[..tar.len() - 100], &["usr/bin/app"]);
    assert_eq!(names, ["usr/", "usr/bin/app", ".prefetch.landmark", "zz"]);
    assert_eq!(out.len() % 512, 0);
}
