//! The file tree of a verified TOC, packed: inodes, the names that lead to them, and chunks. A file
//! of one chunk takes 88 bytes and its name.

use std::ops::Range;

use super::chunks::{self, DraftChunk, Form};
use super::tables::{Tables, first_not, halves, joined};
use crate::chunk::Chunk;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::time::Time;

/// A verified TOC: every field is consistent with the rest and with the blob's size.
#[derive(Debug)]
pub struct Toc {
    pub(super) digest: Digest,
    pub(super) codec: Codec,
    /// The form of the chunks in their table.
    pub(super) form: Form,
    pub(super) tables: Tables,
    /// Names of owners.
    pub(super) texts: Box<[Box<str>]>,
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

#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    /// Whether the time is in the table of times: it has nanoseconds, or is not between 1970 and 2106.
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
        ((id.0 as usize) < self.len()).then_some(Node {
            toc: self,
            id: id.0,
        })
    }

    /// Returns the number of nodes. The number of each node is below it.
    pub fn len(&self) -> usize {
        self.tables.layout.inodes.len()
    }

    /// Whether the root is the only node.
    pub fn is_empty(&self) -> bool {
        self.tables.layout.names.len() <= 1
    }

    /// Chunks of all files.
    pub fn chunk_count(&self) -> usize {
        self.tables.layout.chunks.len()
    }

    /// Bytes of memory that the tree takes, its tables included.
    pub fn memory_bytes(&self) -> u64 {
        let texts: usize = self.texts.iter().map(|text| text.len()).sum();
        let own = size_of::<Self>() + size_of_val(&*self.texts) + texts;
        (own + self.tables().len()) as u64
    }

    /// The tables, which are nearly all of the tree, as bytes.
    pub fn tables(&self) -> &[u8] {
        self.tables.bytes()
    }

    /// Moves the tables to other memory, a mapped file for example. `bytes` must be a copy of
    /// [`Toc::tables`]; if they differ, the tables stay where they are. Returns whether they were
    /// moved.
    ///
    /// If the bytes change later, the tree has other names and chunks. Reading it never panics.
    pub fn move_tables(&mut self, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> bool {
        match self.tables.moved_to(Box::new(bytes)) {
            Some(moved) => {
                self.tables = moved;
                true
            }
            None => false,
        }
    }

    /// Returns the chunk with this number, below [`Toc::chunk_count`]. Chunks are numbered in the
    /// order of the TOC, which in most TOCs is that of the blob.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        let chunk = self.draft_chunk(number as usize);
        chunk.map(|chunk| chunk.chunk(self.codec))
    }

    fn draft_chunk(&self, number: usize) -> Option<DraftChunk> {
        chunks::get(&self.tables, self.form, number)
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
        let inode = self.inode(inode);
        if inode.kind == Kind::Directory {
            inode.content.range()
        } else {
            0..0
        }
    }

    fn inode(&self, number: u32) -> Inode {
        let inodes = self.tables.layout.inodes;
        Inode::from_words(self.tables.entry(inodes, number as usize))
    }

    fn name(&self, number: usize) -> Name {
        Name::from_words(self.tables.entry(self.tables.layout.names, number))
    }

    fn bytes(&self, span: Span) -> &[u8] {
        self.tables.text(span.range())
    }

    fn text(&self, name: usize) -> &[u8] {
        let [start, end] = [name, name + 1].map(|name| self.name(name).start as usize);
        self.tables.text(start..end)
    }

    fn owner_name(&self, number: u32) -> &str {
        let text = self.texts.get(number as usize);
        text.map_or("", |text| text)
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
        let id = self.toc.name(name).inode;
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
        self.toc.owner_name(self.owner().user)
    }

    /// The group's name, empty if the TOC has none.
    pub fn group(&self) -> &'a str {
        self.toc.owner_name(self.owner().group)
    }

    /// The number of names of this node. For a directory it is 2 and the number of its
    /// subdirectories, as in file systems.
    pub fn links(&self) -> u32 {
        self.inode().links
    }

    /// The time of the last modification.
    pub fn modified(&self) -> Time {
        let inode = self.inode();
        let tables = &self.toc.tables;
        let exact = || {
            tables
                .find(tables.layout.times, self.id)
                .map(Time::of_words)
        };
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
        let last = last.and_then(|number| self.toc.draft_chunk(number as usize));
        last.map_or(0, |chunk| chunk.file_offset.saturating_add(chunk.size))
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
        let (toc, tables) = (self.toc, &self.toc.tables);
        let run = tables.find(tables.layout.attributes, self.id);
        let run = run.map_or_else(Run::default, |[_, first, count]| Run { first, count });
        run.range().map(|index| {
            let [name, name_len, value, value_len] = tables.entry(tables.layout.xattrs, index);
            let bytes = |start, len| toc.bytes(Span { start, len });
            (bytes(name, name_len), bytes(value, value_len))
        })
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
            let id = toc.name(name).inode;
            (toc.text(name), Node { toc, id })
        })
    }

    /// The node with this name in a directory.
    pub fn child(&self, name: &[u8]) -> Option<Node<'a>> {
        let toc = self.toc;
        let names = toc.run_of_names(self.id);
        let found = first_not(names.clone(), |probe| toc.text(probe) < name);
        let id = toc.name(found).inode;
        (found < names.end && toc.text(found) == name).then_some(Node { toc, id })
    }

    /// The chunks of a regular file, in order, without a gap.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + use<'a> {
        let (toc, Range { start, end }) = (self.toc, self.chunk_numbers());
        (start as usize..end as usize).map(move |number| {
            // The numbers of a file's chunks are within the table.
            let chunk = toc.draft_chunk(number).unwrap_or(DraftChunk::EMPTY);
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
        let chunk = |number| self.toc.draft_chunk(number);
        let after = first_not(numbers, |number| {
            chunk(number).is_some_and(|chunk| chunk.file_offset <= offset)
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
        first..first.saturating_add(count)
    }

    fn inode(&self) -> Inode {
        self.toc.inode(self.id)
    }

    fn owner(&self) -> Owner {
        let tables = &self.toc.tables;
        let number = self.inode().owner as usize;
        Owner::from_words(tables.entry(tables.layout.owners, number))
    }
}

impl Inode {
    pub(super) const WORDS: usize = 6;

    pub(super) fn words(self) -> [u32; Self::WORDS] {
        let [low, high] = self.mode.to_le_bytes();
        let kind = [self.kind.code(), u8::from(self.has_exact_time), low, high];
        let Run { first, count } = self.content;
        let kind = u32::from_le_bytes(kind);
        [kind, self.owner, self.links, self.seconds, first, count]
    }

    fn from_words([kind, owner, links, seconds, first, count]: [u32; Self::WORDS]) -> Self {
        let [kind, has_exact_time, low, high] = kind.to_le_bytes();
        Self {
            kind: Kind::of_code(kind),
            has_exact_time: has_exact_time > 0,
            mode: u16::from_le_bytes([low, high]),
            owner,
            links,
            seconds,
            content: Run { first, count },
        }
    }
}

impl Name {
    pub(super) const WORDS: usize = 2;

    pub(super) fn words(self) -> [u32; Self::WORDS] {
        [self.inode, self.start]
    }

    fn from_words([inode, start]: [u32; Self::WORDS]) -> Self {
        Self { inode, start }
    }
}

impl Owner {
    pub(super) fn words(self) -> [u32; 4] {
        [self.uid, self.gid, self.user, self.group]
    }

    fn from_words([uid, gid, user, group]: [u32; 4]) -> Self {
        Self {
            uid,
            gid,
            user,
            group,
        }
    }
}

impl Time {
    /// Returns the entry of an inode in the table of times.
    pub(super) fn words(self, inode: u32) -> [u32; 4] {
        let [low, high] = halves(self.seconds.cast_unsigned());
        [inode, low, high, self.nanoseconds]
    }

    fn of_words([_, low, high, nanoseconds]: [u32; 4]) -> Self {
        Self {
            seconds: joined(low, high).cast_signed(),
            nanoseconds,
        }
    }
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Directory,
        Self::File,
        Self::Symlink,
        Self::CharDevice,
        Self::BlockDevice,
        Self::Fifo,
        Self::DanglingLink,
    ];

    fn code(self) -> u8 {
        self as u8
    }

    fn of_code(code: u8) -> Self {
        let kind = Self::ALL.get(usize::from(code));
        kind.copied().unwrap_or(Self::Directory)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_takes_24_bytes_and_a_name_8_and_its_text() {
        let bytes = [Inode::WORDS, Name::WORDS].map(|words| words * size_of::<u32>());
        assert_eq!(bytes, [24, 8]);
    }

    #[test]
    fn kinds_are_read_as_they_were_written() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_code(kind.code()), kind);
        }
    }
}
