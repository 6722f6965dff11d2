//! Random trees: mounted, and unpacked by GNU tar from a tar of the same tree.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use erofs_metadata::{Attributes, Time};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use crate::disk::assert_same;
use crate::mount::{Mounted, available, mount, overlay};
use crate::tree::{Entry, FileKind, Tree, content};

#[test]
fn random_trees_are_what_tar_unpacks() {
    if !available() {
        return;
    }
    let block_sizes = prop_oneof![3 => Just(4096), 1 => select(vec![512, 1024, 2048])];
    run(48, &(tree(), block_sizes), |(tree, block_size)| {
        let (image, data) = tree.image(block_size, [9; 16]);
        let mounted = mount(image, &data);
        let unpacked = tempfile::tempdir().unwrap();
        unpack(&tree.tar(), unpacked.path());
        assert_same(&mounted.root(), unpacked.path());
    });
}

/// The names are short, so that trees have the same: whiteouts, opaque directories and files hide
/// entries of the layers below.
#[test]
fn random_overlays_are_those_of_unpacked_trees() {
    if !available() {
        return;
    }
    run(24, &(tree(), tree()), |(lower, upper)| {
        let mounted = [(1, &upper), (2, &lower)].map(|(number, tree)| {
            let (image, data) = tree.image(4096, [number; 16]);
            mount(image, &data)
        });
        let unpacked = [&upper, &lower].map(|tree| {
            let folder = tempfile::tempdir().unwrap();
            unpack(&tree.tar(), folder.path());
            folder
        });
        let (actual, expected) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _actual = overlay(&mounted.each_ref().map(Mounted::root), actual.path());
        let unpacked = unpacked.each_ref().map(|folder| folder.path().to_owned());
        let _expected = overlay(&unpacked, expected.path());
        assert_same(actual.path(), expected.path());
    });
}

/// Runs `test` with random values: `PROPTEST_CASES` of them, or `cases`.
fn run<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    let config = Config {
        cases: wanted.and_then(|cases| cases.parse().ok()).unwrap_or(cases),
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

pub(crate) fn unpack(tar: &[u8], folder: &Path) {
    let mut child = Command::new("tar")
        .args([
            "--extract",
            "--same-permissions",
            "--same-owner",
            "--numeric-owner",
        ])
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--delay-directory-restore",
            "--warning=no-timestamp",
            "--directory",
        ])
        .arg(folder)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(tar).unwrap();
    assert!(child.wait().unwrap().success());
}

fn tree() -> impl Strategy<Value = Tree> {
    (attributes(), vec(step(), 0..60)).prop_map(|(root, steps)| {
        let mut builder = TreeBuilder::default();
        steps.into_iter().for_each(|step| builder.add(step));
        Tree {
            root,
            entries: builder.entries,
        }
    })
}

