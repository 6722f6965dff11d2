//! Random trees, archived by the `tar` crate, survive conversion.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use estargz::verify::{self, Expected};
use estargz::write::{Compression, Layout, Options, write};
use proptest::prelude::*;

use crate::support::{noise, pool, read_back, stream, try_convert};

#[derive(Debug, Clone)]
pub(crate) enum Item {
    File {
        size: usize,
        seed: u64,
        is_plain: bool,
    },
    Dir,
    Symlink(String),
    Hardlink(u8),
    Fifo,
}

pub(crate) fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => (0_usize..20_000, any::<u64>(), any::<bool>())
            .prop_map(|(size, seed, is_plain)| Item::File { size, seed, is_plain }),
        1 => Just(Item::Dir),
        1 => "[a-z/.]{1,150}".prop_map(Item::Symlink),
        1 => any::<u8>().prop_map(Item::Hardlink),
        1 => Just(Item::Fifo),
    ]
}

pub(crate) fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-c]/[a-d]", 1 => "[a-zé]{1,20}", 1 => "[a-z]{60}/[a-z]{90,180}"]
}

pub(crate) fn options() -> impl Strategy<Value = Options> {
    let compression = prop_oneof![
        Just(Compression::Gzip(6)),
        Just(Compression::Gzip(1)),
        Just(Compression::Zstd(1))
    ];
    let layout = prop_oneof![Just(Layout::SourceFirst), Just(Layout::Classic)];
    let chunk_size = prop_oneof![Just(777_u32), Just(4096), Just(4 << 20)];
    let min_chunk_size = prop_oneof![Just(0_u32), Just(5000)];
    (compression, layout, chunk_size, min_chunk_size).prop_map(
        |(compression, layout, chunk_size, min_chunk_size)| {
            Options::default()
                .with_compression(compression)
                .with_layout(layout)
                .with_chunk_size(chunk_size)
                .with_min_chunk_size(min_chunk_size)
        },
    )
}

pub(crate) fn archive(items: &[(String, Item)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, item) in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        match item {
            Item::File {
                size,
                seed,
                is_plain,
            } => {
                let content = if *is_plain {
                    vec![b'p'; *size]
                } else {
                    noise(*seed, *size)
                };
                header.set_size(content.len() as u64);
                builder
                    .append_data(&mut header, name, &content[..])
                    .unwrap();
            }
            Item::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                builder
                    .append_data(&mut header, format!("{name}/"), &[][..])
                    .unwrap();
            }
            Item::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                builder.append_data(&mut header, name, &[][..]).unwrap();
            }
            Item::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target).unwrap();
            }
            Item::Hardlink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                let target = &items[usize::from(*target) % items.len()].0;
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// Every path's last entry according to the `tar` crate: type and content.
pub(crate) fn oracle(tar: &[u8]) -> BTreeMap<String, (&'static str, Vec<u8>)> {
    let mut seen = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => "dir",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Link => "hardlink",
            tar::EntryType::Fifo => "fifo",
            _ => "reg",
        };
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        seen.insert(name.trim_end_matches('/').to_owned(), (kind, content));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_random_tree_survives(items in prop::collection::vec((name(), item()), 1..40), options in options()) {
        let source = archive(&items);
        // A tar with an entry below a file, or in the place of a directory with entries, is
        // refused.
        let Ok((blob, written)) = try_convert(&source, &options) else { return Ok(()) };
        let expected = Expected::default().with_external_toc(written.external_toc.as_deref());
        prop_assert_eq!(verify::blob(Cursor::new(&blob), &expected).unwrap().findings, []);
        prop_assert_eq!(verify::against(Cursor::new(&blob), &expected, &source[..]).unwrap(), []);
        let read = read_back(&blob, &written, &options);
        let stream = stream(&blob, options.compression);
        if options.layout == Layout::SourceFirst {
            prop_assert!(stream.starts_with(&source));
        }
        let expected = oracle(&source);
        let listed: BTreeMap<String, (String, Vec<u8>)> = read.entries.iter()
            .filter(|entry| entry["type"] != "chunk" && entry["name"] != ".no.prefetch.landmark")
            .map(|entry| {
                let name = entry["name"].as_str().unwrap();
                let content = read.contents.get(name).cloned().unwrap_or_default();
                (name.trim_end_matches('/').to_owned(), (entry["type"].as_str().unwrap().to_owned(), content))
            })
            .collect();
        prop_assert_eq!(listed.len(), expected.len());
        for (name, (kind, content)) in expected {
            // A hard link whose target's path went to another entry is listed as the target itself.
            if kind != "hardlink" {
                prop_assert_eq!(&listed[&name], &(kind.to_owned(), content));
            }
        }
    }

    #[test]
    fn any_bytes_are_a_blob_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0_usize..300_000) {
        let mut tar = crate::support::every_type();
        let at = at.min(tar.len() - bytes.len());
        tar[at..at + bytes.len()].copy_from_slice(&bytes);
        let _is_no_panic = write(&tar[..], std::io::sink(), &Options::fast(), &pool(1));
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_budget() {
    let mut items: Vec<(String, Item)> = Vec::new();
    for seed in 0..400_u64 {
        let size = usize::try_from(seed * 97 % 30_011).unwrap();
        items.push((
            format!("dir/file-{seed}"),
            Item::File {
                size,
                seed,
                is_plain: seed % 3 == 0,
            },
        ));
    }
    items.push((
        "large".to_owned(),
        Item::File {
            size: 9 << 20,
            seed: 1,
            is_plain: false,
        },
    ));
    let source = archive(&items);
    for options in [
        Options::fast(),
        Options::fast().with_min_chunk_size(100_000),
    ] {
        let digest = |threads: usize, budget: usize| {
            let pool = estargz::pool::Pool::new(threads.try_into().unwrap(), budget);
            write(&source[..], std::io::sink(), &options, &pool)
                .unwrap()
                .blob_digest
        };
        let one = digest(1, 64 << 20);
        for (threads, budget) in [(2, 64 << 20), (3, 1), (8, 8 << 20), (8, 300 << 20)] {
            assert_eq!(
                digest(threads, budget),
                one,
                "{threads} threads, {budget} bytes"
            );
        }
    }
}

#[test]
fn layers_that_share_a_small_budget_all_end() {
    let source = archive(&[(
        "large".to_owned(),
        Item::File {
            size: 20 << 20,
            seed: 1,
            is_plain: false,
        },
    )]);
    let pool = estargz::pool::Pool::new(2.try_into().unwrap(), 9 << 20);
    let digests: Vec<_> = std::thread::scope(|scope| {
        let convert = || {
            write(&source[..], std::io::sink(), &Options::fast(), &pool)
                .unwrap()
                .blob_digest
        };
        let layers: Vec<_> = (0..8).map(|_| scope.spawn(convert)).collect();
        layers
            .into_iter()
            .map(|layer| layer.join().unwrap())
            .collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}
