//! From the JSON of a TOC to its tree, with the semantics of a tar: a later entry replaces an
//! earlier one of its name, a hard link refers to the entry that had the name at that point, and
//! only directories have entries below them.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::cover::{Cover, Covered};
use super::error::TocError;
use super::json::{self, RawEntry};
use super::names::{DraftName, Names};
use super::owners::Owners;
use super::pack::{self, Draft};
use super::path::{components, lossy};
use super::tree::{Kind, Run, Span, Toc};
use crate::codec::Codec;
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::limits::Limits;
use crate::time::Time;

/// Number of the root.
const ROOT: u32 = 0;
/// Mode of a directory no entry describes.
const IMPLIED_MODE: u16 = 0o755;
/// The bits of a tar's mode that a file system keeps.
const MODE_BITS: i64 = 0o7777;

/// Builds the tree of `json`, whose digest has been verified.
pub(super) fn toc(
    json: &[u8],
    digest: Digest,
    codec: Codec,
    payload_end: u64,
    limits: &Limits,
) -> Result<Toc, TocError> {
    let mut builder = Builder::new(payload_end, limits);
    json::for_each(json, |entry| builder.entry(&entry))?;
    builder.finish(digest, codec)
}

/// A tree under construction, entry by entry.
pub(crate) struct Builder<'l> {
    limits: &'l Limits,
    inodes: Vec<DraftInode>,
    names: Names,
    cover: Cover,
    xattrs: Vec<(Span, Span)>,
    owners: Owners,
}

impl<'l> Builder<'l> {
    pub(crate) fn new(payload_end: u64, limits: &'l Limits) -> Self {
        let inodes = vec![DraftInode::implied()];
        let cover = Cover::new(payload_end);
        Self {
            limits,
            inodes,
            names: Names::default(),
            cover,
            xattrs: Vec::new(),
            owners: Owners::default(),
        }
    }

    /// A builder of the tree of a tar, in which an entry has only its own names of owners.
    pub(crate) fn of_tar(limits: &'l Limits) -> Self {
        Self {
            owners: Owners::of_tar(),
            ..Self::new(u64::MAX, limits)
        }
    }

    /// Adds the next entry of a TOC.
    pub(crate) fn entry(&mut self, entry: &RawEntry<'_>) -> Result<(), TocError> {
        if entry.kind == EntryKind::Chunk {
            return self.cover.push(entry, self.limits);
        }
        self.end_file()?;
        let path = exact(
            &entry.name,
            entry.raw_name.as_deref(),
            &entry.name,
            "rawName",
        )?;
        let path = components(&path, self.limits)?;
        let inode = self.inode(entry)?;
        let number = self.place(&path, inode)?;
        if entry.kind == EntryKind::Reg {
            self.cover.begin(entry, number, self.limits)?;
        }
        Ok(())
    }

