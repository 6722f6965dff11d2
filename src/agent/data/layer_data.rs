//! The data file of one layer: the content of its chunks, each at its place, and which are there.
//!
//! Reads take no lock. A reader looks at the epoch before and after: content is taken away only
//! after the epoch has advanced, so that a reader never returns bytes of a hole. Writers share
//! `writes`; whatever takes content away has it alone.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use estargz::{Digest, Toc};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use sha2::{Digest as _, Sha256};

use super::chunks::{Chunks, Presence};
use super::crash::step;
use super::files::{Files, Found, Site};
use super::map::{Boot, State};
use super::places::{Places, TooLarge};
use super::punch;
use super::space::{Space, Usage};
use crate::agent::tree::Tree;
use crate::telemetry::metrics::metrics;

/// How often a read begins again because content was taken away meanwhile.
const ATTEMPTS: usize = 3;
/// Pause before files that could not be read are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes that are compared or copied at a time.
const PIECE: usize = 256 << 10;
/// More bytes on disk than the chunks explain are left by a crash. They are freed from this size on.
const MAX_LEFTOVER: u64 = 1 << 20;

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

/// Keeps the content of a data file in its place: nothing is evicted as long as it lives. For a
/// reader that does not ask this process, the kernel.
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
    ) -> Result<Self, TooLarge> {
        let toc = tree.toc();
        let places = Places::new(toc)?;
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

    pub(super) fn name(&self) -> &str {
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

    /// Reads a part of a chunk. `None` if it is not here, or cannot be read at the moment.
    pub fn read_chunk(&self, number: u32, part: Range<u64>) -> Option<Bytes> {
        let place = self.places.of_chunk(self.toc(), number)?;
        let bytes = place.start.checked_add(part.start)?..place.start.checked_add(part.end)?;
        self.read(bytes)
            .filter(|_| place.start + part.end <= place.end)
    }

    /// Reads bytes of the data file. Padding and holes are zeros. `None` if one of the chunks is not
    /// here, or cannot be read at the moment.
    pub fn read(&self, bytes: Range<u64>) -> Option<Bytes> {
        self.load();
        if bytes.start > bytes.end || bytes.end > self.places.size() {
            return None;
        }
        for _ in 0..ATTEMPTS {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let mut has_content = false;
            for number in self.numbers(&bytes) {
                if self.chunks.holds(number) {
                    has_content = true;
                } else if !self.is_hole(number) {
                    return None;
                }
            }
            let found = if has_content {
                self.try_read(&bytes, epoch)
            } else {
                length(&bytes).map(|length| Bytes::from(vec![0; length]))
            };
            if self.epoch.load(Ordering::SeqCst) != epoch {
                continue;
            }
            return match found {
                Ok(content) => {
                    self.touch(&bytes);
                    Some(content)
                }
                Err(error) => {
                    self.pass_over(&bytes, &error);
                    None
                }
            };
        }
        None
    }

    fn numbers(&self, bytes: &Range<u64>) -> impl Iterator<Item = u32> {
        let pieces = self.places.pieces(self.toc(), bytes.clone());
        pieces.map(|piece| piece.number)
    }

    fn touch(&self, bytes: &Range<u64>) {
        let now = self.site.space.now();
        self.used.store(now, Ordering::Relaxed);
        self.numbers(bytes)
            .for_each(|number| self.chunks.touch(number, now));
    }

    /// Forgets content that somebody cut off. Content that cannot be read at the moment stays:
    /// descriptors or memory are short, or the disk has a temporary fault.
    fn pass_over(&self, bytes: &Range<u64>, error: &io::Error) {
        tracing::debug!(layer = self.name, %error, "data file not readable at the moment");
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.take_away(&self.numbers(bytes).collect::<Vec<_>>());
        }
    }

    fn try_read(&self, bytes: &Range<u64>, epoch: u64) -> io::Result<Bytes> {
        let files = self.open_files()?.ok_or(io::ErrorKind::NotFound)?;
        for number in self.numbers(bytes) {
            self.check(&files, number, epoch)?;
        }
        let mut content = vec![0; length(bytes)?];
        files.data.read_exact_at(&mut content, bytes.start)?;
        Ok(content.into())
    }

    /// Compares a chunk with its digest, unless this process has done so. One that differs is
    /// forgotten.
    fn check(&self, files: &Files, number: u32, epoch: u64) -> io::Result<()> {
        let presence = self.chunks.get(number);
        let Some(digest) = self.digest(number) else {
            return Ok(());
        };
        if presence.is_checked || presence.state == State::Absent {
            return Ok(());
        }
        let is_right = match self.hash(files, number) {
            Ok(found) => found == digest,
            // Somebody cut the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        if is_right {
            self.confirm(files, number, presence.state, epoch);
            return Ok(());
        }
        if self.epoch.load(Ordering::SeqCst) == epoch {
            tracing::warn!(layer = self.name, chunk = %digest, "chunk damaged on disk; it is fetched again");
            metrics().cache_damaged.inc();
            self.take_away(&[number]);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "content has another digest",
        ))
    }

    fn hash(&self, files: &Files, number: u32) -> io::Result<Digest> {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE];
        let Range { mut start, end } = self.place(number)?;
        while start < end {
            let length = usize::try_from(end - start).unwrap_or(PIECE).min(PIECE);
            files.data.read_exact_at(&mut piece[..length], start)?;
            hasher.update(&piece[..length]);
            start += length as u64;
        }
        Ok(hasher.into())
    }

    /// Notes that a chunk was compared with its digest. One that was doubtful is so no more.
    fn confirm(&self, files: &Files, number: u32, state: State, epoch: u64) {
        let _share = self.writes.read();
        if self.epoch.load(Ordering::SeqCst) != epoch {
            return;
        }
        if state != State::Doubtful {
            self.chunks.set_checked(number, state);
            return;
        }
        self.set(number, Presence::checked(State::Written));
        if let Err(error) = files.map.set(number, 1, State::Written) {
            tracing::debug!(layer = self.name, %error, "map not written");
        }
        self.is_dirty.store(true, Ordering::SeqCst);
    }

    fn place(&self, number: u32) -> io::Result<Range<u64>> {
        let place = self.places.of_chunk(self.toc(), number);
        place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn set(&self, number: u32, presence: Presence) -> State {
        let bytes = self.toc().chunk(number).map_or(0, |chunk| chunk.size);
        self.chunks.set(number, presence, bytes)
    }

    /// Stores a chunk whose content was compared with its digest. Returns whether it is here now:
    /// nothing is stored for a layer that no mount needs.
    ///
    /// # Errors
    /// If it cannot be written at the moment.
    pub(super) fn put(&self, number: u32, content: &[u8]) -> io::Result<bool> {
        let place = self.place(number)?;
        self.write(number, |files| {
            files.data.write_all_at(content, place.start)?;
            Ok(Some(Presence::checked(State::Written)))
        })
    }

    /// Copies a chunk that another layer holds. Returns whether it is here now. The copy is
    /// compared with its digest before it is read.
    pub(super) fn copy(&self, number: u32, other: &Self, theirs: u32) -> io::Result<bool> {
        let epoch = other.epoch.load(Ordering::SeqCst);
        let Some(from) = other.open_files()?.filter(|_| other.chunks.holds(theirs)) else {
            return Ok(false);
        };
        other.check(&from, theirs, epoch)?;
        let (source, place) = (other.place(theirs)?, self.place(number)?);
        self.write(number, |files| {
            copy(&from, source.start, files, place)?;
            let is_whole = other.epoch.load(Ordering::SeqCst) == epoch;
            Ok(is_whole.then_some(Presence::unchecked(State::Written)))
        })
    }

    /// Runs `write` to write a chunk's content, if it is not here, and notes it in the map. Returns
    /// whether it is here now.
    fn write(
        &self,
        number: u32,
        write: impl FnOnce(&Files) -> io::Result<Option<Presence>>,
    ) -> io::Result<bool> {
        let Some(files) = self.writable()? else {
            return Ok(false);
        };
        let is_gone = {
            let _share = self.writes.read();
            if self.chunks.holds(number) {
                return Ok(true);
            }
            if !self.uses(&files) {
                return Ok(false);
            }
            step();
            match write(&files) {
                Err(error) => Err(error),
                Ok(None) => return Ok(false),
                Ok(Some(presence)) => {
                    step();
                    self.note(&files, number, presence);
                    Ok(!self.measure(&files))
                }
            }
        };
        match is_gone {
            Err(error) => {
                self.give_back(&files, number);
                Err(error)
            }
            Ok(true) => {
                self.reset(files.inode);
                Ok(false)
            }
            Ok(false) => Ok(true),
        }
    }

    /// Notes a chunk that was written.
    fn note(&self, files: &Files, number: u32, presence: Presence) {
        self.chunks.touch(number, self.site.space.tick());
        self.set(number, presence);
        if let Err(error) = files.map.set(number, 1, State::Written) {
            tracing::debug!(layer = self.name, %error, "map not written");
        }
        self.is_dirty.store(true, Ordering::SeqCst);
    }

    /// Frees the blocks of a chunk that was written in part, on a full disk.
    fn give_back(&self, files: &Files, number: u32) {
        let _alone = self.writes.write();
        if !self.chunks.holds(number) {
            let ranges = punch::ranges(self.toc(), &self.places, &self.chunks, &[number]);
            ranges.iter().for_each(|range| punch_hole(files, range));
        }
        self.measure(files);
    }

    /// Takes chunks away and frees their blocks, unless the content is held in its place.
    pub(super) fn evict(&self, numbers: &[u32]) -> usize {
        self.take_away(numbers)
    }

    /// Takes the chunks away that are here, and returns their number. `numbers` are sorted.
    fn take_away(&self, numbers: &[u32]) -> usize {
        let Ok(Some(files)) = self.open_files() else {
            return 0;
        };
        let _alone = self.writes.write();
        if self.is_held() || !self.uses(&files) {
            return 0;
        }
        let mut is_durable = false;
        let mut gone = Vec::new();
        for &number in numbers {
            let before = self.set(number, Presence::ABSENT);
            is_durable |= before == State::Durable;
            if before != State::Absent {
                gone.push(number);
            }
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        match self.erase(&files, &gone, is_durable) {
            Ok(()) => {}
            // The content stays where it is. A later start finds it.
            Err(error) => tracing::debug!(layer = self.name, %error, "map not written"),
        }
        self.measure(&files);
        gone.len()
    }

    /// Clears the chunks in the map, then frees their blocks. After a power cut the map on disk must
    /// not call a hole durable.
    fn erase(&self, files: &Files, gone: &[u32], is_durable: bool) -> io::Result<()> {
        for run in gone.chunk_by(|a, b| a + 1 == *b) {
            step();
            files.map.set(
                run[0],
                u32::try_from(run.len()).unwrap_or(u32::MAX),
                State::Absent,
            )?;
        }
        if is_durable {
            step();
            files.map.sync()?;
        }
        for range in punch::ranges(self.toc(), &self.places, &self.chunks, gone) {
            step();
            punch_hole(files, &range);
        }
        Ok(())
    }

    /// Makes the chunks durable that were written.
    ///
    /// # Errors
    /// If the disk may have lost some of them: all are compared with their digest again before they
    /// are read. Or if the map cannot be written.
    pub(super) fn sync(&self) -> io::Result<()> {
        if !self.is_dirty.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let outcome = self.try_sync();
        if outcome.is_err() {
            self.is_dirty.store(true, Ordering::SeqCst);
        }
        outcome
    }

    fn try_sync(&self) -> io::Result<()> {
        let Some(files) = self.open_files()?.filter(|files| files.is_writable) else {
            return Ok(());
        };
        let epoch = self.epoch.load(Ordering::SeqCst);
        let written = self.chunks.with_state(State::Written);
        step();
        files
            .data
            .sync_data()
            .inspect_err(|_| self.chunks.forget_checks())?;
        {
            let _alone = self.writes.write();
            // A chunk that was taken away and written again is not synced.
            if self.epoch.load(Ordering::SeqCst) != epoch || !self.uses(&files) {
                self.is_dirty.store(true, Ordering::SeqCst);
                return Ok(());
            }
            for run in written.chunk_by(|a, b| a + 1 == *b) {
                step();
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                files.map.set(run[0], count, State::Durable)?;
                for &number in run {
                    let is_checked = self.chunks.get(number).is_checked;
                    let state = State::Durable;
                    self.set(number, Presence { state, is_checked });
                }
            }
        }
        step();
        files.map.sync()
    }

    /// Deletes the files, and stores nothing until [`Self::revive`].
    pub(super) fn discard(&self) -> io::Result<()> {
        let _alone = self.writes.write();
        let mut access = self.access.lock();
        *access = Access::Discarded;
        self.is_loaded.store(true, Ordering::SeqCst);
        self.forget_all();
        step();
        self.site.remove()
    }

    /// Stores content again.
    pub(super) fn revive(&self) {
        let mut access = self.access.lock();
        if matches!(*access, Access::Discarded) {
            *access = Access::None;
        }
    }

    /// Closes the files until they are needed.
    pub(super) fn close(&self) {
        let mut access = self.access.lock();
        if let Access::Open(files) = &*access {
            *access = Access::Closed(files.inode);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(*self.access.lock(), Access::Open(_))
    }

    /// Returns the numbers of the chunks that are here, each with the time of its last use.
    pub(super) fn held_with_use(&self) -> impl Iterator<Item = (u32, u32)> {
        self.chunks.held_with_use()
    }

    /// Whether these files are still those of the layer.
    fn uses(&self, files: &Files) -> bool {
        match &*self.access.lock() {
            Access::Open(open) => open.inode == files.inode,
            Access::Closed(inode) => *inode == files.inode,
            Access::Unread(_) | Access::None | Access::Discarded => false,
        }
    }

    /// Reads the map, if that has not been possible yet.
    fn load(&self) {
        if self.is_loaded.load(Ordering::SeqCst) {
            return;
        }
        let mut access = self.access.lock();
        let Access::Unread(due) = *access else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        *access = match self.site.open() {
            Ok(found) => self.loaded(found),
            Err(error) => {
                tracing::debug!(layer = self.name, %error, "data file not opened");
                Access::Unread(now + AGAIN)
            }
        };
        let is_loaded = !matches!(*access, Access::Unread(_));
        self.is_loaded.store(is_loaded, Ordering::SeqCst);
    }

    fn loaded(&self, found: Found) -> Access {
        match found {
            Found::Nothing => Access::None,
            Found::Damaged(reason) => {
                tracing::warn!(
                    layer = self.name,
                    reason,
                    "data file dropped; its content is fetched again"
                );
                if let Err(error) = self.site.remove() {
                    tracing::debug!(layer = self.name, %error, "data file not deleted");
                }
                self.site.space.set(&self.name, Usage::default());
                Access::None
            }
            Found::Files(files, states) => {
                for (number, state) in (0..).zip(states) {
                    if state != State::Absent && !self.is_hole(number) {
                        self.set(number, Presence::unchecked(state));
                        self.is_dirty
                            .fetch_or(state == State::Written, Ordering::SeqCst);
                    }
                }
                self.measure(&files);
                self.free_leftovers(&files);
                Access::Open(Arc::new(files))
            }
        }
    }

    /// Frees blocks of chunks that were being written when a process was killed.
    fn free_leftovers(&self, files: &Files) {
        let explained = self.chunks.held_bytes() + self.chunks.held() * super::places::BLOCK;
        if self.usage().bytes < explained + u64::from(self.chunks.len()) + MAX_LEFTOVER {
            return;
        }
        let absent: Vec<u32> = (0..self.chunks.len())
            .filter(|number| !self.chunks.holds(*number))
            .collect();
        let ranges = punch::ranges(self.toc(), &self.places, &self.chunks, &absent);
        ranges.iter().for_each(|range| punch_hole(files, range));
        self.measure(files);
    }

    /// Returns the open files. `None` if there are none.
    fn open_files(&self) -> io::Result<Option<Arc<Files>>> {
        let inode = {
            let mut access = self.access.lock();
            let inode = match &*access {
                Access::Open(files) => return Ok(Some(Arc::clone(files))),
                Access::Closed(inode) => *inode,
                Access::Unread(_) => return Err(io::ErrorKind::NotConnected.into()),
                Access::None | Access::Discarded => return Ok(None),
            };
            if let Found::Files(files, _) = self.site.open()?
                && files.inode == inode
            {
                let files = Arc::new(files);
                *access = Access::Open(Arc::clone(&files));
                return Ok(Some(files));
            }
            inode
        };
        self.reset(inode);
        Ok(None)
    }

    /// Returns the files for writing. Creates them if there are none. `None` if nothing is stored.
    fn writable(&self) -> io::Result<Option<Arc<Files>>> {
        self.load();
        if let Some(files) = self.open_files()? {
            if files.is_writable {
                return Ok(Some(files));
            }
            // The disk may be writable again.
            self.close();
            let files = self.open_files()?;
            return match files {
                Some(files) if files.is_writable => Ok(Some(files)),
                _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            };
        }
        let mut access = self.access.lock();
        match &*access {
            Access::None => {}
            Access::Open(files) => return Ok(Some(Arc::clone(files))),
            Access::Discarded => return Ok(None),
            Access::Unread(_) | Access::Closed(_) => return Err(io::ErrorKind::WouldBlock.into()),
        }
        let files = Arc::new(self.site.create()?);
        self.measure(&files);
        *access = Access::Open(Arc::clone(&files));
        Ok(Some(files))
    }

    /// Notes what the files take on disk. Returns false if they were deleted by somebody else.
    fn measure(&self, files: &Files) -> bool {
        match files.usage() {
            Ok(Some(usage)) => self.site.space.set(&self.name, usage),
            Ok(None) => return false,
            Err(error) => tracing::debug!(layer = self.name, %error, "data file not measured"),
        }
        true
    }

    /// Begins with nothing, because the data file with this inode was deleted by somebody else.
    fn reset(&self, inode: u64) {
        let _alone = self.writes.write();
        let mut access = self.access.lock();
        let is_current = match &*access {
            Access::Open(files) => files.inode == inode,
            Access::Closed(known) => *known == inode,
            Access::Unread(_) | Access::None | Access::Discarded => false,
        };
        if is_current {
            tracing::warn!(
                layer = self.name,
                "data file is gone; its content is fetched again"
            );
            *access = Access::None;
            self.forget_all();
        }
    }

    fn forget_all(&self) {
        for number in 0..self.chunks.len() {
            self.set(number, Presence::ABSENT);
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.site.space.set(&self.name, Usage::default());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

fn length(bytes: &Range<u64>) -> io::Result<usize> {
    usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)
}

/// Frees blocks. Content that cannot be freed is overwritten later.
fn punch_hole(files: &Files, range: &Range<u64>) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let freed = fallocate(&files.data, flags, range.start, range.end - range.start);
    if let Err(error) = freed {
        tracing::debug!(%error, "blocks not freed");
    }
}

/// Copies a chunk from another data file. The kernel shares the blocks where the file system can.
fn copy(from: &Files, start: u64, to: &Files, place: Range<u64>) -> io::Result<()> {
    let (mut source, mut target) = (start, place.start);
    while target < place.end {
        let left = usize::try_from(place.end - target).unwrap_or(usize::MAX);
        match copy_file_range(
            &from.data,
            Some(&mut source),
            &to.data,
            Some(&mut target),
            left,
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // Not between these file systems.
            Err(_) => return copy_by_hand(from, source, to, target..place.end),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &Files, mut source: u64, to: &Files, place: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut target = place.start;
    while target < place.end {
        let length = usize::try_from(place.end - target)
            .unwrap_or(PIECE)
            .min(PIECE);
        from.data.read_exact_at(&mut piece[..length], source)?;
        to.data.write_all_at(&piece[..length], target)?;
        (source, target) = (source + length as u64, target + length as u64);
    }
    Ok(())
}
