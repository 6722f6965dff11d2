//! The list that grows: which files were named so far, and the reading of those that say which come next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use estargz::toc::NodeId;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::elf::{self, Elf, Refused};
use super::sparse::Sparse;
use super::view::{Found, View};
use crate::convert::error::Error;
use crate::convert::tocs::Tocs;
use crate::profile::{Extents, FileUse};
use crate::store::records::ConvertedLayer;

/// Most files that are named: far more than any start was seen to read, a quarter of what a profile may hold.
const MAX_NAMED: usize = 4096;
/// Most files that are read to learn what comes next, libraries among them.
const MAX_READS: usize = 4096;
/// Most bytes of them in all.
const MAX_READ_BYTES: u64 = 1 << 30;
/// The longest text that is read; longer ones are data, whatever they are called.
const MAX_TEXT: u64 = 1 << 20;
/// How long the reading may take; what is known by then is the answer.
const MAX_TIME: Duration = Duration::from_secs(60);
/// Most programs that are started; a script that starts more is a loop.
const MAX_STARTS: usize = 256;
/// Texts that are read at once, where the store is far away.
const READS_AT_ONCE: usize = 16;
/// Pieces of one ELF file: its headers, its dynamic section and its strings lie in three places at most, and the
/// strings in several chunks.
const MAX_PIECES: usize = 12;
/// Files up to this size count as read whole: a loader maps a library and touches most of it in no order. Of larger ones
/// the chunks at both ends are sure to be read, headers and tables being there, and the rest would delay the others.
const MAX_WHOLE: u64 = 64 << 20;

/// A walk through an image.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) view: View,
    tocs: &'a Tocs,
    layers: &'a [Option<ConvertedLayer>],
    files: Vec<FileUse>,
    named: HashSet<(usize, NodeId)>,
    elves: HashMap<(usize, NodeId), Option<Arc<Elf>>>,
    texts: HashMap<(usize, NodeId), Arc<str>>,
    started: HashSet<Vec<String>>,
    reads: usize,
    bytes: u64,
    until: Instant,
}

impl<'a> Walk<'a> {
    /// Through the image of these layers, bottom first; those without a record are not looked into.
    pub(super) async fn new(tocs: &'a Tocs, layers: &'a [Option<ConvertedLayer>]) -> Result<Self, Error> {
        // By place: a closure over references would not be general enough for a future that is sent to another thread.
        let opened = stream::iter(0..layers.len()).map(|place| async move {
            Ok::<_, Error>(match &layers[place] {
                Some(layer) => Some(tocs.toc(layer).await?),
                None => None,
            })
        });
        let opened = opened.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(Self {
            view: View::new(opened),
            tocs,
            layers,
            files: Vec::new(),
            named: HashSet::new(),
            elves: HashMap::new(),
            texts: HashMap::new(),
            started: HashSet::new(),
            reads: 0,
            bytes: 0,
            until: Instant::now() + MAX_TIME,
        })
    }

    /// The files that were named, in the order of their first use.
    pub(super) fn finish(self) -> Vec<FileUse> {
        self.files
    }

    /// Names a file; whether it is new.
    pub(super) fn name(&mut self, file: &Found) -> bool {
        if self.files.len() >= MAX_NAMED || !self.named.insert((file.layer, file.node)) {
            return false;
        }
        let Ok(layer) = u32::try_from(file.layer) else { return false };
        let extents = if file.size <= MAX_WHOLE { Extents::new(Some(0..file.size)) } else { self.ends(file) };
        self.files.push(FileUse { layer, path: file.path.clone(), extents, after: Duration::ZERO });
        true
    }

    /// Names the regular file that `path` leads to, if there is one.
    pub(super) fn name_path(&mut self, path: &str) -> Option<Found> {
        let file = self.view.file(path)?;
        self.name(&file);
        Some(file)
    }

    /// Whether the time is up.
    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Whether a program that starts with these arguments says something new.
    pub(super) fn may_start(&mut self, argv: &[String]) -> bool {
        self.started.len() < MAX_STARTS && self.started.insert(argv.to_vec())
    }

