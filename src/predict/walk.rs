//! The growing list of files, and the reading of files that lead to further ones.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use estargz::Chunk;
use estargz::toc::NodeId;

use super::blobs::{Blobs, Read, Task};
use super::elf::{self, Elf, Refused};
use super::fuel::{End, Fuel};
use super::sparse::Sparse;
use super::view::{PathTarget, View};
use crate::profile::{Extents, FileUse};

/// Most files that are named: far more than any known start reads, and a quarter of the limit of a
/// profile.
const MAX_NAMED: usize = 4096;
/// The longest text that is read. Longer files are data, despite their names.
const MAX_TEXT: u64 = 1 << 20;
/// Most programs that are started. A script that starts more is a loop.
const MAX_STARTS: usize = 256;
/// Chunks that are requested at once, because the store may be far away.
const CHUNKS_AT_ONCE: usize = 16;
/// Most bytes of content that are requested at once.
const BYTES_AT_ONCE: u64 = 16 << 20;
/// Most pieces of one ELF file. Its headers, its dynamic section and its strings are in at most
/// three places, and the strings in several chunks.
const MAX_PIECES: usize = 12;
/// Files up to this size count as read completely: a loader maps a library and touches most of it
/// in no order. Of larger files, only the first and the last chunk are certain, because headers and
/// tables are there. The rest would delay other files.
const MAX_WHOLE: u64 = 64 << 20;

/// A walk through an image.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) view: View,
    pub(super) fuel: Fuel,
    blobs: Blobs<'a>,
    files: Vec<FileUse>,
    named: HashSet<(usize, NodeId)>,
    elves: HashMap<(usize, NodeId), Option<Arc<Elf>>>,
    texts: HashMap<(usize, NodeId), Arc<str>>,
    started: HashSet<Vec<String>>,
}

impl<'a> Walk<'a> {
    /// Starts a walk through the layers of the task.
    pub(super) fn new(task: &Task, read: Box<Read<'a>>, fuel: Fuel) -> Self {
        let mut blobs = Blobs::new(read, fuel.clone());
        let layers = (0..).zip(&task.layers);
        let tocs = layers
            .map(|(number, layer)| blobs.toc(number, layer.as_ref()?).map(Arc::new))
            .collect();
        Self {
            view: View::new(tocs, fuel.clone()),
            fuel,
            blobs,
            files: Vec::new(),
            named: HashSet::new(),
            elves: HashMap::new(),
            texts: HashMap::new(),
            started: HashSet::new(),
        }
    }

    /// Returns the named files, in the order of their first use.
    ///
    /// # Errors
    /// The reason why the image could not be read.
    pub(super) fn finish(mut self) -> Result<Vec<FileUse>, String> {
        match self.blobs.broken() {
            Some(broken) => Err(broken),
            None => Ok(self.files),
        }
    }

    /// Names a file. Returns whether it is new.
    pub(super) fn name(&mut self, file: &PathTarget) -> bool {
        if !self.fuel.make(file.path.len()) || !self.named.insert((file.layer, file.node)) {
            return false;
        }
        if self.files.len() >= MAX_NAMED {
            self.fuel.end(End::Named);
            return false;
        }
        let Ok(layer) = u32::try_from(file.layer) else {
            return false;
        };
        let extents = if file.size <= MAX_WHOLE {
            Extents::new(Some(0..file.size))
        } else {
            self.ends(file)
        };
        self.files.push(FileUse {
            layer,
            path: file.path.clone(),
            extents,
            after: Duration::ZERO,
        });
        true
    }

    /// Names the regular file at `path`, if there is one.
    pub(super) fn name_path(&mut self, path: &str) -> Option<PathTarget> {
        let file = self.view.file(path)?;
        self.name(&file);
        Some(file)
    }

    /// Whether a program with these arguments has not been started before, and may be.
    pub(super) fn may_start(&mut self, argv: &[String]) -> bool {
        self.started.len() < MAX_STARTS
            && self
                .started
                .insert(self.fuel.copies(argv.iter().map(String::as_str)))
    }

    /// Returns the first and the last chunk.
    fn ends(&self, file: &PathTarget) -> Extents {
        let node = self.view.node_of(file);
        let chunk = |offset| node.and_then(|node| node.chunk_at(offset));
        let ends = [chunk(0), chunk(file.size.saturating_sub(1))];
        Extents::new(
            ends.into_iter()
                .flatten()
                .map(|chunk| chunk.file_offset..chunk.file_offset + chunk.size),
        )
    }

