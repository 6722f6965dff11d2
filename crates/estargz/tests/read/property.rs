//! Any entries survive being written and parsed, and the reader's tree matches them.

use std::collections::BTreeMap;

use estargz::toc::{Limits, TocWriter};
use estargz::{Digest, Entry, EntryKind};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::support::{PAYLOAD, parse};

fn any_entry() -> impl Strategy<Value = Entry> {
    let names = (
        "\\PC{0,12}",
        ".{0,12}",
        proptest::option::of(vec(any::<u8>(), 0..9)),
    );
    let numbers = (
        any::<u64>(),
        any::<i64>(),
        any::<i64>(),
        any::<u64>(),
        any::<i64>(),
    );
    let xattrs = btree_map(".{1,6}", vec(any::<u8>(), 0..6), 0..3);
    let kinds = prop::sample::select(vec![
        EntryKind::Dir,
        EntryKind::Reg,
        EntryKind::Chunk,
        EntryKind::Fifo,
    ]);
    (names, numbers, xattrs, kinds).prop_map(
        |((name, link_name, raw_link_name), numbers, xattrs, kind)| {
            let (size, mode, uid, offset, dev_major) = numbers;
            Entry {
                size,
                mode,
                uid,
                offset,
                dev_major,
                link_name,
                raw_link_name,
                xattrs,
                ..entry(name, kind)
            }
        },
    )
}

fn entry(name: String, kind: EntryKind) -> Entry {
    Entry {
        name,
        kind,
        size: 0,
        mod_time: String::new(),
        link_name: String::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        user_name: String::new(),
        group_name: String::new(),
        offset: 0,
        inner_offset: 0,
        dev_major: 0,
        dev_minor: 0,
        num_link: 0,
        xattrs: BTreeMap::new(),
        digest: String::new(),
        chunk_offset: 0,
        chunk_size: 0,
        chunk_digest: String::new(),
        raw_name: None,
        raw_link_name: None,
    }
}

fn write(entries: &[Entry]) -> String {
    let mut writer = TocWriter::new();
    entries.iter().for_each(|entry| writer.push(entry));
    String::from_utf8(writer.finish()).unwrap()
}

/// Files by path, with mode and content.
fn any_files() -> impl Strategy<Value = BTreeMap<String, (i64, Vec<u8>)>> {
    btree_map(
        "[a-c]{1,3}/[a-z\u{e9}]{1,6}",
        (0_i64..0o10000, vec(any::<u8>(), 0..30)),
        0..20,
    )
}

proptest! {
    #[test]
    fn entries_survive_being_written_and_parsed(entries in vec(any_entry(), 0..8)) {
        let document: serde_json::Value = serde_json::from_str(&write(&entries)).unwrap();
        let parsed: Vec<Entry> = serde_json::from_value(document["entries"].clone()).unwrap_or_default();
        let lossless = entries.into_iter().map(|entry| match &entry.raw_link_name {
            // The text of a field with exact bytes is made from them.
            Some(raw) => Entry { link_name: estargz::tar::lossy(raw), ..entry },
            None => entry,
        });
        prop_assert_eq!(parsed, lossless.collect::<Vec<_>>());
    }

    #[test]
    fn the_tree_matches_the_entries(files in any_files(), chunk_size in 1_u64..12) {
        let mut entries = Vec::new();
        for (offset, (path, (mode, content))) in (1..).zip(&files) {
            let size = content.len() as u64;
            let chunk = |at: usize, bytes: &[u8]| Entry {
                offset: offset * 20 + at as u64 / chunk_size,
                chunk_offset: at as u64,
                chunk_size: bytes.len() as u64,
                chunk_digest: Digest::of(bytes).to_string(),
                ..entry(path.clone(), EntryKind::Chunk)
            };
            let step = usize::try_from(chunk_size).unwrap();
            let mut chunks: Vec<Entry> =
                content.chunks(step).enumerate().map(|(index, bytes)| chunk(index * step, bytes)).collect();
            if chunks.is_empty() {
                chunks.push(entry(path.clone(), EntryKind::Reg));
            }
            chunks[0] = Entry { kind: EntryKind::Reg, size, mode: *mode, ..chunks[0].clone() };
            entries.extend(chunks.into_iter().filter(|chunk| chunk.offset < PAYLOAD));
        }
        let toc = parse(&write(&entries), &Limits::default()).unwrap();
        for (path, (mode, content)) in &files {
            let node = toc.lookup(path).unwrap();
            prop_assert_eq!((i64::from(node.mode()), node.size()), (*mode, content.len() as u64));
            let digests: Vec<_> = node.chunks().map(|chunk| chunk.digest).collect();
            let expected: Vec<_> =
                content.chunks(usize::try_from(chunk_size).unwrap()).map(|bytes| Some(Digest::of(bytes))).collect();
            prop_assert_eq!(digests, expected);
        }
        let below = toc.entries().filter(|entry| entry.path.contains(&b'/')).count();
        prop_assert_eq!(below, files.len());
    }
}
