//! Predictions for small images. Programs in them are files of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use estargz::toc::Kind;
use estargz::write::{Options, write};
use proptest::prelude::*;

use super::blobs::{Blob, Piece};
use super::view::View;
use super::*;
use crate::layers::digest::from_format;

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    File(Vec<u8>),
    Directory,
    Symlink(String),
}

pub(super) type Layer = BTreeMap<String, Node>;

pub(super) fn text(text: &str) -> Node {
    Node::File(text.as_bytes().to_vec())
}

pub(super) fn layer(entries: &[(&str, Node)]) -> Layer {
    entries
        .iter()
        .map(|(path, node)| ((*path).to_owned(), node.clone()))
        .collect()
}

fn blob(layer: &Layer) -> (Vec<u8>, estargz::write::Written) {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, node) in layer {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        match node {
            Node::File(content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())
                    .unwrap();
            }
            Node::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, path, std::io::empty())
                    .unwrap();
            }
            Node::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    let (tar, mut blob) = (tar.into_inner().unwrap(), Vec::new());
    let pool = estargz::pool::Pool::new(std::num::NonZeroUsize::MIN, 8 << 20);
    let written = write(tar.as_slice(), &mut blob, &Options::default(), &pool).unwrap();
    (blob, written)
}

/// Returns the task for an image of these layers, and their blobs.
pub(super) fn image(
    layers: &[Option<Layer>],
    configuration: &serde_json::Value,
) -> (Task, Vec<Vec<u8>>) {
    let built = layers.iter().map(|layer| {
        let (blob, written) = layer.as_ref().map(blob)?;
        let description = super::Layer {
            size: written.blob_size,
            toc_digest: TocDigest::Json(from_format(written.toc_digest)),
            external_toc: None,
        };
        Some((description, blob))
    });
    let (layers, blobs) = built
        .map(|layer| {
            layer.map_or((None, Vec::new()), |(description, blob)| {
                (Some(description), blob)
            })
        })
        .unzip();
    (
        Task {
            configuration: configuration.to_string(),
            layers,
        },
        blobs,
    )
}

/// Returns a reader of blobs in memory.
pub(super) fn reader(blobs: &[Vec<u8>]) -> Box<Read<'_>> {
    let at = |piece: &Piece| {
        let Blob::Layer(number) = piece.blob else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        let range = usize::try_from(piece.start).unwrap()..usize::try_from(piece.end).unwrap();
        Ok(bytes::Bytes::copy_from_slice(
            &blobs[number as usize][range],
        ))
    };
    Box::new(move |pieces: &[Piece]| pieces.iter().map(at).collect())
}

/// Returns the paths that are named for `argv`, in order. Asserts that each is a file of its layer.
fn named(layers: &[Layer], argv: &[&str]) -> Vec<String> {
    let layers: Vec<Option<Layer>> = layers.iter().cloned().map(Some).collect();
    let (task, blobs) = image(&layers, &serde_json::json!({"config": {"Cmd": argv}}));
    let predicted = predict(&task, reader(&blobs)).unwrap();
    assert_eq!(predicted.ended, None);
    assert_eq!(
        Ok(&predicted),
        predict(&task, reader(&blobs)).as_ref(),
        "the same image, the same list"
    );
    for file in &predicted.files {
        let layer = layers[file.layer as usize].as_ref().unwrap();
        assert!(
            matches!(layer.get(&file.path), Some(Node::File(_))),
            "{file:?}"
        );
    }
    predicted.files.into_iter().map(|file| file.path).collect()
}

/// Adds a file of this machine, and the links that lead to it.
fn add(layer: &mut Layer, path: &str) {
    let mut left: Vec<String> = view::components(path).rev().map(str::to_owned).collect();
    let mut at = PathBuf::from("/");
    while let Some(name) = left.pop() {
        let next = at.join(&name);
        let key = next.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
        let Ok(found) = std::fs::symlink_metadata(&next) else {
            return;
        };
        if found.is_symlink() {
            let target = std::fs::read_link(&next).unwrap();
            layer.insert(key, Node::Symlink(target.to_str().unwrap().to_owned()));
            let absolute: PathBuf =
                at.join(target)
                    .components()
                    .fold(PathBuf::new(), |mut path, component| {
                        if component == Component::ParentDir {
                            path.pop();
                        } else {
                            path.push(component);
                        }
                        path
                    });
            left.extend(
                view::components(absolute.to_str().unwrap())
                    .rev()
                    .map(str::to_owned),
            );
            at = PathBuf::from("/");
        } else if found.is_dir() {
            at = next;
        } else {
            layer.insert(key, Node::File(std::fs::read(&next).unwrap()));
        }
    }
}

