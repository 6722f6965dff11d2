//! The files of a stored layer, one folder at a time, from its verified TOC.

use std::sync::Arc;

use estargz::Toc;
use estargz::toc::{Kind, Node};

use super::{Catalog, Error};
use crate::aside::aside;
use crate::oci::Digest;

/// The most files of an answer.
pub const MAX_FOLDER_ITEMS: usize = 200;
/// The longest path of a folder that is shown, in bytes. Deeper ones are not opened.
pub const MAX_FOLDER_PATH: usize = 1024;
/// The most bytes of a name, and of the target of a link, that are shown.
const MAX_NAME: usize = 512;
/// Bytes of work for each node of a TOC, for the choice of the thread.
const BYTES_OF_NODE: usize = 64;

/// A part of a folder of a layer.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Folders by their names, then files by their names.
    pub items: Vec<Item>,
    /// The place of the first item in the folder.
    pub from: usize,
    /// The items in the whole folder.
    pub total: usize,
    /// The bytes of all files below it.
    pub bytes: u64,
    /// The entries of the whole layer.
    pub entries: usize,
}

/// A file or folder. Names are bytes of foreign origin.
#[derive(Debug, Clone)]
pub struct Item {
    /// Cut to a length that is shown.
    pub name: Vec<u8>,
    pub is_folder: bool,
    /// Whether the name is whole, so that a path can have it.
    pub is_whole: bool,
    /// `drwxr-xr-x`
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    /// The bytes of a file, or of all files below a folder.
    pub size: u64,
    /// The target of a link, cut as the name is; otherwise empty.
    pub target: Vec<u8>,
    /// Other names of the same file.
    pub other_names: u32,
    /// When it was changed, in seconds since 1970.
    pub modified: i64,
}

impl Catalog {
    /// Returns the items from number `from` in the folder `path` of a converted layer, or the last
    /// ones if there are not so many; `None` if the store has no such layer, or the layer no such
    /// folder.
    ///
    /// # Errors
    /// When the store fails, or too many TOCs are being read.
    pub async fn folder(
        &self,
        layer: &Digest,
        path: &[u8],
        from: usize,
    ) -> Result<Option<Folder>, Error> {
        if path.len() > MAX_FOLDER_PATH {
            return Ok(None);
        }
        let tocs = self.shared.profiles.tocs();
        let Some(layer) = tocs.layer(layer).await? else {
            return Ok(None);
        };
        let toc = tocs.toc(&layer).await?;
        let path = path.to_vec();
        let work = toc.len().saturating_mul(BYTES_OF_NODE);
        Ok(aside(work, move || read(&toc, &path, from)).await)
    }
}

fn read(toc: &Arc<Toc>, path: &[u8], from: usize) -> Option<Folder> {
    let folder = toc.lookup(path)?;
    if folder.kind() != Kind::Directory {
        return None;
    }
    let children = folder.children();
    let total = children.len();
    let (folders, files): (Vec<_>, Vec<_>) =
        children.partition(|(_, node)| node.kind() == Kind::Directory);
    let shown = folders.into_iter().chain(files);
    let last = total.saturating_sub(1);
    let from = if from > last {
        last - last % MAX_FOLDER_ITEMS
    } else {
        from
    };
    let items = shown.skip(from).take(MAX_FOLDER_ITEMS);
    Some(Folder {
        items: items.map(|(name, node)| item(name, node)).collect(),
        from,
        total,
        bytes: bytes_below(folder),
        entries: toc.len(),
    })
}

fn item(name: &[u8], node: Node<'_>) -> Item {
    let is_folder = node.kind() == Kind::Directory;
    let cut = |text: &[u8]| text.get(..MAX_NAME).unwrap_or(text).to_vec();
    Item {
        name: cut(name),
        is_folder,
        is_whole: name.len() <= MAX_NAME,
        mode: mode(node.kind(), node.mode()),
        uid: node.uid(),
        gid: node.gid(),
        size: if is_folder {
            bytes_below(node)
        } else {
            node.size()
        },
        target: cut(node.target()),
        other_names: if is_folder {
            0
        } else {
            node.links().saturating_sub(1)
        },
        modified: node.modified().seconds,
    }
}

/// The bytes of all names of files below a folder. No folder is in two others, so that all of them
/// together take one walk over the TOC.
fn bytes_below(folder: Node<'_>) -> u64 {
    let (mut bytes, mut open) = (0_u64, vec![folder]);
    while let Some(folder) = open.pop() {
        for (_, node) in folder.children() {
            if node.kind() == Kind::Directory {
                open.push(node);
            } else {
                bytes = bytes.saturating_add(node.size());
            }
        }
    }
    bytes
}

/// As `ls -l` shows it.
fn mode(kind: Kind, bits: u16) -> String {
    let kind = match kind {
        Kind::Directory => 'd',
        Kind::File => '-',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::DanglingLink => 'h',
    };
    let mut text = String::from(kind);
    // The special bit, its letter with the right to execute and without.
    for (shift, special, with, without) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let has = |bit: u16| bits >> shift & bit != 0;
        text.push(if has(4) { 'r' } else { '-' });
        text.push(if has(2) { 'w' } else { '-' });
        text.push(match (has(1), bits & special != 0) {
            (true, true) => with,
            (false, true) => without,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_ls_writes_them() {
        assert_eq!(mode(Kind::Directory, 0o755), "drwxr-xr-x");
        assert_eq!(mode(Kind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(Kind::File, 0o2644), "-rw-r-Sr--");
        assert_eq!(mode(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(Kind::Symlink, 0o777), "lrwxrwxrwx");
        assert_eq!(mode(Kind::Fifo, 0), "p---------");
    }
}