    fn inode(&mut self, entry: &RawEntry<'_>) -> Result<DraftInode, TocError> {
        let kind = match entry.kind {
            EntryKind::Dir => Kind::Directory,
            EntryKind::Symlink => Kind::Symlink,
            EntryKind::Hardlink => Kind::DanglingLink,
            EntryKind::Char => Kind::CharDevice,
            EntryKind::Block => Kind::BlockDevice,
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Reg | EntryKind::Chunk => Kind::File,
        };
        let target = match kind {
            Kind::Symlink | Kind::DanglingLink => {
                let target = exact(
                    &entry.link_name,
                    entry.raw_link_name.as_deref(),
                    &entry.name,
                    "rawLinkName",
                )?
                .into_owned();
                self.names.keep(&target)?
            }
            Kind::Directory | Kind::File | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                Span::default()
            }
        };
        let content = match kind {
            Kind::CharDevice | Kind::BlockDevice => Run {
                first: low_half(entry.dev_major),
                count: low_half(entry.dev_minor),
            },
            Kind::Directory | Kind::File | Kind::Symlink | Kind::Fifo | Kind::DanglingLink => {
                Run::default()
            }
        };
        let modified = Time::from_rfc3339(&entry.mod_time);
        let (user, group) = self.owners.of(entry);
        if self.owners.len() > self.limits.max_owners as usize {
            return Err(TocError::Limit {
                what: "names of owners",
                limit: u64::from(self.limits.max_owners),
            });
        }
        Ok(DraftInode {
            kind,
            mode: u16::try_from(entry.mode & MODE_BITS).unwrap_or_default(),
            uid: low_half(entry.uid),
            gid: low_half(entry.gid),
            user,
            group,
            modified,
            content,
            xattrs: self.keep_xattrs(entry)?,
            target,
            ..DraftInode::implied()
        })
    }

    fn keep_xattrs(&mut self, entry: &RawEntry<'_>) -> Result<Run, TocError> {
        let over = |_| TocError::Limit {
            what: "extended attributes",
            limit: u64::from(u32::MAX),
        };
        let xattrs = entry.xattrs.iter().flatten();
        let first = u32::try_from(self.xattrs.len()).map_err(over)?;
        for (name, value) in xattrs {
            let value = unbase64(value.as_deref().unwrap_or_default(), &entry.name, "xattrs")?;
            let name = self.names.keep(name.as_bytes())?;
            let value = self.names.keep(&value)?;
            self.xattrs.push((name, value));
        }
        if self.xattrs.len() > self.limits.max_xattrs as usize {
            let limit = u64::from(self.limits.max_xattrs);
            return Err(TocError::Limit {
                what: "extended attributes",
                limit,
            });
        }
        let count = u32::try_from(self.xattrs.len()).map_err(over)? - first;
        Ok(Run { first, count })
    }

    /// Places `inode` at `path` and returns its number.
    fn place(&mut self, path: &[&[u8]], inode: DraftInode) -> Result<u32, TocError> {
        let Some((name, parents)) = path.split_last() else {
            return self.replace_root(inode);
        };
        let parent = self.directory(parents)?;
        let inode = self.resolved(inode, path);
        let Some(position) = self.names.find(parent, name) else {
            let number = self.number(inode)?;
            self.names
                .add(parent, name, number, self.limits.max_names)?;
            return Ok(number);
        };
        let before = self.names.table[position as usize].inode;
        let number = match inode {
            Placed::New(inode)
                if inode.is_directory() && self.inodes[before as usize].is_directory() =>
            {
                self.inodes[before as usize] = inode;
                before
            }
            other => self.number(other)?,
        };
        self.names.table[position as usize].inode = number;
        Ok(number)
    }

    fn replace_root(&mut self, inode: DraftInode) -> Result<u32, TocError> {
        if !inode.is_directory() {
            return Err(TocError::Name {
                path: "/".to_owned(),
            });
        }
        self.inodes[ROOT as usize] = inode;
        Ok(ROOT)
    }

    /// Returns the inode itself, or the number of the inode that it is a hard link to.
    fn resolved(&self, inode: DraftInode, path: &[&[u8]]) -> Placed {
        if inode.kind != Kind::DanglingLink {
            return Placed::New(inode);
        }
        let target = &self.names.arena[inode.target.range()];
        match components(target, self.limits) {
            Ok(target) if target == path => Placed::New(inode),
            Ok(target) => match self.find(&target) {
                Some(found) if !self.inodes[found as usize].is_directory() => Placed::Old(found),
                _ => Placed::New(inode),
            },
            Err(_unusable) => Placed::New(inode),
        }
    }

    fn number(&mut self, inode: Placed) -> Result<u32, TocError> {
        let inode = match inode {
            Placed::Old(number) => return Ok(number),
            Placed::New(inode) => inode,
        };
        let limit = self.limits.max_names.saturating_add(1);
        let over = TocError::Limit {
            what: "names",
            limit: u64::from(self.limits.max_names),
        };
        let number = u32::try_from(self.inodes.len())
            .ok()
            .filter(|count| *count < limit)
            .ok_or(over)?;
        self.inodes.push(inode);
        Ok(number)
    }

    /// Returns the directory at `path`; creates it if no entry describes it.
    fn directory(&mut self, path: &[&[u8]]) -> Result<u32, TocError> {
        let mut number = ROOT;
        for (depth, name) in path.iter().enumerate() {
            number = match self.names.find(number, name) {
                Some(position) => self.names.table[position as usize].inode,
                None => {
                    let implied = self.number(Placed::New(DraftInode::implied()))?;
                    self.names
                        .add(number, name, implied, self.limits.max_names)?;
                    implied
                }
            };
            if !self.inodes[number as usize].is_directory() {
                return Err(TocError::NotADirectory {
                    path: lossy(&path[..=depth].join(&b'/')),
                });
            }
        }
        Ok(number)
    }

    fn find(&self, path: &[&[u8]]) -> Option<u32> {
        path.iter().try_fold(ROOT, |number, name| {
            let position = self.names.find(number, name)?;
            Some(self.names.table[position as usize].inode)
        })
    }

    fn end_file(&mut self) -> Result<(), TocError> {
        if let Some(Covered { inode, run }) = self.cover.end()? {
            self.inodes[inode as usize].content = run;
        }
        Ok(())
    }

    /// Finds the targets of hard links that come before their targets. Each link is followed once.
    /// A link that leads nowhere, to a directory or in a circle stays dangling.
    fn resolve_links(&mut self) {
        let mut known: HashMap<u32, u32> = HashMap::new();
        for position in 0..self.names.table.len() {
            let inode = self.names.table[position].inode;
            if self.inodes[inode as usize].kind == Kind::DanglingLink {
                self.names.table[position].inode = self.follow(inode, &mut known);
            }
        }
    }

    fn follow(&self, link: u32, known: &mut HashMap<u32, u32>) -> u32 {
        let mut chain = Vec::new();
        let mut number = link;
        let end = loop {
            let inode = &self.inodes[number as usize];
            match known.get(&number) {
                Some(end) => {
                    break Some(*end)
                        .filter(|end| self.inodes[*end as usize].kind != Kind::DanglingLink);
                }
                None if inode.is_directory() => break None,
                None if inode.kind != Kind::DanglingLink => break Some(number),
                None => {}
            }
            known.insert(number, number);
            chain.push(number);
            let target = components(&self.names.arena[inode.target.range()], self.limits);
            match target.ok().and_then(|target| self.find(&target)) {
                Some(next) => number = next,
                None => break None,
            }
        };
        for link in chain {
            known.insert(link, end.unwrap_or(link));
        }
        end.unwrap_or(link)
    }

    pub(crate) fn finish(mut self, digest: Digest, codec: Codec) -> Result<Toc, TocError> {
        self.end_file()?;
        self.resolve_links();
        let Names { table, arena, .. } = self.names;
        let mut names = reachable(table, &self.inodes);
        names.sort_unstable_by(|a, b| {
            let text = |name: &DraftName| &arena[name.text.range()];
            a.parent.cmp(&b.parent).then_with(|| text(a).cmp(text(b)))
        });
        number_children(&names, &mut self.inodes);
        count_links(&names, &mut self.inodes);
        pack::toc(Draft {
            digest,
            codec,
            inodes: self.inodes,
            names,
            chunks: self.cover.finish(),
            xattrs: self.xattrs,
            owners: self.owners.texts,
            arena,
        })
    }
}