/// Returns the real paths of a program's libraries, as reported by ldd(1).
fn ldd(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

/// Returns a layer with these programs and all their libraries.
pub(super) fn programs(programs: &[&str]) -> Layer {
    let mut layer = Layer::new();
    for program in programs {
        add(&mut layer, program);
        for library in ldd(program) {
            add(&mut layer, &library);
        }
    }
    for entry in std::fs::read_dir("/etc/ld.so.conf.d")
        .into_iter()
        .flatten()
        .flatten()
    {
        add(&mut layer, entry.path().to_str().unwrap());
    }
    add(&mut layer, "/etc/ld.so.conf");
    add(&mut layer, "/etc/ld.so.cache");
    layer
}

fn real(path: &str) -> String {
    Path::new(path)
        .canonicalize()
        .unwrap()
        .strip_prefix("/")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_programs_libraries_match_ldd() {
    for program in ["/bin/sh", "/usr/bin/curl"] {
        if !Path::new(program).exists() {
            continue;
        }
        let image = programs(&[program]);
        let files = named(&[image], &[program]);
        let is_library = |path: &&String| path.contains(".so") && !path.ends_with(".cache");
        let found: BTreeSet<String> = files.iter().filter(is_library).cloned().collect();
        let expected: BTreeSet<String> = ldd(program).iter().map(|path| real(path)).collect();
        assert_eq!(found, expected, "{program}");
        assert_eq!(files[0], real(program), "the program comes first");
        assert_eq!(files[2], "etc/ld.so.cache", "after the interpreter");
    }
}

#[test]
fn an_upper_layer_replaces_removes_and_redirects_files() {
    let lower = layer(&[
        ("bin/run", text("#!/bin/old\n")),
        ("bin/old", text("old")),
        ("opt/a/x", text("a")),
    ]);
    let upper = layer(&[
        ("bin/.wh.old", text("")),
        ("bin/run", text("#!/opt/link/x\n")),
        ("opt/link", Node::Symlink("a".to_owned())),
    ]);
    assert_eq!(
        named(&[lower.clone(), upper], &["run"])[..2],
        ["bin/run", "opt/a/x"]
    );
    let gone = layer(&[("bin/.wh..wh..opq", text(""))]);
    assert_eq!(named(&[lower, gone], &["run"]), [""; 0]);
}

#[test]
fn a_script_starts_the_programs_it_names_and_execs_its_arguments() {
    let mut image = programs(&["/bin/sh", "/usr/bin/env"]);
    let script = "#!/usr/bin/env sh\n. /lib.sh\nif [ \"$1\" = app ]; then helper /etc/app.conf >/dev/null; fi\nset -- no\nexec \"$@\"\n";
    for (path, content) in [
        ("entry", script),
        ("lib.sh", "X=/opt\n"),
        (
            "usr/bin/helper",
            "#!/bin/sh\ncat <<E\nother\nE\n$X/more one\n",
        ),
        ("usr/bin/other", "#!/bin/sh\n"),
        ("opt/more", "#!/bin/sh\n"),
        ("etc/app.conf", "x"),
        ("usr/bin/app", "#!/bin/sh\n"),
    ] {
        image.insert(path.to_owned(), text(content));
    }
    let files = named(&[image], &["/entry", "app"]);
    let own = [
        "entry",
        "lib.sh",
        "usr/bin/helper",
        "opt/more",
        "etc/app.conf",
        "usr/bin/app",
        "usr/bin/other",
    ];
    let own: Vec<_> = files
        .iter()
        .filter(|path| own.contains(&path.as_str()))
        .collect();
    assert_eq!(
        own,
        [
            "entry",
            "lib.sh",
            "usr/bin/helper",
            "opt/more",
            "etc/app.conf",
            "usr/bin/app"
        ]
    );
    assert!(
        files.contains(&real("/usr/bin/env")) && files.contains(&real("/bin/sh")),
        "{files:?}"
    );
}

#[test]
fn a_program_that_starts_itself_ends() {
    let looped = layer(&[
        ("a", text("#!/b\n")),
        ("b", text("#!/a\n")),
        ("bin/sh", text("sh")),
        ("c", Node::Symlink("d".to_owned())),
        ("d", Node::Symlink("/c".to_owned())),
    ]);
    assert_eq!(named(std::slice::from_ref(&looped), &["/a"]), ["a", "b"]);
    assert_eq!(named(std::slice::from_ref(&looped), &["/c"]), [""; 0]);
    assert_eq!(named(&[looped], &["sh"]), ["bin/sh"]);
}

#[test]
fn layers_without_a_record_are_not_read() {
    let upper = layer(&[("bin/app", text("#!/bin/sh\n"))]);
    let (task, blobs) = image(
        &[None, Some(upper)],
        &serde_json::json!({"config": {"Cmd": ["app"]}}),
    );
    let files = predict(&task, reader(&blobs)).unwrap().files;
    let files: Vec<_> = files
        .iter()
        .map(|file| (file.layer, file.path.as_str()))
        .collect();
    assert_eq!(files, [(1, "bin/app")]);
}

/// The files of an unpacker after all layers: the reference for the view.
#[derive(Default)]
struct Unpacked(BTreeMap<Vec<String>, (usize, Node)>);

impl Unpacked {
    fn new(layers: &[Layer]) -> Self {
        let mut all = Self::default();
        for (number, layer) in layers.iter().enumerate() {
            all.apply(number, layer);
        }
        all
    }

    fn apply(&mut self, number: usize, layer: &Layer) {
        let paths = || layer.iter().map(|(path, node)| (names(path), node));
        let has = |name: &[String]| paths().any(|(path, _)| path.starts_with(name));
        for (mut path, _) in paths() {
            let name = path.pop().unwrap();
            if name == ".wh..wh..opq" {
                self.remove(&path, false);
            } else if let Some(name) = name.strip_prefix(".wh.") {
                path.push(name.to_owned());
                // A layer that has the name has it in the place of its whiteout.
                if !has(&path) {
                    self.remove(&path, true);
                }
            }
        }
        for (path, node) in paths() {
            for end in 1..path.len() {
                self.put(path[..end].to_vec(), number, Node::Directory);
            }
            if !path.last().unwrap().starts_with(".wh.") {
                self.put(path, number, node.clone());
            }
        }
    }

    fn put(&mut self, path: Vec<String>, number: usize, node: Node) {
        if node != Node::Directory
            || self
                .0
                .get(&path)
                .is_some_and(|(_, before)| *before != Node::Directory)
        {
            self.remove(&path, true);
        }
        self.0.insert(path, (number, node));
    }

    fn remove(&mut self, path: &[String], itself: bool) {
        self.0
            .retain(|other, _| !other.starts_with(path) || !itself && other == path);
    }

    fn resolve(&self, path: &str) -> Option<(usize, String)> {
        let (mut at, mut left, mut hops) = (Vec::new(), names(path), 0);
        while !left.is_empty() {
            let name = left.remove(0);
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            match self.0.get(&at)? {
                (_, Node::Directory) => {}
                (_, Node::Symlink(target)) => {
                    hops += 1;
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    left.splice(0..0, names(target));
                    if hops > 40 {
                        return None;
                    }
                }
                (number, Node::File(_)) => return left.is_empty().then(|| (*number, at.join("/"))),
            }
        }
        Some((
            self.0.get(&at).map_or(usize::MAX, |(number, _)| *number),
            at.join("/"),
        ))
    }
}

fn names(path: &str) -> Vec<String> {
    view::components(path).map(str::to_owned).collect()
}

fn any_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["[abc]", "[abc]", "[abc]"], 1..4)
        .prop_map(|names| names.join("/"))
}

