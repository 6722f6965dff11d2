//! The file tree of a verified TOC, packed: inodes, the names that lead to them, and chunks. A file
//! of one chunk takes 88 bytes and its name.

use std::ops::Range;

use super::chunks::{Chunks, DraftChunk};
use crate::chunk::Chunk;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::time::Time;

/// A verified TOC: every field is consistent with the rest and with the blob's size.
#[derive(Debug)]
pub struct Toc {
    pub(super) digest: Digest,
    pub(super) codec: Codec,
    pub(super) inodes: Box<[Inode]>,
    /// The times that an [`Inode`] has no room for, by the number of the inode.
    pub(super) times: Box<[(u32, Time)]>,
    /// Sorted by parent and text. The last one is none: it says where the text before it ends.
    pub(super) names: Box<[Name]>,
    pub(super) chunks: Chunks,
    /// Runs of `xattrs`, by the number of the inode.
    pub(super) attributes: Box<[(u32, Run)]>,
    pub(super) xattrs: Box<[(Span, Span)]>,
    pub(super) owners: Box<[Owner]>,
    pub(super) texts: Box<[Box<str>]>,
    pub(super) arena: Box<[u8]>,
}

/// Bytes of the arena.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

/// A run of entries in one of the tables.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    /// Whether the time is in [`Toc::times`]: it has nanoseconds, or is not between 1970 and 2106.
    pub(super) has_exact_time: bool,
    pub(super) mode: u16,
    /// The number of its [`Owner`].
    pub(super) owner: u32,
    pub(super) links: u32,
    pub(super) seconds: u32,
    /// Chunks of a file, names in a directory, the target of a link in the arena, or the major and
    /// minor number of a device.
    pub(super) content: Run,
}

/// The owners of a node. Few are different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The numbers of their names.
    pub(super) user: u32,
    pub(super) group: u32,
}

/// A name. Its text ends where that of the next one begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) inode: u32,
    pub(super) start: u32,
}

/// The type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
    /// A hard link whose target is not in this TOC: in a lower layer, or nowhere.
    DanglingLink,
}

/// The number of a node; hard links share it. The root is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// A file, directory or other inode of a [`Toc`].
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    toc: &'a Toc,
    id: u32,
}

/// A node with its path relative to the root.
#[derive(Debug, Clone)]
pub struct Located<'a> {
    /// The path, without a slash at either end.
    pub path: Vec<u8>,
    /// The node.
    pub node: Node<'a>,
}

impl Toc {
    /// Digest of the JSON of this TOC.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The root directory.
    pub fn root(&self) -> Node<'_> {
        Node { toc: self, id: 0 }
    }

    /// The node with this number.
    pub fn node(&self, id: NodeId) -> Option<Node<'_>> {
        ((id.0 as usize) < self.inodes.len()).then_some(Node {
            toc: self,
            id: id.0,
        })
    }

    /// Returns the number of nodes. The number of each node is below it.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether the root is the only node.
    pub fn is_empty(&self) -> bool {
        self.names.len() <= 1
    }

    /// Chunks of all files.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of memory that the tree takes.
    pub fn memory_bytes(&self) -> u64 {
        let tables = size_of_val(&*self.inodes)
            + size_of_val(&*self.times)
            + size_of_val(&*self.names)
            + self.chunks.memory_bytes()
            + size_of_val(&*self.attributes)
            + size_of_val(&*self.xattrs)
            + size_of_val(&*self.owners)
            + size_of_val(&*self.texts);
        let texts: usize = self.texts.iter().map(|text| text.len()).sum();
        (size_of::<Self>() + tables + texts + self.arena.len()) as u64
    }

    /// Returns the chunk with this number, below [`Toc::chunk_count`]. Chunks are numbered in the
    /// order of the TOC, which in most TOCs is that of the blob.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        let chunk = self.chunks.get(number as usize);
        chunk.map(|chunk| chunk.chunk(self.codec))
    }

    /// The node at `path`, which may begin with `/` or `./`. Symbolic links are not followed.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> Option<Node<'_>> {
        let components = path
            .as_ref()
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".");
        components
            .into_iter()
            .try_fold(self.root(), |node, name| node.child(name))
    }

    /// Every name below the root, parents before their children, siblings in order of their bytes.
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            toc: self,
            open: vec![(self.run_of_names(0), Vec::new())],
        }
    }

    fn run_of_names(&self, inode: u32) -> Range<usize> {
        let inode = &self.inodes[inode as usize];
        if inode.kind == Kind::Directory {
            inode.content.range()
        } else {
            0..0
        }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.arena[span.range()]
    }

    fn text(&self, name: usize) -> &[u8] {
        let [start, end] = [name, name + 1].map(|name| self.names[name].start as usize);
        &self.arena[start..end]
    }
}

