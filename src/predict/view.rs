//! What a container sees: the layers' trees on top of each other, as overlayfs merges them.
//!
//! A directory is the directories of its name in all layers down to one that is opaque, or to a layer that has a whiteout
//! or something else by that name (OCI image-spec, layer.md, "Whiteouts"). Layers without a TOC are not looked into:
//! what only they have is not there, and what they hide is.

use std::sync::Arc;

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId};

use super::fuel::Fuel;
use crate::layers::names::{OPAQUE, is_format_entry, is_marker, whiteout_of};

/// How many symbolic links a path may lead through (Linux, `MAXSYMLINKS`).
const MAX_HOPS: usize = 40;
/// The longest path that leads anywhere (Linux, `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// What looking a name up in one layer takes, in steps: the name and its whiteout, each among all names of a directory.
const STEPS_OF_LAYER: u64 = 4;
/// Most components that are left to walk, those of links' targets among them: `PATH_MAX` holds half as many.
const MAX_COMPONENTS: usize = 4096;
/// The layers of an image, merged. Names that are no UTF-8 are not seen.
#[derive(Debug)]
pub(super) struct View {
    layers: Vec<Option<Arc<Toc>>>,
    root: Directory,
    fuel: Fuel,
}

/// What a path leads to once all symbolic links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathTarget {
    /// The layer it is from, counted from the bottom; the uppermost one of a directory.
    pub(super) layer: usize,
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Without links and without a slash in front: it is the path in the layer too.
    pub(super) path: String,
}

/// A directory: its nodes in the layers, uppermost first.
type Directory = Vec<(usize, NodeId)>;

enum Child {
    Directory(Directory),
    Other(usize, NodeId),
}

impl View {
    /// Over the TOCs of an image's layers, bottom first.
    pub(super) fn new(layers: Vec<Option<Arc<Toc>>>, fuel: Fuel) -> Self {
        let root = root(&layers);
        Self { layers, root, fuel }
    }

    /// What `path` leads to from the root; `None` if it leads nowhere, and once the fuel has ended.
    pub(super) fn resolve(&self, path: &str) -> Option<PathTarget> {
        // Whoever asks has put the path together, however long it is.
        if !self.fuel.look_through(path.len() + self.root.len())
            || path.len() > MAX_PATH
            || !self.fuel.make(path.len())
        {
            return None;
        }
        let mut left: Vec<String> = reversed(path);
        let mut names: Vec<String> = Vec::new();
        let mut walked = vec![self.root.clone()];
        let mut hops = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                names.pop();
                walked.truncate(walked.len().saturating_sub(1).max(1));
                continue;
            }
            match self.child(walked.last()?, &name)? {
                Child::Directory(directory) => {
                    walked.push(directory);
                    names.push(name);
                }
                Child::Other(layer, id) => {
                    let node = self.node(layer, id)?;
                    let is_link = matches!(node.kind(), Kind::Symlink | Kind::DanglingLink);
                    if !is_link {
                        names.push(name);
                        return left.is_empty().then(|| found(layer, node, &names));
                    }
                    hops += 1;
                    let target = std::str::from_utf8(node.target()).ok()?;
                    if hops > MAX_HOPS || !self.fuel.make(target.len()) {
                        return None;
                    }
                    // A hard link to a file of another layer names it from the root.
                    if target.starts_with('/') || node.kind() == Kind::DanglingLink {
                        names.clear();
                        walked.truncate(1);
                    }
                    left.extend(reversed(target));
                    if left.len() > MAX_COMPONENTS {
                        return None;
                    }
                }
            }
        }
        let (layer, id) = *walked.last()?.first()?;
        let node = self.node(layer, id)?;
        self.fuel.lasts().then(|| found(layer, node, &names))
    }

    /// The regular file that `path` leads to.
    pub(super) fn file(&self, path: &str) -> Option<PathTarget> {
        self.resolve(path).filter(|found| found.kind == Kind::File)
    }

    /// Whether `path` leads to a directory.
    pub(super) fn is_directory(&self, path: &str) -> bool {
        self.resolve(path)
            .is_some_and(|found| found.kind == Kind::Directory)
    }

    /// The names in the directory that `path` leads to, in order; none if there is no such directory, and once the fuel
    /// has ended.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Some(found) = self
            .resolve(path)
            .filter(|found| found.kind == Kind::Directory)
        else {
            return Vec::new();
        };
        let mut directory = self.root.clone();
        for name in components(&found.path) {
            let Some(Child::Directory(child)) = self.child(&directory, name) else {
                return Vec::new();
            };
            directory = child;
        }
        let nodes = directory
            .iter()
            .filter_map(|(layer, id)| self.node(*layer, *id));
        let all = self
            .fuel
            .each(nodes.flat_map(|node| node.children()))
            .filter_map(|(name, _)| std::str::from_utf8(name).ok());
        let mut names = self.fuel.copies(all);
        names.sort_unstable();
        names.dedup();
        names.retain(|name| self.child(&directory, name).is_some());
        names
    }

    /// The node of something that was found.
    pub(super) fn node_of(&self, found: &PathTarget) -> Option<Node<'_>> {
        self.node(found.layer, found.node)
    }

    fn node(&self, layer: usize, id: NodeId) -> Option<Node<'_>> {
        self.layers.get(layer)?.as_deref()?.node(id)
    }

    fn child(&self, directory: &Directory, name: &str) -> Option<Child> {
        if !self.fuel.burn(1 + STEPS_OF_LAYER * directory.len() as u64) {
            return None;
        }
        let is_root = directory.first().is_some_and(|(_, id)| id.0 == 0);
        if is_marker(name.as_bytes()) || is_root && is_format_entry(name.as_bytes()) {
            return None;
        }
        let whiteout = whiteout_of(name.as_bytes());
        let mut merged = Directory::new();
        for (layer, id) in directory {
            let parent = self.node(*layer, *id)?;
            match parent.child(name.as_bytes()) {
                Some(child) if child.kind() == Kind::Directory => {
                    merged.push((*layer, child.id()));
                    if is_opaque(child) {
                        break;
                    }
                }
                Some(child) if merged.is_empty() => return Some(Child::Other(*layer, child.id())),
                Some(_hidden) => break,
                None => {}
            }
            // A whiteout is about the layers below, not about its own.
            if parent.child(&whiteout).is_some() {
                break;
            }
        }
        (!merged.is_empty()).then_some(Child::Directory(merged))
    }
}

/// The roots of the layers down to one that is opaque.
fn root(layers: &[Option<Arc<Toc>>]) -> Directory {
    let mut root = Directory::new();
    for (layer, toc) in layers.iter().enumerate().rev() {
        let Some(toc) = toc else { continue };
        root.push((layer, toc.root().id()));
        if is_opaque(toc.root()) {
            break;
        }
    }
    root
}

fn is_opaque(directory: Node<'_>) -> bool {
    directory.child(OPAQUE).is_some()
}

fn found(layer: usize, node: Node<'_>, names: &[String]) -> PathTarget {
    PathTarget {
        layer,
        node: node.id(),
        kind: node.kind(),
        size: node.size(),
        path: names.join("/"),
    }
}

/// The names of a path, those that lead nowhere else left out.
pub(super) fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

fn reversed(path: &str) -> Vec<String> {
    components(path).rev().map(str::to_owned).collect()
}

/// `path` as seen from the directory `base`, which is absolute.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", base.trim_end_matches('/'))
    }
}

/// The directory of a path, `/` for that of a name alone.
pub(super) fn parent(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// The last name of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}