    /// Returns the content of a text. Empty for a file that is too long, and once the fuel has
    /// ended.
    pub(super) fn text(&mut self, file: &PathTarget) -> Arc<str> {
        self.prepare(std::slice::from_ref(file));
        self.texts
            .get(&(file.layer, file.node))
            .cloned()
            .unwrap_or_default()
    }

    /// Reads texts that will be needed, several at once.
    pub(super) fn prepare(&mut self, files: &[PathTarget]) {
        let fuel = self.fuel.clone();
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        for file in fuel.each(files).filter(|file| file.size <= MAX_TEXT) {
            let key = (file.layer, file.node);
            let is_requested = wanted
                .iter()
                .any(|other: &PathTarget| (other.layer, other.node) == key);
            if is_requested || self.texts.contains_key(&key) || !fuel.open() {
                continue;
            }
            bytes += file.size;
            wanted.push(file.clone());
            if wanted.len() >= CHUNKS_AT_ONCE || bytes >= BYTES_AT_ONCE {
                self.read_texts(&std::mem::take(&mut wanted));
                bytes = 0;
            }
        }
        self.read_texts(&wanted);
    }

    fn read_texts(&mut self, files: &[PathTarget]) {
        // Most texts are one chunk.
        let (mut chunks, mut owners) = (Vec::new(), Vec::new());
        for (number, file) in files.iter().enumerate() {
            let of_file = self.chunks_within(file, file.size);
            owners.extend(std::iter::repeat_n(number, of_file.len()));
            chunks.extend(of_file);
        }
        let mut contents = vec![Vec::new(); files.len()];
        for (owner, content) in owners.iter().zip(self.blobs.chunks(&chunks)) {
            if let Some(whole) = contents.get_mut(*owner) {
                whole.extend(content);
            }
        }
        for (file, content) in files.iter().zip(contents) {
            let text = text_of(&content, &self.fuel);
            self.texts.insert((file.layer, file.node), text);
        }
    }

    /// Returns the first bytes of a file. Empty once the fuel has ended.
    pub(super) fn head(&mut self, file: &PathTarget, bytes: u64) -> Vec<u8> {
        if !self.fuel.open() {
            return Vec::new();
        }
        let chunks = self.chunks_within(file, bytes);
        let mut head = self.blobs.chunks(&chunks).concat();
        head.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        head
    }

    /// Returns the chunks of a file before the offset `end` that may be inflated.
    fn chunks_within(&self, file: &PathTarget, end: u64) -> Vec<(u32, Chunk)> {
        let (Some(node), Ok(layer)) = (self.view.node_of(file), u32::try_from(file.layer)) else {
            return Vec::new();
        };
        let chunks = self
            .fuel
            .each(node.chunks())
            .take_while(|chunk| chunk.file_offset < end);
        chunks
            .take_while(|chunk| self.blobs.may_inflate(chunk))
            .map(|chunk| (layer, chunk))
            .collect()
    }

    /// Returns the contents of an ELF file. `None` for other files, and once the fuel has ended.
    pub(super) fn elf(&mut self, file: &PathTarget) -> Option<Arc<Elf>> {
        let key = (file.layer, file.node);
        if let Some(known) = self.elves.get(&key) {
            return known.clone();
        }
        let read = self.read_elf(file).map(Arc::new);
        self.elves.insert(key, read.clone());
        read
    }

    fn read_elf(&mut self, file: &PathTarget) -> Option<Elf> {
        let layer = u32::try_from(file.layer).ok()?;
        let mut known = Sparse::new(file.size);
        for _piece in 0..MAX_PIECES {
            let offset = match elf::read(&known, &self.fuel) {
                Ok(elf) => return Some(elf),
                Err(Refused::NotElf) => return None,
                Err(Refused::Missing(offset)) => offset,
            };
            let chunk = self
                .view
                .node_of(file)
                .and_then(|node| node.chunk_at(offset))?;
            if !self.fuel.open()
                || !self.blobs.may_inflate(&chunk)
                || !known.has_room_for(chunk.size)
            {
                return None;
            }
            let start = chunk.file_offset;
            let content = self
                .blobs
                .chunks(&[(layer, chunk)])
                .pop()
                .filter(|content| !content.is_empty())?;
            known.add(start, content);
        }
        None
    }
}

/// Converts bytes into a text. Bytes that are not UTF-8 may take three times their number.
fn text_of(content: &[u8], fuel: &Fuel) -> Arc<str> {
    match std::str::from_utf8(content) {
        Ok(text) if fuel.make(text.len()) => Arc::from(text),
        Err(_) if fuel.make(content.len() * 3) => Arc::from(String::from_utf8_lossy(content)),
        _ => Arc::from(""),
    }
}
