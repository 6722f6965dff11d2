//! The data file of one layer: the content of its chunks, each at its place, and which are there.
//!
//! Reads take no lock. A reader looks at the epoch before and after: content is taken away only
//! after the epoch has advanced, so that a reader never returns bytes of a hole. Writers share
//! `writes`; whatever takes content away has it alone.

mod access;
mod check;
mod read;
mod removal;
mod sync;
mod write;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use estargz::{Digest, Toc};
use parking_lot::{Mutex, RwLock};

pub use self::check::Checked;
use super::chunks::{Chunks, Presence};
use super::files::{Files, Site};
use super::map::{Boot, State};
use super::mapped::MappedFiles;
use super::places::{Places, TooLarge};
use super::space::{Space, Usage};
use crate::agent::layer::tree::Tree;

/// Bytes that are compared or copied at a time.
const PIECE: usize = 256 << 10;

/// The data file of one layer. Every call blocks, on the disk at most.
#[derive(Debug)]
pub struct LayerData {
    name: String,
    /// The number of this data file among those of the process.
    number: u32,
    tree: Arc<Tree>,
    places: Places,
    site: Site,
    chunks: Chunks,
    /// Chunks with content, and their bytes.
    all: (u64, u64),
    /// Advances before content is taken away.
    epoch: AtomicU64,
    /// Held shared while a chunk is written, and alone while content is taken away.
    writes: RwLock<()>,
    access: Mutex<Access>,
    is_loaded: AtomicBool,
    /// Whether chunks were written that are not durable.
    is_dirty: AtomicBool,
    holds: AtomicUsize,
    /// The time of the last use, on the clock of the space.
    used: AtomicU32,
}

/// The state of the files.
#[derive(Debug)]
enum Access {
    /// Not read yet, because of a failure that may be temporary. Tried again at this time.
    Unread(Instant),
    /// There are none. The next write creates them.
    None,
    /// Closed, to be opened again. The inode of the data file.
    Closed(u64),
    Open(Arc<Files>),
    /// No mounted layer needs them. Nothing is stored.
    Discarded,
}

/// Keeps the content of a data file in its place as long as it lives: the store releases it before it
/// evicts anything. For a reader that does not ask this process, the kernel.
#[derive(Debug)]
pub struct Hold(Arc<LayerData>);

impl LayerData {
    /// Opens the files of a layer, if there are any.
    ///
    /// # Errors
    /// If the layer has no room in one file.
    pub(super) fn open(
        folder: &Path,
        name: &str,
        number: u32,
        tree: Arc<Tree>,
        space: &Arc<Space>,
        tables: &MappedFiles,
    ) -> Result<Self, TooLarge> {
        let toc = tree.toc();
        let places = Places::new(toc)?.moved(|table| tables.copy(table));
        let count = u32::try_from(toc.chunk_count()).unwrap_or(u32::MAX);
        let stored = (0..count).filter_map(|number| toc.chunk(number));
        let all = stored
            .filter(|chunk| chunk.digest.is_some())
            .fold((0, 0), |(chunks, bytes), chunk| {
                (chunks + 1, bytes + chunk.size)
            });
        let site = Site {
            data: folder.join(format!("{name}.data")),
            map: folder.join(format!("{name}.map")),
            toc: toc.digest(),
            chunks: count,
            size: places.size(),
            boot: Boot::current(),
            space: Arc::clone(space),
        };
        let own = Self {
            name: name.to_owned(),
            number,
            chunks: Chunks::absent(count),
            tree,
            places,
            site,
            all,
            epoch: AtomicU64::default(),
            writes: RwLock::default(),
            access: Mutex::new(Access::Unread(Instant::now())),
            is_loaded: AtomicBool::default(),
            is_dirty: AtomicBool::default(),
            holds: AtomicUsize::default(),
            used: AtomicU32::default(),
        };
        own.load();
        Ok(own)
    }

    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Returns the path of the data file, which exists once something was written.
    pub fn path(&self) -> &Path {
        &self.site.data
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    fn toc(&self) -> &Toc {
        self.tree.toc()
    }

    /// Returns the digest of a chunk. `None` for a hole.
    pub(super) fn digest(&self, number: u32) -> Option<Digest> {
        self.toc().chunk(number)?.digest
    }

    pub(super) fn chunk_size(&self, number: u32) -> u64 {
        self.toc().chunk(number).map_or(0, |chunk| chunk.size)
    }

    /// Whether a chunk is here. One that was not compared with its digest yet counts, and so does a
    /// hole.
    pub fn holds(&self, number: u32) -> bool {
        self.load();
        self.chunks.holds(number) || self.is_hole(number)
    }

    fn is_hole(&self, number: u32) -> bool {
        self.toc()
            .chunk(number)
            .is_some_and(|chunk| chunk.digest.is_none())
    }

    /// Whether all content is here, and none of it may be torn: the file can be read by anybody.
    pub fn is_complete(&self) -> bool {
        self.load();
        let is_whole = self.chunks.held() == self.all.0 && self.chunks.doubtful() == 0;
        is_whole && (self.all.0 == 0 || self.open_files().is_ok_and(|files| files.is_some()))
    }

    /// Returns the number of chunks with content, and how many of them are here.
    pub fn chunk_counts(&self) -> (u64, u64) {
        (self.all.0, self.chunks.held())
    }

    /// Returns the bytes of content, and how many of them are here.
    pub fn content_bytes(&self) -> (u64, u64) {
        (self.all.1, self.chunks.held_bytes())
    }

    /// Returns what the files take on disk.
    pub fn usage(&self) -> Usage {
        self.site.space.of(&self.name)
    }

    /// Keeps the content in its place until the returned value is dropped.
    pub fn hold(self: &Arc<Self>) -> Hold {
        // Alone, so that an eviction that has begun ends before.
        let _alone = self.writes.write();
        self.holds.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(self))
    }

    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::SeqCst) > 0
    }

    fn place(&self, number: u32) -> io::Result<Range<u64>> {
        let place = self.places.of_chunk(self.toc(), number);
        place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn set(&self, number: u32, presence: Presence) -> State {
        let bytes = self.toc().chunk(number).map_or(0, |chunk| chunk.size);
        self.chunks.set(number, presence, bytes)
    }

    /// Returns the numbers of the chunks that are here, each with the time of its last use. What the
    /// kernel reads without asking is used as a whole.
    pub(super) fn held_with_use(&self) -> impl Iterator<Item = (u32, u32)> {
        let least = if self.is_held() { self.used() } else { 0 };
        let held = self.chunks.held_with_use();
        held.map(move |(number, used)| (number, used.max(least)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::SeqCst);
    }
}