/// A file to be added to a tree that is not known yet.
#[derive(Clone, Debug)]
struct Step {
    parent: Index,
    name: Vec<u8>,
    what: What,
    attributes: Attributes,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum What {
    Kind(FileKind),
    HardLink(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let parts = (
        any::<Index>(),
        name(),
        what(),
        attributes(),
        vec(xattr(), 0..4),
    );
    parts.prop_map(|(parent, name, what, attributes, xattrs)| Step {
        parent,
        name,
        what,
        attributes,
        xattrs,
    })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in a name", |byte| !matches!(byte, 0 | b'/'));
    let short = vec(select(&b"!.ab~\xff"[..]), 1..4);
    prop_oneof![4 => short, 2 => vec(byte.clone(), 1..20), 1 => vec(byte, 200..=255)]
}

fn what() -> impl Strategy<Value = What> {
    let size = prop_oneof![select(vec![0, 1, 4095, 4096, 4097, 8192]), 0..20_000_usize];
    let target = vec(select(&b"abc/.."[..]), 1..300);
    prop_oneof![
        4 => Just(What::Kind(FileKind::Directory)),
        4 => (any::<u64>(), size).prop_map(|(seed, size)| What::Kind(FileKind::File(content(seed, size)))),
        2 => (any::<u64>(), 0..150_000_usize).prop_map(|(seed, size)| What::Kind(scattered(seed, size))),
        2 => target.prop_map(|target| What::Kind(FileKind::Symlink(target))),
        2 => any::<Index>().prop_map(What::HardLink),
        1 => (0..=4095_u32, 0..=1_048_575_u32).prop_map(|(major, minor)| What::Kind(FileKind::CharDevice(major, minor))),
        1 => (0..=4095_u32, 0..=1_048_575_u32).prop_map(|(major, minor)| What::Kind(FileKind::BlockDevice(major, minor))),
        1 => Just(What::Kind(FileKind::CharDevice(0, 0))),
        1 => Just(What::Kind(FileKind::Fifo)),
    ]
}

/// A file with zeros in some of its blocks.
fn scattered(seed: u64, size: usize) -> FileKind {
    let mut content = content(seed, size);
    for (number, block) in (0..64_u32).cycle().zip(content.chunks_mut(4096)) {
        if seed >> number & 1 == 1 {
            block.fill(0);
        }
    }
    FileKind::Scattered(content)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let owner = || prop_oneof![0..3_u32, 0..=0x001f_ffff_u32];
    // ext4 keeps 34 bits of seconds.
    let time = (0..0x3_0000_0000_i64, 0..1_000_000_000_u32);
    (0..=0o7777_u16, owner(), owner(), time).prop_map(
        |(permissions, uid, gid, (seconds, nanoseconds))| {
            Attributes::default()
                .with_permissions(permissions)
                .with_owner(uid, gid)
                .with_modified(Time {
                    seconds,
                    nanoseconds,
                })
        },
    )
}

fn xattr() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![
        select(vec![
            "user.a",
            "user.b",
            "user.mime_type",
            "trusted.overlay.opaque",
            "trusted.x"
        ])
        .prop_map(str::to_owned),
        "user\\.[a-z.]{1,40}",
    ];
    let value = prop_oneof![
        Just(b"y".to_vec()),
        vec(any::<u8>(), 1..30),
        vec(any::<u8>(), 500..700)
    ];
    (name.prop_map(String::into_bytes), value)
}

#[derive(Default)]
struct TreeBuilder {
    entries: Vec<Entry>,
    paths: HashSet<Vec<u8>>,
}

impl TreeBuilder {
    fn add(&mut self, step: Step) {
        let is_directory = |entry: &&Entry| entry.kind == FileKind::Directory;
        let directories: Vec<_> = self
            .entries
            .iter()
            .filter(is_directory)
            .map(|entry| entry.path.clone())
            .collect();
        let parents: Vec<_> = [Vec::new()].into_iter().chain(directories).collect();
        let parent = step.parent.get(&parents);
        let path = if parent.is_empty() {
            step.name.clone()
        } else {
            [parent, &b"/"[..], &step.name].concat()
        };
        let is_special = matches!(step.name.as_slice(), b"." | b"..");
        // The kernel reads paths of less than 4096 bytes.
        if is_special || path.len() > 3500 || !self.paths.insert(path.clone()) {
            return;
        }
        if let Some(kind) = self.kind(step.what) {
            let has_xattrs = matches!(
                kind,
                FileKind::Directory | FileKind::File(_) | FileKind::Scattered(_)
            );
            let mut xattrs = if has_xattrs { step.xattrs } else { Vec::new() };
            xattrs.sort();
            xattrs.dedup_by(|a, b| a.0 == b.0);
            let attributes = step.attributes;
            self.entries.push(Entry {
                path,
                kind,
                attributes,
                xattrs,
            });
        }
    }

    fn kind(&self, what: What) -> Option<FileKind> {
        let target = match what {
            What::Kind(kind) => return Some(kind),
            What::HardLink(target) => target,
        };
        let can_be_linked =
            |entry: &Entry| !matches!(entry.kind, FileKind::Directory | FileKind::HardLink(_));
        let targets: Vec<_> = (0..self.entries.len())
            .filter(|position| can_be_linked(&self.entries[*position]))
            .collect();
        (!targets.is_empty()).then(|| FileKind::HardLink(*target.get(&targets)))
    }
}
