//! A stack of layers as a container sees it: the layers' trees merged like overlayfs does.
//!
//! A directory merges the directories of its name in all layers, down to one that is opaque, or to
//! a layer that has a whiteout or another kind of entry by that name (OCI image-spec, layer.md,
//! "Whiteouts"). Layers without a TOC are not read: files that only they have are missing, and
//! files that they hide are visible.

use std::sync::Arc;

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId};

use super::names::{OPAQUE, is_format_entry, is_marker, whiteout_of};

/// The merged layers of an image.
#[derive(Debug)]
pub struct Merged {
    layers: Vec<Option<Arc<Toc>>>,
}

/// A file or a directory's part in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerNode {
    /// Counted from the bottom.
    pub layer: usize,
    pub node: NodeId,
}

/// A directory: its parts, uppermost first. There is at least one, unless no layer is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(Vec<LayerNode>);

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    Directory(Directory),
    /// Any other kind of file.
    File(LayerNode),
}

impl Merged {
    /// Merges the TOCs of an image's layers, bottom first. `None` is a layer without a TOC.
    pub fn new(layers: Vec<Option<Arc<Toc>>>) -> Self {
        Self { layers }
    }

    /// Returns the root, which merges the roots of all layers: overlayfs ignores that one is opaque.
    pub fn root(&self) -> Directory {
        let layers = self.layers.iter().enumerate().rev();
        let root = |(layer, toc): (usize, &Option<Arc<Toc>>)| {
            let node = toc.as_ref()?.root().id();
            Some(LayerNode { layer, node })
        };
        Directory(layers.filter_map(root).collect())
    }

    /// Returns the TOC's node.
    pub fn node(&self, at: LayerNode) -> Option<Node<'_>> {
        self.layers.get(at.layer)?.as_deref()?.node(at.node)
    }

    /// Looks up `name` in a directory, in at most [`Directory::layers`] layers.
    pub fn child(&self, directory: &Directory, name: &[u8]) -> Option<Child> {
        if is_hidden(directory, name) {
            return None;
        }
        let whiteout = whiteout_of(name);
        let mut merged = Vec::new();
        for part in &directory.0 {
            let parent = self.node(*part)?;
            // A layer with a name and its whiteout has the name: in an overlay, it is one or the
            // other.
            let Some(child) = parent.child(name) else {
                if parent.child(&whiteout).is_some() {
                    break;
                }
                continue;
            };
            let at = LayerNode {
                layer: part.layer,
                node: child.id(),
            };
            if child.kind() == Kind::Directory {
                merged.push(at);
                if is_opaque(child) {
                    break;
                }
            } else if merged.is_empty() && !is_whiteout_device(child) {
                return Some(Child::File(at));
            } else {
                break;
            }
        }
        (!merged.is_empty()).then_some(Child::Directory(Directory(merged)))
    }

    /// Returns the names in all parts of a directory, in no order. Some may occur twice, and some
    /// may have no [`child`](Self::child).
    pub fn names(&self, directory: &Directory) -> impl Iterator<Item = &[u8]> {
        let nodes = directory.0.iter().filter_map(|part| self.node(*part));
        let names = nodes.flat_map(|node| node.children());
        names.map(|(name, _)| name)
    }
}

impl Directory {
    /// Returns the number of layers that have a part of it.
    pub fn layers(&self) -> usize {
        self.0.len()
    }

    /// Returns its uppermost part, whose attributes are the directory's.
    pub fn top(&self) -> Option<LayerNode> {
        self.0.first().copied()
    }

    fn is_root(&self) -> bool {
        self.top().is_some_and(|part| part.node == NodeId(0))
    }
}

/// Whether an entry of this name has another meaning than a file of its name.
fn is_hidden(directory: &Directory, name: &[u8]) -> bool {
    is_marker(name) || directory.is_root() && is_format_entry(name)
}

/// Whether overlayfs takes a file for a whiteout (kernel, overlayfs.rst, "whiteouts and opaque
/// directories").
fn is_whiteout_device(file: Node<'_>) -> bool {
    file.kind() == Kind::CharDevice && file.device() == (0, 0)
}

fn is_opaque(directory: Node<'_>) -> bool {
    directory.child(OPAQUE).is_some()
}
