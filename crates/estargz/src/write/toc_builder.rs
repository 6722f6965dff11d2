//! The entries of the TOC, collected in the order of the stream.

use super::entry_builder::{EntryBuilder, LastNames, Names, Place};
use super::links::{Links, Target};
use super::path_states::{Path, PathStates};
use super::{Error, Limits};
use crate::entry::EntryKind;
use crate::tar::Header;
use crate::toc::TocWriter;

/// Bytes of JSON of an entry without its names and attributes: keys, numbers, time and two digests.
const ENTRY_JSON_BYTES: usize = 400;

/// An entry of the TOC builder, to be completed when its member is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryId(u32);

#[derive(Debug)]
pub(super) struct TocBuilder {
    /// `None` if a later entry of the same path replaced it.
    entries: Vec<Option<EntryBuilder>>,
    path_states: PathStates,
    links: Links,
    names: Names,
    json_bytes: u64,
    limits: Limits,
}

/// The TOC and its counts.
#[derive(Debug)]
pub(super) struct FinishedToc {
    pub(super) json: Vec<u8>,
    pub(super) entries: u64,
    pub(super) chunks: u64,
}

impl TocBuilder {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            entries: Vec::new(),
            path_states: PathStates::default(),
            links: Links::default(),
            names: Names::default(),
            json_bytes: 0,
            limits: *limits,
        }
    }

    /// Adds an entry. It replaces an earlier one with the same path, including its chunks.
    pub(super) fn push(&mut self, header: &Header) -> Result<EntryId, Error> {
        let names = header.path.len()
            + header.link.len()
            + header.user_name.len()
            + header.group_name.len();
        let xattrs: usize = header
            .xattrs
            .iter()
            .map(|(key, value)| key.len() + 2 * value.len() + 16)
            .sum();
        let path = Path::new(&header.path);
        let target = self.target(header, &path)?;
        let entry = EntryBuilder::new(header, &mut self.names);
        let id = self.add(entry, names + xattrs)?;
        self.replace(&path, Some(id.0), header.kind == EntryKind::Dir)?;
        if let Some(target) = target {
            self.links.add(id.0, target);
        }
        Ok(id)
    }

    /// Adds a chunk that continues the last entry.
    pub(super) fn push_chunk(&mut self, header: &Header) -> Result<EntryId, Error> {
        let entry = EntryBuilder::chunk(header, &mut self.names);
        self.add(entry, header.path.len())
    }

    /// Removes the entry at the path of a file that is added after the whole source.
    pub(super) fn postpone(&mut self, header: &Header) -> Result<(), Error> {
        self.replace(&Path::new(&header.path), None, false)
    }

    /// Notes an entry that is not listed, because the writer adds another of its name: entries below
    /// it are refused if it is not a directory.
    pub(super) fn leave_out(&mut self, header: &Header) -> Result<(), Error> {
        let path = Path::new(&header.path);
        let is_added = self.lists(path.clean());
        if is_added {
            return Ok(());
        }
        let is_directory = header.kind == EntryKind::Dir;
        self.path_states.put(&path, None, is_directory).map(drop)
    }

    /// Ends the source. The postponed files are added from here on.
    pub(super) fn end_source(&mut self) {
        self.links.end_postponement();
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lists(&self, path: &[u8]) -> bool {
        self.path_states
            .get(&Path::new(path))
            .is_some_and(|state| state.entry.is_some())
    }

    /// Returns the place of an entry, unless a later one replaced it.
    pub(super) fn place_mut(&mut self, id: EntryId) -> Option<&mut Place> {
        self.entries
            .get_mut(id.0 as usize)?
            .as_mut()
            .map(|entry| &mut entry.place)
    }

    pub(super) fn finish(mut self) -> Result<FinishedToc, Error> {
        self.follow_moves();
        let Self {
            entries: builders,
            path_states,
            links,
            names,
            json_bytes,
            limits,
        } = self;
        // The JSON is as large as all builders, so memory that is no longer needed is freed first.
        drop((path_states, links));
        let mut toc = TocWriter::with_capacity(
            usize::try_from(json_bytes.min(limits.max_json_bytes)).unwrap_or(0),
        );
        let (mut entries, mut chunks) = (0, 0);
        let mut seen = LastNames::default();
        for builder in builders.into_iter().flatten() {
            entries += u64::from(builder.kind != EntryKind::Chunk);
            chunks += u64::from(builder.place.chunk_digest.is_some());
            toc.push(&builder.into_entry(&names, &mut seen));
        }
        let json = toc.finish();
        if json.len() as u64 > limits.max_json_bytes {
            return Err(Error::Limit {
                what: "bytes of TOC",
                limit: limits.max_json_bytes,
            });
        }
        Ok(FinishedToc {
            json,
            entries,
            chunks,
        })
    }

    fn add(&mut self, entry: EntryBuilder, name_bytes: usize) -> Result<EntryId, Error> {
        self.json_bytes += (name_bytes + ENTRY_JSON_BYTES) as u64;
        // The estimate may be too high by half. The exact limit is checked on the finished JSON.
        if self.json_bytes / 2 > self.limits.max_json_bytes {
            return Err(Error::Limit {
                what: "bytes of TOC",
                limit: self.limits.max_json_bytes,
            });
        }
        if self.entries.len() as u64 >= self.limits.max_entries {
            return Err(Error::Limit {
                what: "entries",
                limit: self.limits.max_entries,
            });
        }
        let over = |_| Error::Limit {
            what: "entries",
            limit: u64::from(u32::MAX),
        };
        let id = u32::try_from(self.entries.len()).map_err(over)?;
        self.entries.push(Some(entry));
        Ok(EntryId(id))
    }

    /// Returns the entry that a hard link shares its content with, if it comes before the link.
    /// Fails if readers would not find it.
    fn target(&self, header: &Header, path: &Path) -> Result<Option<Target>, Error> {
        let target = Path::new(&header.link);
        if header.kind != EntryKind::Hardlink || target == *path {
            return Ok(None);
        }
        let Some(state) = self.path_states.get(&target) else {
            return self.path_states.check_target(&target).map(|()| None);
        };
        Ok((!state.is_directory).then(|| match state.entry {
            None => Target::Postponed(target),
            // A dangling link is an entry of its own.
            Some(entry) => self.links.target_of(entry).unwrap_or(Target::Entry(entry)),
        }))
    }

    /// Places `entry` at `path`. Hard links to the replaced entry keep its content: it takes the
    /// path of the first of them.
    fn replace(
        &mut self,
        path: &Path,
        entry: Option<u32>,
        is_directory: bool,
    ) -> Result<(), Error> {
        if self.links.is_postponed(path) {
            return Err(path.refused("it replaces a sparse file that has hard links"));
        }
        let Some(before) = self.path_states.put(path, entry, is_directory)? else {
            return Ok(());
        };
        match self.links.successor(before) {
            Some(successor) => self.move_to_successor(before, successor),
            None => self.drop_entry(before),
        }
        Ok(())
    }

    /// Gives `entry`, which has lost its path, the path of `successor`, a hard link to it.
    fn move_to_successor(&mut self, entry: u32, successor: u32) {
        let Some(link) = self.entries[successor as usize].take() else {
            return;
        };
        let path = link.into_path();
        self.path_states.move_entry(&Path::new(&path), entry);
        if let Some(entry) = &mut self.entries[entry as usize] {
            entry.rename(&path);
        }
    }

    /// Updates the paths of chunks and links of entries that moved, once for all moves. Links are
    /// updated too if they named another link whose path now belongs to another entry.
    fn follow_moves(&mut self) {
        let mut moved_to: Option<Box<[u8]>> = None;
        for id in 0..self.entries.len() {
            let number = u32::try_from(id).unwrap_or(u32::MAX);
            let linked = self.corrected_target(number);
            let Some(entry) = &mut self.entries[id] else {
                continue;
            };
            if entry.kind != EntryKind::Chunk {
                moved_to = self.links.has_moved(number).then(|| entry.path().into());
            } else if let Some(path) = &moved_to {
                entry.rename(path);
            }
            if let Some(path) = linked {
                entry.link_to(path);
            }
        }
    }

    /// Returns the path of the entry that `link` links to, if the path that it names leads
    /// elsewhere.
    fn corrected_target(&self, link: u32) -> Option<Box<[u8]>> {
        let target = self.links.target_of(link)?;
        let named = Path::new(self.entries[link as usize].as_ref()?.link());
        let state = self.path_states.get(&named).and_then(|state| state.entry);
        let is_link_to_it =
            || state.and_then(|entry| self.links.target_of(entry)).as_ref() == Some(&target);
        match &target {
            Target::Entry(entry) => {
                let leads_there = state == Some(*entry) || is_link_to_it();
                let path = || {
                    self.entries[*entry as usize]
                        .as_ref()
                        .map(|target| Box::from(target.path()))
                };
                if leads_there && !self.links.has_moved(*entry) {
                    None
                } else {
                    path()
                }
            }
            Target::Postponed(path) => {
                (named != *path && !is_link_to_it()).then(|| path.clean().into())
            }
        }
    }

    /// Removes an entry and the chunks that continue it.
    fn drop_entry(&mut self, entry: u32) {
        self.links.forget(entry);
        let rest = &mut self.entries[entry as usize..];
        let is_chunk = |entry: &&Option<EntryBuilder>| {
            entry
                .as_ref()
                .is_some_and(|entry| entry.kind == EntryKind::Chunk)
        };
        let chunks = rest.iter().skip(1).take_while(is_chunk).count();
        rest[..=chunks].fill_with(|| None);
    }
}