/// An inode while the tree is built.
#[derive(Debug, Clone)]
pub(super) struct DraftInode {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The numbers of their names.
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) links: u32,
    pub(super) modified: Time,
    /// Chunks of a file, names in a directory, or the major and minor number of a device.
    pub(super) content: Run,
    pub(super) xattrs: Run,
    /// Target of a symbolic or dangling hard link.
    pub(super) target: Span,
}

enum Placed {
    New(DraftInode),
    Old(u32),
}

impl DraftInode {
    fn implied() -> Self {
        Self {
            kind: Kind::Directory,
            mode: IMPLIED_MODE,
            uid: 0,
            gid: 0,
            user: Owners::NOBODY,
            group: Owners::NOBODY,
            links: 0,
            modified: Time::default(),
            content: Run::default(),
            xattrs: Run::default(),
            target: Span::default(),
        }
    }

    fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Returns the names that are reachable from the root. Those below a directory that another entry
/// replaced are not. The name of a parent comes before those of its children.
fn reachable(mut names: Vec<DraftName>, inodes: &[DraftInode]) -> Vec<DraftName> {
    let mut live = vec![false; inodes.len()];
    live[ROOT as usize] = true;
    names.retain(|name| {
        let keep = live[name.parent as usize];
        if keep && inodes[name.inode as usize].is_directory() {
            live[name.inode as usize] = true;
        }
        keep
    });
    names.shrink_to_fit();
    names
}

/// `names` are sorted by parent.
fn number_children(names: &[DraftName], inodes: &mut [DraftInode]) {
    let mut first = 0;
    for siblings in names.chunk_by(|a, b| a.parent == b.parent) {
        let count = u32::try_from(siblings.len()).unwrap_or(u32::MAX);
        inodes[siblings[0].parent as usize].content = Run { first, count };
        first += count;
    }
}

fn count_links(names: &[DraftName], inodes: &mut [DraftInode]) {
    inodes[ROOT as usize].links = 2;
    for name in names {
        let directory = inodes[name.inode as usize].is_directory();
        inodes[name.inode as usize].links += if directory { 2 } else { 1 };
        if directory {
            inodes[name.parent as usize].links += 1;
        }
    }
}

/// Returns the exact bytes of a name: those of the raw field if there is one.
pub(crate) fn exact<'a>(
    text: &'a str,
    raw: Option<&str>,
    path: &str,
    field: &'static str,
) -> Result<Cow<'a, [u8]>, TocError> {
    match raw {
        Some(raw) => unbase64(raw, path, field).map(Cow::Owned),
        None => Ok(Cow::Borrowed(text.as_bytes())),
    }
}

fn unbase64(text: &str, path: &str, field: &'static str) -> Result<Vec<u8>, TocError> {
    STANDARD.decode(text).map_err(|_broken| TocError::Base64 {
        path: path.to_owned(),
        field,
    })
}

/// Returns the low 32 bits: ids and device numbers of Linux are that wide, those of a tar may be
/// wider or negative.
fn low_half(number: i64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
