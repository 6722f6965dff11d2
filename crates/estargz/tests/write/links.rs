//! Hard links whose targets are replaced: a lazy mount shows the same tree as an unpacked tar.

use std::collections::BTreeMap;
use std::io::Cursor;

use estargz::footer::{self, Footer};
use estargz::toc::Limits;
use estargz::verify::{self, Expected};
use estargz::write::{Error, Options, TocPlacement, Written};
use estargz::{Toc, UnverifiedToc};

use crate::layout::all_options;
use crate::support::{Tar, convert, noise, read_back, try_convert};

fn tree(blob: &[u8], written: &Written) -> Toc {
    let size = blob.len() as u64;
    let tail = usize::try_from(footer::tail_range(size).start).unwrap();
    let footer = Footer::parse(&blob[tail..], size).unwrap();
    let section = match (&written.external_toc, footer.toc_range()) {
        (Some(external), _) => &external[..],
        (None, range) => {
            let range = range.unwrap();
            &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        }
    };
    UnverifiedToc::parse(section, &footer, &Limits::default())
        .unwrap()
        .verify(&written.toc_digest)
        .unwrap()
}

/// The content of every file of the blob's tree, and the number of its names.
fn files(blob: &[u8], written: &Written) -> BTreeMap<String, (Vec<u8>, u32)> {
    let toc = tree(blob, written);
    let mut files = BTreeMap::new();
    for entry in toc
        .entries()
        .filter(|entry| entry.node.kind() == estargz::toc::Kind::File)
    {
        let mut content = Vec::new();
        for chunk in entry.node.chunks() {
            let range = usize::try_from(chunk.range.start).unwrap()
                ..usize::try_from(chunk.range.end).unwrap();
            content.extend(chunk.decode(&blob[range]).unwrap());
        }
        files.insert(
            String::from_utf8(entry.path).unwrap(),
            (content, entry.node.links()),
        );
    }
    files.remove(".no.prefetch.landmark");
    files
}

fn hard(tar: Tar, name: &str, target: &str) -> Tar {
    tar.entry(b'1', name.as_bytes(), target.as_bytes(), b"")
}

/// The files of `tar` in every layout, which must agree with each other and with the source.
fn lazily(tar: Tar) -> BTreeMap<String, (String, u32)> {
    let source = tar.end();
    let mut all = Vec::new();
    for options in all_options() {
        let (blob, written) = convert(&source, &options);
        read_back(&blob, &written, &options);
        let expected = Expected::default().with_external_toc(written.external_toc.as_deref());
        assert_eq!(
            verify::against(Cursor::new(&blob), &expected, &source[..]).unwrap(),
            [],
            "{options:?}"
        );
        assert_eq!(
            verify::blob(Cursor::new(&blob), &expected)
                .unwrap()
                .findings,
            [],
            "{options:?}"
        );
        all.push(files(&blob, &written));
    }
    assert!(all.iter().all(|files| *files == all[0]));
    let text = |content: Vec<u8>| String::from_utf8_lossy(&content).into_owned();
    all.remove(0)
        .into_iter()
        .map(|(path, (content, links))| (path, (text(content), links)))
        .collect()
}

fn expected(files: &[(&str, &str, u32)]) -> BTreeMap<String, (String, u32)> {
    files
        .iter()
        .map(|(path, text, links)| ((*path).to_owned(), ((*text).to_owned(), *links)))
        .collect()
}

#[test]
fn a_link_keeps_the_content_that_its_target_had() {
    let tar = hard(Tar::default().file("a", b"old"), "l", "a").file("a", b"new");
    assert_eq!(lazily(tar), expected(&[("a", "new", 1), ("l", "old", 1)]));
}

/// Unpackers follow the symbolic link, readers of a TOC do not.
#[test]
fn a_link_to_a_path_below_a_symbolic_link_is_refused() {
    let tar = Tar::default()
        .file("usr/lib/x", b"x")
        .entry(b'2', b"lib", b"usr/lib", b"");
    let above = hard(
        Tar {
            bytes: tar.bytes.clone(),
        },
        "y",
        "lib",
    );
    let source = hard(tar, "y", "./lib/x").end();
    for options in all_options() {
        let error = try_convert(&source, &options).unwrap_err();
        assert!(
            matches!(&error, Error::Path { path, .. } if path == "lib/x"),
            "{error}"
        );
        convert(
            &Tar {
                bytes: above.bytes.clone(),
            }
            .end(),
            &options,
        );
    }
}

#[test]
fn all_links_keep_sharing_the_content() {
    let tar = hard(
        hard(Tar::default().file("a", b"old"), "dir/l", "./a"),
        "m",
        "dir/l",
    )
    .dir("dir/");
    let tar = hard(tar.file("a", b"new"), "n", "m");
    assert_eq!(
        lazily(tar),
        expected(&[
            ("a", "new", 1),
            ("dir/l", "old", 3),
            ("m", "old", 3),
            ("n", "old", 3)
        ])
    );
}

#[test]
fn a_link_to_a_dangling_link_dangles_with_it() {
    let tar = hard(hard(Tar::default(), "b", "later"), "l", "b")
        .file("later", b"3")
        .file("b", b"2");
    assert_eq!(
        lazily(tar),
        expected(&[("b", "2", 1), ("l", "3", 2), ("later", "3", 2)])
    );
}

#[test]
fn a_link_that_took_over_can_be_replaced_too() {
    let tar = hard(hard(Tar::default().file("a", b"old"), "l", "a"), "m", "a")
        .file("a", b"new")
        .file("l", b"newer");
    assert_eq!(
        lazily(tar),
        expected(&[("a", "new", 1), ("l", "newer", 1), ("m", "old", 1)])
    );
    let tar = hard(Tar::default().file("a", b"old"), "l", "a")
        .file("l", b"mine")
        .file("a", b"new");
    assert_eq!(lazily(tar), expected(&[("a", "new", 1), ("l", "mine", 1)]));
}

