//! The data files of all layers, within their limits.
//!
//! ```text
//! <root>/cache/<layer>.data   the content of a layer's chunks, each at its place; sparse
//! <root>/cache/<layer>.map    which chunks are there
//! ```
//! The name of a layer is the digest of its blob with the beginning of its TOC's digest. A chunk
//! that another layer holds is copied. Chunks that could not be written are kept in memory for a
//! while.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use estargz::{Digest, Toc};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::eviction::oldest;
use super::files::{is_durable, make_folder, remove};
use super::index::{Index, Location};
use super::layer_data::LayerData;
use super::mapped::MappedFiles;
use super::places::TooLarge;
use super::space::{FreeSpace, Space, Usage};
use crate::agent::layer::tree::Tree;
use crate::telemetry::limit::LineLimit;
use crate::telemetry::metrics::metrics;

/// Most layers whose files are open at the same time: two descriptors each, a quarter of the 1024
/// that a process has by default.
const MAX_OPEN: usize = 128;
/// Rounds of one eviction: the blocks that a chunk frees are known only afterwards.
const MAX_ROUNDS: usize = 8;

/// The limits of a store.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files, as the file system counts them.
    pub bytes: u64,
    /// Bytes of the file system that are left free. If `None`: 1 GiB, or a tenth of a small file
    /// system.
    pub min_free: Option<u64>,
    /// Bytes of memory for chunks that could not be written.
    pub memory: u64,
}

/// The data files of a node. Every call blocks, on the disk at most.
#[derive(Debug)]
pub struct DataStore {
    folder: PathBuf,
    space: Arc<Space>,
    index: Index,
    layers: RwLock<Layers>,
    memory: moka::sync::Cache<Digest, Bytes>,
    tables: MappedFiles,
    /// Held by the one eviction at a time.
    eviction: Mutex<()>,
    /// Layers that are held in their place, and of which content is to be evicted.
    wanted: Mutex<HashSet<String>>,
    has_wanted: Notify,
}

/// The content of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUsage {
    /// Chunks of the layers in use.
    pub chunks: u64,
    /// As the file system counts them.
    pub bytes: u64,
    #[serde(default)]
    pub inodes: u64,
}

/// The layers in use.
#[derive(Debug, Default)]
struct Layers {
    by_name: HashMap<String, Weak<LayerData>>,
    by_number: HashMap<u32, Weak<LayerData>>,
    next: u32,
}