/// Iterator of [`Toc::entries`].
#[derive(Debug)]
pub struct Entries<'a> {
    toc: &'a Toc,
    open: Vec<(Range<usize>, Vec<u8>)>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Located<'a>;

    fn next(&mut self) -> Option<Located<'a>> {
        let (name, mut path) = loop {
            let (run, prefix) = self.open.last_mut()?;
            if let Some(index) = run.next() {
                break (index, prefix.clone());
            }
            self.open.pop();
        };
        path.extend_from_slice(self.toc.text(name));
        let id = self.toc.names[name].inode;
        let below = self.toc.run_of_names(id);
        if !below.is_empty() {
            self.open.push((below, [path.as_slice(), b"/"].concat()));
        }
        Some(Located {
            path,
            node: Node { toc: self.toc, id },
        })
    }
}

impl<'a> Node<'a> {
    /// The number of this node.
    pub fn id(&self) -> NodeId {
        NodeId(self.id)
    }

    /// The type.
    pub fn kind(&self) -> Kind {
        self.inode().kind
    }

    /// Permission bits, set-uid, set-gid and sticky.
    pub fn mode(&self) -> u16 {
        self.inode().mode
    }

    /// The owner.
    pub fn uid(&self) -> u32 {
        self.owner().uid
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        self.owner().gid
    }