    /// The first and the last chunk.
    fn ends(&self, file: &Found) -> Extents {
        let node = self.view.node_of(file);
        let chunk = |offset| node.and_then(|node| node.chunk_at(offset));
        let ends = [chunk(0), chunk(file.size.saturating_sub(1))];
        Extents::new(ends.into_iter().flatten().map(|chunk| chunk.file_offset..chunk.file_offset + chunk.size))
    }

    /// The content of a text; empty for what is too long to be one, and once the walk has read enough.
    pub(super) async fn text(&mut self, file: &Found) -> Result<Arc<str>, Error> {
        self.prepare(std::slice::from_ref(file)).await?;
        Ok(self.texts.get(&(file.layer, file.node)).cloned().unwrap_or_default())
    }

    /// Reads texts that will be asked for, several at once.
    pub(super) async fn prepare(&mut self, files: &[Found]) -> Result<(), Error> {
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for file in files.iter().filter(|file| file.size <= MAX_TEXT) {
            let key = (file.layer, file.node);
            if !self.texts.contains_key(&key) && seen.insert(key) && self.may_read(file.size) {
                wanted.push(file.clone());
            }
        }
        let this = &*self;
        let read = stream::iter(wanted).map(|file| async move {
            let content = this.content(&file).await?;
            Ok::<_, Error>(((file.layer, file.node), Arc::from(String::from_utf8_lossy(&content))))
        });
        let read: Vec<_> = read.buffered(READS_AT_ONCE).try_collect().await?;
        self.texts.extend(read);
        Ok(())
    }

    /// The first bytes of a file; none once the walk has read enough.
    pub(super) async fn head(&mut self, file: &Found, bytes: u64) -> Result<Vec<u8>, Error> {
        if !self.may_read(bytes) {
            return Ok(Vec::new());
        }
        match (self.layers.get(file.layer), self.view.node_of(file)) {
            (Some(Some(layer)), Some(node)) => self.tocs.read(layer, node, 0..bytes).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn content(&self, file: &Found) -> Result<Vec<u8>, Error> {
        match (self.layers.get(file.layer), self.view.node_of(file)) {
            (Some(Some(layer)), Some(node)) => self.tocs.read(layer, node, 0..file.size).await,
            _ => Ok(Vec::new()),
        }
    }

    /// What an ELF file says; `None` for other files, and once the walk has read enough.
    pub(super) async fn elf(&mut self, file: &Found) -> Result<Option<Arc<Elf>>, Error> {
        let key = (file.layer, file.node);
        if let Some(known) = self.elves.get(&key) {
            return Ok(known.clone());
        }
        let read = self.read_elf(file).await?.map(Arc::new);
        self.elves.insert(key, read.clone());
        Ok(read)
    }

    async fn read_elf(&mut self, file: &Found) -> Result<Option<Elf>, Error> {
        let mut known = Sparse::new(file.size);
        for _piece in 0..MAX_PIECES {
            let offset = match elf::read(&known) {
                Ok(elf) => return Ok(Some(elf)),
                Err(Refused::NotElf) => return Ok(None),
                Err(Refused::Missing(offset)) => offset,
            };
            let chunk = self.view.node_of(file).and_then(|node| node.chunk_at(offset));
            let (Some(Some(layer)), Some(chunk)) = (self.layers.get(file.layer), chunk) else { return Ok(None) };
            if !self.may_read(chunk.size) {
                return Ok(None);
            }
            let start = chunk.file_offset;
            known.add(start, self.tocs.chunk(layer, chunk).await?);
        }
        Ok(None)
    }

    /// Whether so many bytes more may be read; they count from now on.
    fn may_read(&mut self, bytes: u64) -> bool {
        let may = self.reads < MAX_READS && self.bytes + bytes <= MAX_READ_BYTES && !self.is_late();
        if may {
            self.reads += 1;
            self.bytes += bytes;
        }
        may
    }
}