impl DataStore {
    /// Opens the store in `folder`. Drops the chunks of earlier versions there.
    ///
    /// # Errors
    /// If the directory cannot be created or read.
    pub fn open(folder: &Path, limits: Limits) -> io::Result<Self> {
        make_folder(folder)?;
        let space = Space::new(folder, limits.bytes, limits.min_free);
        let mut earlier = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match (entry.file_type()?.is_dir(), layer_of(&entry.path())) {
                (true, _) => earlier.push(entry.path()),
                (false, Some(name)) => {
                    let usage = space.of(&name) + Usage::of(&entry.metadata()?);
                    space.set(&name, usage);
                }
                (false, None) => {}
            }
        }
        drop_earlier(earlier);
        let weight = |_: &Digest, content: &Bytes| u32::try_from(content.len()).unwrap_or(u32::MAX);
        let memory = moka::sync::Cache::builder()
            .max_capacity(limits.memory)
            .weigher(weight)
            .build();
        Ok(Self {
            folder: folder.to_owned(),
            space: Arc::new(space),
            index: Index::default(),
            layers: RwLock::default(),
            memory,
            tables: MappedFiles::new(folder),
            eviction: Mutex::default(),
            wanted: Mutex::default(),
            has_wanted: Notify::new(),
        })
    }

    /// Waits until content is to be evicted that is held in its place, and returns the layers. They
    /// should be released, and the limits kept then. Cancel safe.
    pub async fn wanted(&self) -> Vec<Arc<LayerData>> {
        loop {
            let names = std::mem::take(&mut *self.wanted.lock());
            let layers: Vec<_> = names.iter().filter_map(|name| self.in_use(name)).collect();
            if !layers.is_empty() {
                return layers;
            }
            self.has_wanted.notified().await;
        }
    }

    /// Returns the data file of a layer that is in use.
    pub fn in_use(&self, name: &str) -> Option<Arc<LayerData>> {
        self.layers.read().by_name.get(name).and_then(Weak::upgrade)
    }

    /// Moves the tables of a TOC out of memory, into a file that is mapped, if that is worth it.
    pub fn map(&self, mut toc: Toc) -> Toc {
        if let Some(tables) = self.tables.copy(toc.tables()) {
            toc.move_tables(tables);
        }
        toc
    }

    /// Gives back the memory of the tables of all layers, which is read again when it is needed.
    pub fn release_tables(&self) {
        self.tables.release();
    }

    /// Returns the data file of a layer, one for all its mounts.
    ///
    /// # Errors
    /// If the layer has no room in one file.
    pub fn layer(&self, name: &str, tree: Arc<Tree>) -> Result<Arc<LayerData>, TooLarge> {
        let mut layers = self.layers.write();
        if let Some(known) = layers.by_name.get(name).and_then(Weak::upgrade) {
            return Ok(known);
        }
        layers.by_name.retain(|_, data| data.strong_count() > 0);
        layers.by_number.retain(|_, data| data.strong_count() > 0);
        let number = layers.next;
        layers.next = number.wrapping_add(1);
        let data = LayerData::open(&self.folder, name, number, tree, &self.space, &self.tables)?;
        let data = Arc::new(data);
        layers
            .by_name
            .insert(name.to_owned(), Arc::downgrade(&data));
        layers.by_number.insert(number, Arc::downgrade(&data));
        drop(layers);
        for (number, _) in data.held_with_use() {
            self.note(&data, number);
        }
        Ok(data)
    }

    fn note(&self, data: &LayerData, number: u32) {
        if let Some(digest) = data.digest(number) {
            let layer = data.number();
            self.index.insert(
                &digest,
                Location {
                    layer,
                    chunk: number,
                },
            );
        }
    }

    fn all(&self) -> Vec<Arc<LayerData>> {
        let layers = self.layers.read();
        layers.by_name.values().filter_map(Weak::upgrade).collect()
    }

    /// Reads a part of a chunk, if it is on this node.
    pub fn read_chunk(
        &self,
        data: &LayerData,
        number: u32,
        part: std::ops::Range<u64>,
    ) -> Option<Bytes> {
        if let Some(bytes) = data.read_chunk(number, part.clone()) {
            self.close_some();
            return Some(bytes);
        }
        if let Some(content) = data
            .digest(number)
            .and_then(|digest| self.memory.get(&digest))
        {
            return slice(&content, &part);
        }
        if self.adopt(data, number) {
            return data.read_chunk(number, part);
        }
        None
    }

    /// Copies a chunk that another layer holds. Returns whether the chunk is in the data file now.
    pub fn adopt(&self, data: &LayerData, number: u32) -> bool {
        if data.holds(number) {
            return true;
        }
        let Some((other, theirs)) = data
            .digest(number)
            .and_then(|digest| self.elsewhere(&digest))
        else {
            return false;
        };
        match data.copy(number, &other, theirs) {
            Ok(is_here) => {
                if is_here {
                    self.keep_limits();
                }
                is_here
            }
            Err(error) => {
                tracing::debug!(layer = data.name(), %error, "chunk not copied from another layer");
                false
            }
        }
    }

    /// Returns a layer that holds a chunk with this digest, and the chunk's number there.
    fn elsewhere(&self, digest: &Digest) -> Option<(Arc<LayerData>, u32)> {
        let location = self.index.get(digest)?;
        let layer = self
            .layers
            .read()
            .by_number
            .get(&location.layer)
            .and_then(Weak::upgrade);
        let found = layer.filter(|layer| layer.digest(location.chunk) == Some(*digest));
        match found {
            Some(layer) if layer.holds(location.chunk) => Some((layer, location.chunk)),
            Some(_) => {
                self.index.remove(digest, location);
                None
            }
            None => None,
        }
    }

    /// Whether a chunk is on this node, in whatever layer. One that was not compared with its digest
    /// yet counts.
    pub fn has(&self, data: &LayerData, number: u32) -> bool {
        let Some(digest) = data.digest(number) else {
            return true;
        };
        data.holds(number) || self.memory.contains_key(&digest) || self.elsewhere(&digest).is_some()
    }

    /// Stores a chunk whose content was compared with its digest.
    pub fn put(&self, data: &LayerData, number: u32, content: &Bytes) {
        if self.space.limit() < content.len() as u64 {
            return self.remember(data, number, content);
        }
        let stored = data.put(number, content).or_else(|error| {
            metrics().cache_write_failures.inc();
            if error.kind() == io::ErrorKind::StorageFull {
                self.evict(2 * content.len() as u64);
                return data.put(number, content);
            }
            Err(error)
        });
        match stored {
            Ok(true) => {
                self.note(data, number);
                self.keep_limits();
                self.close_some();
            }
            Ok(false) => {}
            Err(error) => {
                static LINES: LineLimit = LineLimit::new();
                if let Some(dropped) = LINES.pass() {
                    tracing::warn!(layer = data.name(), %error, dropped, "chunk not written to disk");
                }
                self.remember(data, number, content);
            }
        }
    }

    fn remember(&self, data: &LayerData, number: u32, content: &Bytes) {
        if let Some(digest) = data.digest(number) {
            self.memory.insert(digest, content.clone());
            // Without this call, moka shrinks to its capacity only after some hundred chunks,
            // however large they are.
            self.memory.run_pending_tasks();
        }
    }

    /// Evicts the least recently used chunks until the limits are kept.
    pub fn keep_limits(&self) {
        let excess = self.space.excess();
        if excess > 0 {
            self.evict(excess);
        }
    }

    /// Frees at least `bytes` bytes, if as many can be freed.
    fn evict(&self, bytes: u64) {
        let _one_at_a_time = self.eviction.lock();
        let mut wanted = bytes;
        let mut layers = self.all();
        let mut rounds = 0;
        while rounds < MAX_ROUNDS {
            let before = self.space.total().bytes;
            let (mut evicted, mut kept) = (0, HashSet::new());
            for (layer, numbers) in oldest(&layers, wanted) {
                match self.evict_from(&layers[layer], &numbers) {
                    Some(count) => evicted += count,
                    None => drop(kept.insert(layers[layer].number())),
                }
            }
            metrics().cache_evictions.inc_by(evicted as u64);
            let freed = before.saturating_sub(self.space.total().bytes);
            wanted = wanted.saturating_sub(freed);
            if wanted == 0 {
                return;
            }
            if !kept.is_empty() {
                // Others must give more. There are fewer of them each time.
                layers.retain(|data| !kept.contains(&data.number()));
                continue;
            }
            // A file system without holes frees nothing.
            if evicted == 0 || freed == 0 {
                return;
            }
            rounds += 1;
        }
    }

    /// Evicts chunks of a layer, and returns their number. `None` if the kernel reads the layer by
    /// itself.
    fn evict_from(&self, data: &LayerData, numbers: &[u32]) -> Option<usize> {
        if data.is_held() {
            // Not released here: a mount asks the agent, whose threads may all be at this place.
            self.wanted.lock().insert(data.name().to_owned());
            self.has_wanted.notify_one();
            return None;
        }
        data.evict(numbers).or_else(|| {
            data.mark_used();
            None
        })
    }

    /// Closes the files of the layers that were not used for the longest time.
    fn close_some(&self) {
        let open = self.space.open_files().load(Ordering::Relaxed);
        if open <= MAX_OPEN {
            return;
        }
        let mut layers = self.all();
        layers.retain(|data| data.is_open());
        layers.sort_by_key(|data| data.used());
        let surplus = layers.len().saturating_sub(MAX_OPEN);
        // Some more, so that this is seldom.
        layers
            .iter()
            .take(surplus + MAX_OPEN / 8)
            .for_each(|data| data.close());
    }

    /// Whether a layer is on disk as a whole, and durable, according to its map. Reads only the map.
    pub fn is_durable(&self, name: &str, toc: &Digest) -> bool {
        let [data, map] = ["data", "map"].map(|end| self.folder.join(format!("{name}.{end}")));
        is_durable(&data, &map, toc)
    }

    /// Returns the path of a layer's data file, which may not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.data"))
    }

    /// Deletes the files of all layers but these.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn retain(&self, names: &HashSet<String>) -> io::Result<()> {
        let mut gone = HashSet::new();
        for entry in fs::read_dir(&self.folder)? {
            gone.extend(layer_of(&entry?.path()).filter(|name| !names.contains(name)));
        }
        for name in gone {
            tracing::info!(layer = name, "data file without a mounted layer deleted");
            self.discard(&name);
        }
        Ok(())
    }

    /// Deletes the files of a layer. Nothing is stored for it until [`Self::revive`].
    pub fn discard(&self, name: &str) {
        let removed = match self.in_use(name) {
            Some(data) => {
                self.index.remove_layer(data.number());
                data.discard()
            }
            None => remove(&self.folder.join(format!("{name}.map")))
                .and_then(|()| remove(&self.folder.join(format!("{name}.data"))))
                .inspect(|()| self.space.set(name, Usage::default())),
        };
        if let Err(error) = removed {
            tracing::warn!(layer = name, %error, "data file not deleted; the next start does it");
        }
    }

    /// Stores the content of a layer again, although its files were deleted.
    pub fn revive(&self, data: &LayerData) {
        data.revive();
    }

    /// Makes everything durable that was written.
    pub fn sync(&self) {
        for data in self.all() {
            if let Err(error) = data.sync() {
                static LINES: LineLimit = LineLimit::new();
                if let Some(dropped) = LINES.pass() {
                    tracing::warn!(layer = data.name(), %error, dropped, "data file not synced");
                }
            }
        }
    }

    pub fn usage(&self) -> CacheUsage {
        let Usage { bytes, inodes } = self.space.total();
        let chunks = self.all().iter().map(|data| data.chunk_counts().1).sum();
        CacheUsage {
            chunks,
            bytes,
            inodes,
        }
    }

    /// Returns the most bytes that are stored on disk.
    pub fn limit(&self) -> u64 {
        self.space.limit()
    }

    /// Returns the free space of the file system. `None` if it is not known at the moment.
    pub fn free(&self) -> Option<FreeSpace> {
        self.space.free()
    }

    /// Whether prefetched data can be stored without an eviction. A fifth of the limit is left for
    /// data that is read.
    pub fn has_room(&self) -> bool {
        self.space.has_room()
    }
}

/// Returns the layer that a file belongs to.
fn layer_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stems = [".data", ".map", ".map.new"]
        .iter()
        .find_map(|end| name.strip_suffix(end));
    stems.map(str::to_owned)
}

/// Deletes the directories of earlier versions, which had a file for each chunk. Does not wait.
fn drop_earlier(folders: Vec<PathBuf>) {
    if folders.is_empty() {
        return;
    }
    tracing::info!("chunks of an earlier version dropped");
    std::thread::spawn(move || {
        for folder in folders {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "chunks of an earlier version not deleted");
            }
        }
    });
}

/// Returns the bytes at `part`, or `None` if the content ends before.
fn slice(content: &Bytes, part: &std::ops::Range<u64>) -> Option<Bytes> {
    let start = usize::try_from(part.start).ok()?;
    let end = usize::try_from(part.end).ok()?;
    (start <= end && end <= content.len()).then(|| content.slice(start..end))
}