    /// The owner's name, empty if the TOC has none.
    pub fn user(&self) -> &'a str {
        &self.toc.texts[self.owner().user as usize]
    }

    /// The group's name, empty if the TOC has none.
    pub fn group(&self) -> &'a str {
        &self.toc.texts[self.owner().group as usize]
    }

    /// The number of names of this node. For a directory it is 2 and the number of its
    /// subdirectories, as in file systems.
    pub fn links(&self) -> u32 {
        self.inode().links
    }

    /// The time of the last modification.
    pub fn modified(&self) -> Time {
        let inode = self.inode();
        let exact = || find(&self.toc.times, self.id).copied();
        let whole = Time {
            seconds: i64::from(inode.seconds),
            nanoseconds: 0,
        };
        if inode.has_exact_time {
            exact().unwrap_or(whole)
        } else {
            whole
        }
    }

    /// Bytes of a regular file; 0 for everything else.
    pub fn size(&self) -> u64 {
        let last = self.chunk_numbers().next_back();
        let last = last.and_then(|number| self.toc.chunks.get(number as usize));
        last.map_or(0, |chunk| chunk.file_offset + chunk.size)
    }

    /// The target of a symbolic link or a dangling hard link; otherwise empty.
    pub fn target(&self) -> &'a [u8] {
        let inode = self.inode();
        match inode.kind {
            Kind::Symlink | Kind::DanglingLink => self.toc.bytes(inode.content.into()),
            Kind::Directory | Kind::File | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => &[],
        }
    }

    /// Major and minor number of a device; 0 for everything else.
    pub fn device(&self) -> (u32, u32) {
        let inode = self.inode();
        match inode.kind {
            Kind::CharDevice | Kind::BlockDevice => (inode.content.first, inode.content.count),
            Kind::Directory | Kind::File | Kind::Symlink | Kind::Fifo | Kind::DanglingLink => {
                (0, 0)
            }
        }
    }

    /// Extended attributes in order of their names.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let toc = self.toc;
        let run = find(&toc.attributes, self.id).copied().unwrap_or_default();
        toc.xattrs[run.range()]
            .iter()
            .map(|(name, value)| (toc.bytes(*name), toc.bytes(*value)))
    }

    /// Names in a directory, in order of their bytes.
    pub fn children(&self) -> impl ExactSizeIterator<Item = (&'a [u8], Node<'a>)> + use<'a> {
        self.children_from(0)
    }

    /// As [`children`](Self::children) without the first `start`. The time does not depend on
    /// `start`.
    pub fn children_from(
        &self,
        start: usize,
    ) -> impl ExactSizeIterator<Item = (&'a [u8], Node<'a>)> + use<'a> {
        let toc = self.toc;
        let Range { start: first, end } = toc.run_of_names(self.id);
        let names = first.saturating_add(start).min(end)..end;
        names.map(move |name| {
            let id = toc.names[name].inode;
            (toc.text(name), Node { toc, id })
        })
    }

    /// The node with this name in a directory.
    pub fn child(&self, name: &[u8]) -> Option<Node<'a>> {
        let toc = self.toc;
        let names = toc.run_of_names(self.id);
        let found = first_not(names.clone(), |probe| toc.text(probe) < name);
        let id = toc.names[found].inode;
        (found < names.end && toc.text(found) == name).then_some(Node { toc, id })
    }

    /// The chunks of a regular file, in order, without a gap.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + use<'a> {
        let (toc, Range { start, end }) = (self.toc, self.chunk_numbers());
        (start as usize..end as usize).map(move |number| {
            // The numbers of a file's chunks are within the table.
            let chunk = toc.chunks.get(number).unwrap_or(DraftChunk::EMPTY);
            chunk.chunk(toc.codec)
        })
    }

    /// The chunk that holds the byte at `offset` of a regular file.
    pub fn chunk_at(&self, offset: u64) -> Option<Chunk> {
        self.toc.chunk(self.chunk_number_at(offset)?)
    }

    /// The number, for [`Toc::chunk`], of the chunk that holds the byte at `offset` of a regular
    /// file.
    pub fn chunk_number_at(&self, offset: u64) -> Option<u32> {
        let Range { start, end } = self.chunk_numbers();
        let numbers = start as usize..end as usize;
        let file_offset = |number| self.toc.chunks.file_offset(number);
        let after = first_not(numbers, |number| {
            file_offset(number).is_some_and(|begin| begin <= offset)
        });
        let number = u32::try_from(after.checked_sub(1)?).ok()?;
        (number >= start && offset < self.size()).then_some(number)
    }

    /// The numbers of a regular file's chunks, for [`Toc::chunk`].
    pub fn chunk_numbers(&self) -> Range<u32> {
        let inode = self.inode();
        let Run { first, count } = if inode.kind == Kind::File {
            inode.content
        } else {
            Run::default()
        };
        first..first + count
    }

    fn inode(&self) -> &'a Inode {
        &self.toc.inodes[self.id as usize]
    }

    fn owner(&self) -> &'a Owner {
        &self.toc.owners[self.inode().owner as usize]
    }
}

impl Span {
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

impl Run {
    pub(super) fn range(self) -> Range<usize> {
        self.first as usize..self.first as usize + self.count as usize
    }
}

impl From<Span> for Run {
    fn from(Span { start, len }: Span) -> Self {
        Self {
            first: start,
            count: len,
        }
    }
}

impl From<Run> for Span {
    fn from(Run { first, count }: Run) -> Self {
        Self {
            start: first,
            len: count,
        }
    }
}

/// Returns the value of an inode in a table that only some have.
fn find<T>(table: &[(u32, T)], inode: u32) -> Option<&T> {
    let found = table.binary_search_by_key(&inode, |(number, _)| *number);
    found.ok().map(|index| &table[index].1)
}

/// Returns the first number for which `is_before` is false, or the end. The numbers for which it is
/// true come first.
fn first_not(numbers: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    let Range { mut start, mut end } = numbers;
    while start < end {
        let middle = start + (end - start) / 2;
        if is_before(middle) {
            start = middle + 1;
        } else {
            end = middle;
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_takes_24_bytes_and_a_name_8_and_its_text() {
        assert_eq!((size_of::<Inode>(), size_of::<Name>()), (24, 8));
    }
}
