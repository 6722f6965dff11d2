//! Directories: their sizes, their names, and depth.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use erofs_metadata::{Attributes, Data, Image, Kind};

use crate::disk::assert_same;
use crate::mount::{Mounted, available, mount};
use crate::random::unpack;
use crate::tree::{Entry, FileKind, Tree};

fn compare(tree: &Tree) -> Mounted {
    let (image, data) = tree.image(4096, [1; 16]);
    let mounted = mount(image, &data);
    let unpacked = tempfile::tempdir().unwrap();
    unpack(&tree.tar(), unpacked.path());
    assert_same(&mounted.root(), unpacked.path());
    mounted
}

fn empty_files(directory: &str, names: impl Iterator<Item = Vec<u8>>) -> Vec<Entry> {
    let directory = directory.as_bytes().to_vec();
    let parent = Entry::new(&directory, FileKind::Directory);
    let path = |name: Vec<u8>| [&directory[..], b"/", &name].concat();
    let files = names.map(|name| Entry::new(&path(name), FileKind::File(Vec::new())));
    [parent].into_iter().chain(files).collect()
}

#[test]
fn directories_of_any_size() {
    if !available() {
        return;
    }
    let sizes = [0, 1, 2, 50, 200, 5000];
    let directory = |size: usize| {
        let names = (0..size).map(|number| format!("name-{number}").into_bytes());
        empty_files(&format!("of-{size}"), names)
    };
    compare(&Tree::new(sizes.into_iter().flat_map(directory).collect()));
}

/// The inode and its entries fill the block to the last byte, or the entries fill a block of their
/// own, or one name more or less is there.
#[test]
fn directories_around_the_end_of_a_block() {
    if !available() {
        return;
    }
    // "." and ".." take 27 bytes, each of these names 12 and its length.
    for target in [4096 - 64, 4096, 2 * 4096, 2 * 4096 - 64] {
        for difference in -2..=2_i64 {
            let bytes = usize::try_from(target + difference).unwrap() - 27;
            let full = bytes / 112;
            let rest = bytes - full * 112;
            let mut lengths = vec![100; full];
            match rest {
                0 => {}
                1..=12 => *lengths.last_mut().unwrap() += rest,
                rest => lengths.push(rest - 12),
            }
            let names = lengths.iter().enumerate().map(|(number, length)| {
                let mut name = format!("{number:04}").into_bytes();
                name.resize(*length, b'x');
                name
            });
            let tree = Tree::new(empty_files("d", names.filter(|name| !name.is_empty())));
            compare(&tree);
        }
    }
}

#[test]
fn names_of_every_byte() {
    if !available() {
        return;
    }
    let bytes = (1..=255_u8).filter(|byte| !matches!(byte, b'/' | b'.'));
    let pairs = bytes.clone().flat_map(|byte| {
        [
            vec![byte],
            vec![b'a', byte],
            vec![b'.', byte],
            vec![byte, b'.'],
        ]
    });
    let long = [
        vec![0xff; 255],
        [&[0xff; 254][..], b"!"].concat(),
        vec![b'!'; 255],
        b"...".to_vec(),
    ];
    let mut names: Vec<_> = pairs.chain(long).collect();
    names.sort();
    names.dedup();
    let mounted = compare(&Tree::new(empty_files("d", names.iter().cloned())));
    for name in names {
        let path = mounted.path("d").join(std::ffi::OsStr::from_bytes(&name));
        assert!(fs::symlink_metadata(path).is_ok(), "{name:?}");
    }
    for absent in ["", "a", "b", "~~~", "zzzz"].map(|name| mounted.path("d/absent").join(name)) {
        assert!(fs::symlink_metadata(absent).is_err());
    }
}

#[test]
fn deep_trees() {
    if !available() {
        return;
    }
    let mut image = Image::builder().build().unwrap();
    let mut directory = image.root();
    for _ in 0..1500 {
        directory = image
            .insert(directory, b"d", Kind::Directory, &Attributes::default())
            .unwrap();
    }
    image
        .insert(directory, b"end", Kind::Fifo, &Attributes::default())
        .unwrap();
    let mounted = mount(image, &[0; 4096]);
    let path = mounted.path(&"d/".repeat(1500)).join("end");
    assert!(fs::symlink_metadata(path).is_ok());
    // As far as a path can say it; 20,000 deep is written without a stack of that depth.
    let mut image = Image::builder().build().unwrap();
    let mut directory = image.root();
    for _ in 0..20_000 {
        directory = image
            .insert(directory, b"d", Kind::Directory, &Attributes::default())
            .unwrap();
    }
    image.write_to(std::io::sink()).unwrap();
}

#[test]
fn hard_links_across_directories() {
    if !available() {
        return;
    }
    let file = FileKind::File(b"same".to_vec());
    let entries = vec![
        Entry::new(b"a", FileKind::Directory),
        Entry::new(b"b", FileKind::Directory),
        Entry::new(b"b/c", FileKind::Directory),
        Entry::new(b"b/c/file", file),
        Entry::new(b"a/link", FileKind::HardLink(3)),
        Entry::new(b"zlink", FileKind::HardLink(3)),
        Entry::new(b"b/fifo", FileKind::Fifo),
        Entry::new(b"fifo", FileKind::HardLink(6)),
        Entry::new(b"a/symlink", FileKind::Symlink(b"nowhere".to_vec())),
        Entry::new(b"symlink", FileKind::HardLink(8)),
    ];
    let mounted = compare(&Tree::new(entries));
    assert_eq!(fs::metadata(mounted.path("a/link")).unwrap().nlink(), 3);
}

#[test]
fn the_layout_knows_inode_numbers() {
    if !available() {
        return;
    }
    let mut image = Image::builder().build().unwrap();
    let file = Kind::File {
        size: 1,
        data: Data::At(0),
    };
    let node = image
        .insert(image.root(), b"file", file, &Attributes::default())
        .unwrap();
    let mut again = Image::builder().build().unwrap();
    again
        .insert(again.root(), b"file", file, &Attributes::default())
        .unwrap();
    let layout = again.layout().unwrap();
    let mounted = mount(image, &[7; 4096]);
    assert_eq!(
        layout.inode_number(node),
        Some(fs::metadata(mounted.path("file")).unwrap().ino())
    );
    assert_eq!(fs::metadata(mounted.root()).unwrap().ino(), 40);
}

/// A directory for every thousand files.
#[test]
fn half_a_million_entries() {
    if !available() {
        return;
    }
    let mut image = Image::builder().device(1).build().unwrap();
    let attributes = Attributes::default().with_permissions(0o644);
    for directory in 0..500 {
        let name = format!("directory-{directory:03}");
        let parent = image
            .insert(
                image.root(),
                name.as_bytes(),
                Kind::Directory,
                &Attributes::default(),
            )
            .unwrap();
        for file in 0..999 {
            let kind = Kind::File {
                size: 4096,
                data: Data::At(0),
            };
            image
                .insert(
                    parent,
                    format!("file-{file:03}").as_bytes(),
                    kind,
                    &attributes,
                )
                .unwrap();
        }
    }
    assert_eq!(image.inodes(), 500_001);
    let mounted = mount(image, &[b'x'; 4096]);
    let directories = fs::read_dir(mounted.root())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = directories.flat_map(|directory| fs::read_dir(directory).unwrap());
    let sizes = files.map(|file| file.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.filter(|size| *size == 4096).count(), 499_500);
    assert_eq!(
        fs::read(mounted.path("directory-499/file-998")).unwrap(),
        [b'x'; 4096]
    );
}