fn any_layer() -> impl Strategy<Value = Layer> {
    let target = prop_oneof![
        any_path(),
        any_path().prop_map(|path| format!("/{path}")),
        any_path().prop_map(|path| format!("../{path}"))
    ];
    let node = prop_oneof![
        3 => Just((text("x"), "")),
        2 => Just((Node::Directory, "")),
        2 => target.prop_map(|target| (Node::Symlink(target), "")),
        1 => Just((text(""), ".wh.")),
        1 => Just((text(""), "/.wh..wh..opq")),
    ];
    proptest::collection::vec((any_path(), node), 0..8).prop_map(|entries| {
        let mut layer = Layer::new();
        for (path, (node, mark)) in entries {
            let path = match mark {
                ".wh." => match path.rsplit_once('/') {
                    Some((parent, name)) => format!("{parent}/.wh.{name}"),
                    None => format!(".wh.{path}"),
                },
                mark => format!("{path}{mark}"),
            };
            layer.insert(path, node);
        }
        // In one layer of a tar, only directories have entries below them.
        let others: Vec<String> = layer
            .iter()
            .filter(|(_, node)| **node != Node::Directory)
            .map(|(path, _)| path.clone())
            .collect();
        layer.retain(|path, _| {
            !others
                .iter()
                .any(|other| path.starts_with(&format!("{other}/")))
        });
        layer
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_view_has_the_files_of_an_unpacker(layers in proptest::collection::vec(any_layer(), 1..4), paths in proptest::collection::vec(any_path(), 1..40)) {
        let toc = |layer: &Layer| {
            let (blob, written) = blob(layer);
            let size = blob.len() as u64;
            let at = |range: std::ops::Range<u64>| &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            let footer = estargz::Footer::parse(at(estargz::footer::tail_range(size)), size).unwrap();
            let section = at(footer.toc_range().unwrap());
            let toc = estargz::UnverifiedToc::parse(section, &footer, &estargz::toc::Limits::default()).unwrap();
            std::sync::Arc::new(toc.verify(&written.toc_digest).unwrap())
        };
        let view = View::new(layers.iter().map(|layer| Some(toc(layer))).collect(), Fuel::new());
        let unpacked = Unpacked::new(&layers);
        for path in &paths {
            let found = view.resolve(path).map(|found| (found.layer, found.path, found.kind));
            let expected = unpacked.resolve(path);
            prop_assert_eq!(found.clone().map(|(layer, path, _)| (layer, path)), expected, "{}", path);
            if let Some((_, at, Kind::Directory)) = found {
                let at = names(&at);
                let children = unpacked.0.keys().filter(|path| path.len() == at.len() + 1 && path.starts_with(&at));
                let children: Vec<String> = children.map(|path| path.last().unwrap().clone()).collect();
                prop_assert_eq!(view.names(path), children, "{}", path);
            }
        }
    }
}