#[test]
fn a_link_to_a_link_keeps_the_shared_content() {
    let linked = || hard(hard(Tar::default().file("a", b"old"), "l", "a"), "m", "l");
    assert_eq!(
        lazily(linked().file("l", b"new")),
        expected(&[("a", "old", 2), ("l", "new", 1), ("m", "old", 2)])
    );
    assert_eq!(
        lazily(linked().dir("l/")),
        expected(&[("a", "old", 2), ("m", "old", 2)])
    );
    let other = hard(linked().file("b", b"other"), "l", "b");
    assert_eq!(
        lazily(other),
        expected(&[
            ("a", "old", 2),
            ("b", "other", 2),
            ("l", "other", 2),
            ("m", "old", 2)
        ])
    );
    let both = linked().file("l", b"new").file("a", b"newer");
    assert_eq!(
        lazily(both),
        expected(&[("a", "newer", 1), ("l", "new", 1), ("m", "old", 1)])
    );
}

#[test]
fn a_link_that_replaces_its_target_is_no_change() {
    let tar = hard(hard(Tar::default().file("a", b"old"), "l", "a"), "a", "l");
    assert_eq!(lazily(tar), expected(&[("a", "old", 2), ("l", "old", 2)]));
}

#[test]
fn a_target_of_many_chunks_moves_as_a_whole() {
    let content = noise(3, 200_000);
    let tar = hard(hard(Tar::default().file("a", &content), "l", "a"), "m", "a").file("a", b"new");
    let text = String::from_utf8_lossy(&content).into_owned();
    assert_eq!(
        lazily(tar),
        expected(&[("a", "new", 1), ("l", &text, 2), ("m", &text, 2)])
    );
}

#[test]
fn replacing_linked_files_takes_linear_time() {
    let mut tar = Tar::default().file("a", &noise(1, 100_000));
    for number in 0..20_000 {
        tar.header(
            b'1',
            format!("l{number}").as_bytes(),
            b"a",
            0,
            b"ustar\x0000",
        );
    }
    for number in 0..20_000 {
        tar.header(
            b'0',
            format!("l{number}").as_bytes(),
            b"",
            0,
            b"ustar\x0000",
        );
    }
    let options = Options::fast().with_chunk_size(10);
    let (blob, written) = convert(&tar.file("a", b"new").end(), &options);
    assert_eq!(written.entries, 20_002);
    assert_eq!(tree(&blob, &written).lookup("a").unwrap().size(), 3);
}

#[test]
fn a_link_to_a_dangling_link_is_verified_after_its_target_was_replaced() {
    let mut tar = hard(Tar::default(), "a", "a");
    tar = tar.pax(b'x', &[("mtime", b"1")]);
    tar = hard(hard(tar, "b", "a"), "a", "elsewhere");
    let tar = tar.end();
    for options in all_options() {
        let (blob, written) = convert(&tar, &options);
        let expected = Expected::default().with_external_toc(written.external_toc.as_deref());
        let report = verify::blob(Cursor::new(&blob), &expected).unwrap();
        assert_eq!(report.findings, [], "{options:?}");
        let findings = verify::against(Cursor::new(&blob), &expected, &tar[..]).unwrap();
        assert_eq!(findings, [], "{options:?}");
    }
}

#[test]
fn entries_that_need_an_unlisted_one_are_refused() {
    let refused = |tar: Tar, options: &Options| match try_convert(&tar.end(), options) {
        Err(Error::Path { path, .. }) => path,
        other => panic!("{other:?}"),
    };
    for options in all_options() {
        for name in ["stargz.index.json", "./.no.prefetch.landmark"] {
            let file = || Tar::default().file(name, b"x");
            let below = format!("{name}/below");
            let clean = below.trim_start_matches("./");
            assert_eq!(refused(file().file(&below, b""), &options), clean);
            assert_eq!(refused(hard(file(), "link", name), &options), "link");
            assert_eq!(
                refused(hard(Tar::default(), "link", name), &options),
                "link"
            );
        }
        let directory = Tar::default()
            .dir("stargz.index.json/")
            .file("stargz.index.json/below", b"");
        assert!(try_convert(&directory.end(), &options).is_ok());
    }
}

#[test]
fn ambiguous_tars_are_refused() {
    let refused = |tar: Tar| match try_convert(&tar.end(), &Options::default()) {
        Err(Error::Path { path, .. }) => path,
        other => panic!("{other:?}"),
    };
    let link = || {
        Tar::default()
            .file("usr/lib/x", b"x")
            .entry(b'2', b"lib", b"usr/lib", b"")
    };
    assert_eq!(refused(link().file("lib/y", b"y")), "lib/y");
    assert_eq!(refused(link().dir("lib/deep/er/")), "lib/deep/er");
    assert_eq!(
        refused(Tar::default().file("a", b"").file("a/b", b"")),
        "a/b"
    );
    assert_eq!(
        refused(Tar::default().file("a/b", b"").entry(b'2', b"a", b"c", b"")),
        "a"
    );
    assert_eq!(refused(Tar::default().file("./", b"")), "");
    let sparse = || {
        Tar::default()
            .pax(
                b'x',
                &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9")],
            )
            .file("a", b"x")
    };
    assert_eq!(refused(hard(sparse(), "l", "a").file("a", b"new")), "a");
    let options = Options::default().with_toc(TocPlacement::External);
    assert!(matches!(
        try_convert(&sparse().end(), &options),
        Err(Error::SparseExternal)
    ));
}
