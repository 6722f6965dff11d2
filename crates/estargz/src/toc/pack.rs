//! From the vectors of a builder to the compact tables of a [`Toc`].
//!
//! ```text
//! arena   names in the order of their table │ targets of links │ extended attributes
//! ```

use std::collections::HashMap;
use std::hash::Hash;

use super::build::DraftInode;
use super::chunks::{self, DraftChunk};
use super::error::TocError;
use super::names::DraftName;
use super::tables::{self, Layout};
use super::tree::{Inode, Kind, Name, Owner, Span, Toc};
use crate::codec::Codec;
use crate::digest::Digest;

/// Most different names and values of extended attributes that are stored only once. Labels of a
/// security module repeat; a million different values are hostile.
const MAX_SHARED: usize = 4096;

/// A tree that is complete.
pub(super) struct Draft {
    pub(super) digest: Digest,
    pub(super) codec: Codec,
    pub(super) inodes: Vec<DraftInode>,
    /// Sorted by parent and name.
    pub(super) names: Vec<DraftName>,
    pub(super) chunks: Vec<DraftChunk>,
    pub(super) xattrs: Vec<(Span, Span)>,
    pub(super) owners: Vec<String>,
    pub(super) arena: Vec<u8>,
}

/// Packs a tree. Node numbers stay.
pub(super) fn toc(draft: Draft) -> Result<Toc, TocError> {
    let Draft {
        digest,
        codec,
        inodes,
        names,
        chunks,
        xattrs,
        owners: texts,
        arena: text,
    } = draft;
    let mut tables = tables::Draft::default();
    // First, so that the widest table goes before others are made.
    let (chunk_table, form) = chunks::pack(chunks, &mut tables);
    let mut arena = Arena::with_capacity(text.len());
    let names = pack_names(&names, &text, &mut arena)?;
    tables.reserve(names.len(), Name::WORDS);
    let names = tables.add(names.into_iter().map(Name::words));
    let mut owners = Interned::default();
    let (mut times, mut attributes) = (Vec::new(), Vec::new());
    let mut packed = Vec::with_capacity(inodes.len());
    for (number, inode) in (0..).zip(&inodes) {
        let is_link = matches!(inode.kind, Kind::Symlink | Kind::DanglingLink);
        let content = if is_link {
            arena.keep(&text[inode.target.range()])?.into()
        } else {
            inode.content
        };
        let seconds = u32::try_from(inode.modified.seconds).ok();
        let seconds = seconds.filter(|_| inode.modified.nanoseconds == 0);
        if seconds.is_none() {
            times.push(inode.modified.words(number));
        }
        if inode.xattrs.count > 0 {
            attributes.push([number, inode.xattrs.first, inode.xattrs.count]);
        }
        let inode = Inode {
            kind: inode.kind,
            has_exact_time: seconds.is_none(),
            mode: inode.mode,
            owner: owners.number(Owner {
                uid: inode.uid,
                gid: inode.gid,
                user: inode.user,
                group: inode.group,
            }),
            links: inode.links,
            seconds: seconds.unwrap_or_default(),
            content,
        };
        packed.push(inode.words());
    }
    drop(inodes);
    let xattrs = pack_xattrs(&xattrs, &text, &mut arena)?;
    tables.reserve(packed.len(), Inode::WORDS);
    let layout = Layout {
        inodes: tables.add(packed),
        names,
        chunks: chunk_table,
        times: tables.add(times),
        attributes: tables.add(attributes),
        xattrs: tables.add(xattrs),
        owners: tables.add(owners.all.into_iter().map(Owner::words)),
        arena: 0,
    };
    Ok(Toc {
        digest,
        codec,
        form,
        tables: tables.finish(layout, &arena.0),
        texts: texts.into_iter().map(Into::into).collect(),
    })
}

/// Returns the names, and one more that says where the text of the last one ends.
fn pack_names(names: &[DraftName], text: &[u8], arena: &mut Arena) -> Result<Vec<Name>, TocError> {
    let mut packed = Vec::with_capacity(names.len() + 1);
    for name in names {
        let Span { start, .. } = arena.keep(&text[name.text.range()])?;
        let inode = name.inode;
        packed.push(Name { inode, start });
    }
    let end = Name {
        inode: 0,
        start: arena.end()?,
    };
    packed.push(end);
    Ok(packed)
}

fn pack_xattrs(
    xattrs: &[(Span, Span)],
    text: &[u8],
    arena: &mut Arena,
) -> Result<Vec<[u32; 4]>, TocError> {
    let mut shared: HashMap<&[u8], Span> = HashMap::new();
    let mut keep = |span: Span| {
        let bytes = &text[span.range()];
        if let Some(known) = shared.get(bytes) {
            return Ok(*known);
        }
        let span = arena.keep(bytes)?;
        if shared.len() < MAX_SHARED {
            shared.insert(bytes, span);
        }
        Ok(span)
    };
    let pairs = xattrs
        .iter()
        .map(|(name, value)| Ok(pair(keep(*name)?, keep(*value)?)));
    pairs.collect()
}

/// Returns the entry of an extended attribute.
fn pair(name: Span, value: Span) -> [u32; 4] {
    [name.start, name.len, value.start, value.len]
}

/// Text of the tree.
struct Arena(Vec<u8>);

impl Arena {
    fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<Span, TocError> {
        let start = self.end()?;
        self.0.extend_from_slice(bytes);
        let len = self.end()? - start;
        Ok(Span { start, len })
    }

    fn end(&self) -> Result<u32, TocError> {
        u32::try_from(self.0.len()).map_err(|_too_long| TocError::Limit {
            what: "bytes of names",
            limit: u64::from(u32::MAX),
        })
    }
}

/// Different values and their numbers.
struct Interned<T> {
    all: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Interned<T> {
    fn number(&mut self, value: T) -> u32 {
        *self.numbers.entry(value).or_insert_with(|| {
            self.all.push(value);
            // There are no more values than inodes, which are numbered with 32 bits.
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        })
    }
}
