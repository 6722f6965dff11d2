//! The file tree of a verified TOC, packed: inodes, the names that lead to them, and chunks.

use std::ops::Range;

use crate::chunk::Chunk;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::time::Time;

/// A verified TOC: every field is consistent with the rest and with the blob's size.
#[derive(Debug)]
pub struct Toc {
    pub(super) digest: Digest,
    pub(super) codec: Codec,
    pub(super) inodes: Vec<Inode>,
    /// Sorted by parent and name.
    pub(super) names: Vec<Name>,
    pub(super) chunks: Vec<PackedChunk>,
    pub(super) xattrs: Vec<(Span, Span)>,
    pub(super) owners: Vec<String>,
    pub(super) arena: Vec<u8>,
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

#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) links: u32,
    pub(super) mod_nanos: u32,
    pub(super) mod_seconds: i64,
    pub(super) size: u64,
    /// Chunks of a file, names in a directory.
    pub(super) content: Run,
    pub(super) xattrs: Run,
    /// Target of a symbolic or dangling hard link.
    pub(super) target: Span,
    pub(super) device: (u32, u32),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) parent: u32,
    pub(super) inode: u32,
    pub(super) text: Span,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PackedChunk {
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) inner_offset: u64,
    pub(super) file_offset: u64,
    pub(super) size: u64,
    pub(super) digest: Option<Digest>,
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
        self.names.is_empty()
    }

    /// Chunks of all files.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of memory that the tree takes.
    pub fn memory_bytes(&self) -> u64 {
        let tables =
            size_of_val(&*self.inodes) + size_of_val(&*self.names) + size_of_val(&*self.chunks);
        let owners: usize = self
            .owners
            .iter()
            .map(|name| size_of::<String>() + name.len())
            .sum();
        (size_of::<Self>() + tables + size_of_val(&*self.xattrs) + self.arena.len() + owners) as u64
    }

    /// Returns the chunk with this number, below [`Toc::chunk_count`]. Chunks are numbered in the
    /// order of the TOC, which in most TOCs is that of the blob.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        self.chunks
            .get(number as usize)
            .map(|chunk| chunk.unpack(self.codec))
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
                break (self.toc.names[index], prefix.clone());
            }
            self.open.pop();
        };
        path.extend_from_slice(self.toc.bytes(name.text));
        let below = self.toc.run_of_names(name.inode);
        if !below.is_empty() {
            self.open.push((below, [path.as_slice(), b"/"].concat()));
        }
        Some(Located {
            path,
            node: Node {
                toc: self.toc,
                id: name.inode,
            },
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
        self.inode().uid
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        self.inode().gid
    }

    /// The owner's name, empty if the TOC has none.
    pub fn user(&self) -> &'a str {
        &self.toc.owners[self.inode().user as usize]
    }

    /// The group's name, empty if the TOC has none.
    pub fn group(&self) -> &'a str {
        &self.toc.owners[self.inode().group as usize]
    }

    /// The number of names of this node. For a directory it is 2 and the number of its
    /// subdirectories, as in file systems.
    pub fn links(&self) -> u32 {
        self.inode().links
    }

    /// The time of the last modification.
    pub fn modified(&self) -> Time {
        self.inode().modified()
    }

    /// Bytes of a regular file; 0 for everything else.
    pub fn size(&self) -> u64 {
        self.inode().size
    }

    /// The target of a symbolic link or a dangling hard link; otherwise empty.
    pub fn target(&self) -> &'a [u8] {
        self.toc.bytes(self.inode().target)
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        self.inode().device
    }

    /// Extended attributes in order of their names.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let toc = self.toc;
        toc.xattrs[self.inode().xattrs.range()]
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
        let names = toc.names[toc.run_of_names(self.id)]
            .get(start..)
            .unwrap_or_default();
        names.iter().map(|name| {
            (
                toc.bytes(name.text),
                Node {
                    toc,
                    id: name.inode,
                },
            )
        })
    }

    /// The node with this name in a directory.
    pub fn child(&self, name: &[u8]) -> Option<Node<'a>> {
        let toc = self.toc;
        let names = &toc.names[toc.run_of_names(self.id)];
        let index = names
            .binary_search_by(|probe| toc.bytes(probe.text).cmp(name))
            .ok()?;
        Some(Node {
            toc,
            id: names[index].inode,
        })
    }

    /// The chunks of a regular file, in order, without a gap.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + use<'a> {
        let codec = self.toc.codec;
        self.packed_chunks()
            .iter()
            .map(move |chunk| chunk.unpack(codec))
    }

    /// The chunk that holds the byte at `offset` of a regular file.
    pub fn chunk_at(&self, offset: u64) -> Option<Chunk> {
        self.toc.chunk(self.chunk_number_at(offset)?)
    }

    /// The number, for [`Toc::chunk`], of the chunk that holds the byte at `offset` of a regular
    /// file.
    pub fn chunk_number_at(&self, offset: u64) -> Option<u32> {
        let before = self
            .packed_chunks()
            .partition_point(|chunk| chunk.file_offset <= offset);
        let index = u32::try_from(before.checked_sub(1)?).ok()?;
        (offset < self.size()).then(|| self.chunk_numbers().start + index)
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

    fn packed_chunks(&self) -> &'a [PackedChunk] {
        let inode = self.inode();
        if inode.kind == Kind::File {
            &self.toc.chunks[inode.content.range()]
        } else {
            &[]
        }
    }

    fn inode(&self) -> &'a Inode {
        &self.toc.inodes[self.id as usize]
    }
}

impl Inode {
    /// Two fields take less room than a [`Time`] with its padding.
    fn modified(&self) -> Time {
        Time {
            seconds: self.mod_seconds,
            nanoseconds: self.mod_nanos,
        }
    }
}

impl PackedChunk {
    fn unpack(&self, codec: Codec) -> Chunk {
        let Self {
            offset,
            end,
            inner_offset,
            file_offset,
            size,
            digest,
        } = *self;
        Chunk {
            range: offset..end,
            inner_offset,
            file_offset,
            size,
            digest,
            codec,
        }
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
