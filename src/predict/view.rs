//! The container's view of the files: the layers' trees merged like overlayfs does.
//!
//! A directory merges the directories of its name in all layers, down to one that is opaque, or to
//! a layer that has a whiteout or another kind of entry by that name (OCI image-spec, layer.md,
//! "Whiteouts"). Layers without a TOC are not read: files that only they have are missing, and
//! files that they hide are visible.

use std::sync::Arc;

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId};

use super::fuel::Fuel;
use crate::layers::names::{OPAQUE, is_format_entry, is_marker, whiteout_of};

/// Most symbolic links on a path (Linux, `MAXSYMLINKS`).
const MAX_HOPS: usize = 40;
/// The longest path that can be resolved (Linux, `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Steps of a lookup in one layer: the name and its whiteout, each among all names of a directory.
const STEPS_OF_LAYER: u64 = 4;
/// Most components that are left to resolve, including those of links' targets. `PATH_MAX` holds
/// half as many.
const MAX_COMPONENTS: usize = 4096;
/// The merged layers of an image. Names that are not UTF-8 are left out.
#[derive(Debug)]
pub(super) struct View {
    layers: Vec<Option<Arc<Toc>>>,
    root: Directory,
    fuel: Fuel,
}

/// The target of a path, after all symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathTarget {
    /// Its layer, counted from the bottom. For a directory, the uppermost of its layers.
    pub(super) layer: usize,
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Without links and without a leading slash: it is also the path in the layer.
    pub(super) path: String,
}

/// A directory: its nodes in the layers, uppermost first.
type Directory = Vec<(usize, NodeId)>;

enum Child {
    Directory(Directory),
    Other(usize, NodeId),
}

impl View {
    /// Merges the TOCs of an image's layers, bottom first.
    pub(super) fn new(layers: Vec<Option<Arc<Toc>>>, fuel: Fuel) -> Self {
        let root = root(&layers);
        Self { layers, root, fuel }
    }

    /// Resolves `path` from the root. `None` if it does not exist, or once the fuel has ended.
    pub(super) fn resolve(&self, path: &str) -> Option<PathTarget> {
        // The caller has composed the path, however long it is: that is charged in any case.
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
                    // The target of a hard link to a file of another layer is a path from the root.
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

    /// Resolves `path` to a regular file.
    pub(super) fn file(&self, path: &str) -> Option<PathTarget> {
        self.resolve(path).filter(|found| found.kind == Kind::File)
    }

    /// Whether `path` leads to a directory.
    pub(super) fn is_directory(&self, path: &str) -> bool {
        self.resolve(path)
            .is_some_and(|found| found.kind == Kind::Directory)
    }

    /// Returns the sorted names in the directory `path`. Empty if `path` is not a directory, or
    /// once the fuel has ended.
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

    /// Returns the node of a resolved path.
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
            // A whiteout hides the layers below, not its own.
            if parent.child(&whiteout).is_some() {
                break;
            }
        }
        (!merged.is_empty()).then_some(Child::Directory(merged))
    }
}

/// Returns the roots of the layers, from the top down to one that is opaque.
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

/// Returns the names of a path, without empty ones and `.`.
pub(super) fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

fn reversed(path: &str) -> Vec<String> {
    components(path).rev().map(str::to_owned).collect()
}

/// Returns `path` relative to the absolute directory `base`.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", base.trim_end_matches('/'))
    }
}

/// Returns the directory of a path. For a single name it is `/`.
pub(super) fn parent(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// Returns the last name of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}
