//! The container's view of the files: paths resolved in the merged layers, under the budget.

use std::sync::Arc;

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId};

use super::fuel::Fuel;
use crate::layers::merged::{Child, Directory, LayerNode, Merged};

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
    layers: Merged,
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

impl View {
    /// Merges the TOCs of an image's layers, bottom first.
    pub(super) fn new(layers: Vec<Option<Arc<Toc>>>, fuel: Fuel) -> Self {
        let layers = Merged::new(layers);
        let root = layers.root();
        Self { layers, root, fuel }
    }

    /// Resolves `path` from the root. `None` if it does not exist, or once the fuel has ended.
    pub(super) fn resolve(&self, path: &str) -> Option<PathTarget> {
        // The caller has composed the path, however long it is: that is charged in any case.
        if !self.fuel.look_through(path.len() + self.root.layers())
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
                Child::File(at) => {
                    let node = self.layers.node(at)?;
                    let is_link = matches!(node.kind(), Kind::Symlink | Kind::DanglingLink);
                    if !is_link {
                        names.push(name);
                        return left.is_empty().then(|| found(at.layer, node, &names));
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
        let at = walked.last()?.top()?;
        let node = self.layers.node(at)?;
        self.fuel.lasts().then(|| found(at.layer, node, &names))
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
        let all = self
            .fuel
            .each(self.layers.names(&directory))
            .filter_map(|name| std::str::from_utf8(name).ok());
        let mut names = self.fuel.copies(all);
        names.sort_unstable();
        names.dedup();
        names.retain(|name| self.child(&directory, name).is_some());
        names
    }

    /// Returns the node of a resolved path.
    pub(super) fn node_of(&self, found: &PathTarget) -> Option<Node<'_>> {
        let PathTarget { layer, node, .. } = *found;
        self.layers.node(LayerNode { layer, node })
    }

    fn child(&self, directory: &Directory, name: &str) -> Option<Child> {
        let steps = 1 + STEPS_OF_LAYER * directory.layers() as u64;
        if !self.fuel.burn(steps) {
            return None;
        }
        self.layers.child(directory, name.as_bytes())
    }
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
