//! Pieces of a bucket's objects on this machine's disk, because lazy clients of a fleet ask for the
//! same ranges again and again.
//!
//! ```text
//! <folder>/<ab>/<algorithm>-<hex>-<number>   one piece, then the SHA-256 of it
//! ```
//! Only ranges pass through it. Whole objects come from the bucket, where they are compared with
//! their digests. Nothing here is needed after a crash, so that nothing is synced: a piece that is
//! torn or rotten is noticed at its first read and fetched again.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::config::RangeCacheConfig;
use super::error::Error;
use super::open_files::OpenFiles;
use crate::flight::Flight;
use crate::oci::Digest;
use crate::telemetry::limit::LineLimit;
use crate::telemetry::metrics;

/// Bytes of a piece: a request to a bucket costs as much time as so many bytes take.
pub(super) const PIECE: u64 = 256 << 10;
/// Bytes of the checksum behind a piece.
const CHECKSUM: usize = 32;
/// Most pieces whose files stay open: the hottest 128 MiB, or more if many are the ends of objects.
const MAX_OPEN: u64 = 512;
/// The cache's unit of weight. A file takes whole blocks of the disk.
const UNIT: u64 = 4096;

/// One piece of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PieceId {
    pub(super) digest: Digest,
    pub(super) number: u64,
}

/// A piece on disk.
#[derive(Debug)]
struct Piece {
    /// Bytes without the checksum.
    length: u64,
    /// Whether it was compared with its checksum since the start.
    is_checked: AtomicBool,
}

/// The pieces on disk. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct RangeCache {
    folder: Arc<PathBuf>,
    pieces: Cache<PieceId, Arc<Piece>>,
    /// The files of pieces that were compared with their checksums.
    open: OpenFiles<PieceId>,
    fetching: Flight<PieceId, Option<Bytes>>,
    failures: Arc<LineLimit>,
}

impl PieceId {
    /// The numbers of the pieces with bytes of `range`.
    pub(super) fn numbers(range: &Range<u64>) -> Range<u64> {
        range.start / PIECE..range.end.div_ceil(PIECE)
    }

    /// The bytes of a piece in an object of `size` bytes.
    pub(super) fn range(&self, size: u64) -> Range<u64> {
        let start = self.number * PIECE;
        start..size.min(start + PIECE)
    }

    fn path(&self, folder: &Path) -> PathBuf {
        let (algorithm, hex) = (self.digest.algorithm().name(), self.digest.hex());
        let place = hex.get(..2).unwrap_or_default();
        folder
            .join(place)
            .join(format!("{algorithm}-{hex}-{}", self.number))
    }

    fn of_path(path: &Path) -> Option<Self> {
        let (digest, number) = path.file_name()?.to_str()?.rsplit_once('-')?;
        let (algorithm, hex) = digest.split_once('-')?;
        Some(Self {
            digest: format!("{algorithm}:{hex}").parse().ok()?,
            number: number.parse().ok()?,
        })
    }
}

impl RangeCache {
    /// Opens the cache. Blocking: lists its folder.
    ///
    /// # Errors
    /// If the folder cannot be created or listed.
    pub(super) fn open(config: &RangeCacheConfig) -> Result<Self, Error> {
        let unusable = |source| Error::Folder {
            what: format!("opening the cache {}", config.folder.display()),
            source,
        };
        let folder = Arc::new(config.folder.clone());
        let mut builder = DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&*folder);
        created.map_err(unusable)?;
        let open = OpenFiles::<PieceId>::new(MAX_OPEN);
        let (own, files) = (Arc::clone(&folder), open.clone());
        let delete = move |id: Arc<PieceId>, _: Arc<Piece>, cause: RemovalCause| {
            files.close(&id);
            if cause != RemovalCause::Replaced {
                let _gone_or_found_at_the_next_start = fs::remove_file(id.path(&own));
            }
        };
        let weigh = |_: &PieceId, piece: &Arc<Piece>| {
            let bytes = piece.length + CHECKSUM as u64;
            u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
        };
        let pieces = Cache::builder()
            .max_capacity(config.max_size.as_u64() / UNIT)
            .weigher(weigh)
            .eviction_listener(delete)
            .build();
        let this = Self {
            folder,
            pieces,
            open,
            fetching: Flight::default(),
            failures: Arc::default(),
        };
        this.load().map_err(unusable)?;
        Ok(this)
    }

    /// Finds the pieces that earlier processes left, and deletes everything else.
    fn load(&self) -> io::Result<()> {
        for place in fs::read_dir(&*self.folder)? {
            let place = place?.path();
            if !place.is_dir() {
                continue;
            }
            for file in fs::read_dir(place)? {
                let file = file?;
                let length = file.metadata()?.len().checked_sub(CHECKSUM as u64);
                match (PieceId::of_path(&file.path()), length) {
                    (Some(id), Some(length @ 1..=PIECE)) => self.insert(id, length, false),
                    _ => fs::remove_file(file.path())?,
                }
            }
        }
        self.pieces.run_pending_tasks();
        Ok(())
    }

    fn insert(&self, id: PieceId, length: u64, is_checked: bool) {
        let piece = Piece {
            length,
            is_checked: is_checked.into(),
        };
        self.pieces.insert(id, Arc::new(piece));
    }

    /// Fills `buffer` with an object's bytes at `offset`, and returns whether it is full. It is not
    /// unless all of them are in the page cache, in files that are open. Never waits.
    pub(super) fn read_cached(
        &self,
        digest: &Digest,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> bool {
        while !buffer.is_empty() {
            let id = PieceId {
                digest: digest.clone(),
                number: offset / PIECE,
            };
            let within = offset % PIECE;
            let length = usize::try_from(PIECE - within).unwrap_or(usize::MAX);
            let (part, rest) = buffer.split_at_mut(length.min(buffer.len()));
            // A use for the choice of what goes, too.
            let (Some(_), Some(file)) = (self.pieces.get(&id), self.open.get(&id)) else {
                return false;
            };
            if !file.read_cached(part, within) {
                return false;
            }
            count("hit");
            offset += part.len() as u64;
            buffer = rest;
        }
        true
    }

    /// Returns the bytes `within` a piece, from disk or else from `fetch`, which fetches the whole
    /// piece, once for all callers. `None` if it is not here and `fetch` returns nothing.
    pub(super) async fn part<F>(
        &self,
        id: PieceId,
        within: Range<usize>,
        fetch: impl FnOnce() -> F + Send,
    ) -> Option<Bytes>
    where
        F: Future<Output = Option<Bytes>> + Send + 'static,
    {
        if let Some(piece) = self.pieces.get(&id) {
            let (own, id, within) = (self.clone(), id.clone(), within.clone());
            let read = tokio::task::spawn_blocking(move || own.read(&id, &piece, within));
            if let Some(bytes) = read.await.ok().flatten() {
                count("hit");
                return Some(bytes);
            }
        }
        count("miss");
        let own = self.clone();
        let joined = self.fetching.join(id.clone(), move || {
            let fetched = fetch();
            async move {
                let bytes = fetched.await?;
                let content = bytes.clone();
                let keep = move || own.keep(id, &content);
                let _kept_or_logged = tokio::task::spawn_blocking(keep).await;
                Some(bytes)
            }
        });
        let bytes = joined.await.flatten()?;
        is_within(&within, bytes.len()).then(|| bytes.slice(within))
    }

    /// Reads the bytes `within` a piece. Blocking. A piece that differs from the written one is
    /// forgotten.
    fn read(&self, id: &PieceId, piece: &Piece, within: Range<usize>) -> Option<Bytes> {
        let read = File::open(id.path(&self.folder)).and_then(|file| {
            let bytes = if piece.is_checked.load(Ordering::Relaxed) {
                let mut bytes = vec![0; within.len()];
                file.read_exact_at(&mut bytes, within.start as u64)?;
                Some(bytes.into())
            } else {
                let whole = piece.whole(&file)?;
                whole
                    .filter(|whole| is_within(&within, whole.len()))
                    .map(|whole| whole.slice(within))
            };
            Ok((file, bytes))
        });
        match read {
            Ok((file, Some(bytes))) => {
                piece.is_checked.store(true, Ordering::Relaxed);
                self.open.keep(id.clone(), file);
                return Some(bytes);
            }
            Ok((_, None)) => {
                tracing::warn!(digest = %id.digest, number = id.number, "a piece in store.cache is damaged; it is fetched again");
            }
            Err(error) => self.log(&error, "a piece in store.cache cannot be read"),
        }
        self.pieces.invalidate(id);
        None
    }

    /// Writes a piece. Blocking. A piece that cannot be written is fetched again when it is wanted.
    fn keep(&self, id: PieceId, bytes: &Bytes) {
        match self.write(&id, bytes) {
            Ok(()) => self.insert(id, bytes.len() as u64, true),
            Err(error) => self.log(&error, "a piece cannot be written to store.cache"),
        }
    }

    fn write(&self, id: &PieceId, bytes: &Bytes) -> io::Result<()> {
        let path = id.path(&self.folder);
        let place = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(place)?;
        let mut file = NamedTempFile::new_in(place)?;
        file.write_all(bytes)?;
        file.write_all(&Sha256::digest(bytes))?;
        file.persist(&path)?;
        Ok(())
    }

    fn log(&self, error: &io::Error, message: &str) {
        if let Some(dropped) = self.failures.pass() {
            tracing::warn!(folder = %self.folder.display(), %error, dropped, "{message}");
        }
    }

    /// Forgets the pieces of an object of `size` bytes.
    pub(super) fn forget(&self, digest: &Digest, size: u64) {
        for number in PieceId::numbers(&(0..size)) {
            let digest = digest.clone();
            self.pieces.invalidate(&PieceId { digest, number });
        }
    }
}

impl Piece {
    /// Reads the whole piece. `None` if it differs from the written one.
    fn whole(&self, file: &File) -> io::Result<Option<Bytes>> {
        let length = usize::try_from(self.length).unwrap_or_default();
        let mut bytes = vec![0; length + CHECKSUM];
        file.read_exact_at(&mut bytes, 0)?;
        let mut bytes = Bytes::from(bytes);
        let checksum = bytes.split_off(length);
        Ok((Sha256::digest(&bytes).as_slice() == checksum).then_some(bytes))
    }
}

fn is_within(range: &Range<usize>, length: usize) -> bool {
    range.start <= range.end && range.end <= length
}

fn count(outcome: &'static str) {
    metrics()
        .store_cache
        .get_or_create(&[("outcome", outcome)])
        .inc();
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;

    fn cache(folder: &Path, max_size: ByteSize) -> RangeCache {
        RangeCache::open(&RangeCacheConfig {
            folder: folder.to_owned(),
            max_size,
        })
        .unwrap()
    }

    fn id(number: u64) -> PieceId {
        PieceId {
            digest: Digest::sha256_of(b"object"),
            number,
        }
    }

    fn content(number: u64) -> Bytes {
        vec![u8::try_from(number % 251).unwrap(); usize::try_from(PIECE).unwrap()].into()
    }

    async fn fetched(cache: &RangeCache, number: u64) -> bool {
        let is_fetched = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_fetched);
        let fetch = move || async move {
            seen.store(true, Ordering::Relaxed);
            Some(content(number))
        };
        let whole = 0..content(number).len();
        let read = cache.part(id(number), whole, fetch).await;
        assert_eq!(read, Some(content(number)));
        is_fetched.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_piece_is_fetched_once_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || cache(folder.path(), ByteSize::mib(10));
        let first = open();
        assert!(fetched(&first, 0).await);
        assert!(!fetched(&first, 0).await);
        assert!(!fetched(&open(), 0).await);
        first.forget(&id(0).digest, 1);
        assert!(fetched(&first, 0).await);
        assert_eq!(first.part(id(7), 0..1, || async { None }).await, None);
    }

    #[tokio::test]
    async fn a_damaged_or_torn_piece_is_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = || cache(folder.path(), ByteSize::mib(10));
        assert!(fetched(&open(), 3).await);
        let path = id(3).path(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(fetched(&open(), 3).await, "a flipped bit");
        bytes.truncate(5000);
        fs::write(&path, &bytes).unwrap();
        assert!(fetched(&open(), 3).await, "a torn write");
        fs::write(folder.path().join("ab"), "").unwrap();
        fs::create_dir(folder.path().join("cd")).unwrap();
        fs::write(folder.path().join("cd/foreign"), "").unwrap();
        drop(open());
        assert!(!folder.path().join("cd/foreign").exists());
    }

    #[tokio::test]
    async fn hot_pieces_are_read_without_waiting_as_long_as_they_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), ByteSize::mib(10));
        let digest = id(0).digest;
        let mut buffer = [0; 20];
        for number in [1, 2] {
            fetched(&cache, number).await;
            assert!(
                !cache.read_cached(&digest, &mut buffer, number * PIECE),
                "not open yet"
            );
            let part = cache.part(id(number), 5..9, || async { None }).await;
            assert_eq!(part, Some(content(number).slice(5..9)));
        }
        assert!(cache.read_cached(&digest, &mut buffer, 2 * PIECE - 10));
        assert_eq!(buffer, [[1; 10], [2; 10]].concat()[..]);
        assert!(
            !cache.read_cached(&digest, &mut buffer, 3 * PIECE - 10),
            "the end is not here"
        );
        cache.forget(&digest, 2 * PIECE);
        assert!(!cache.read_cached(&digest, &mut buffer, PIECE));
    }

    #[tokio::test]
    async fn the_files_stay_within_the_size() {
        let folder = tempfile::tempdir().unwrap();
        let small = cache(folder.path(), ByteSize::mib(2));
        for number in 0..40 {
            fetched(&small, number).await;
        }
        small.pieces.run_pending_tasks();
        let files = fs::read_dir(id(0).path(folder.path()).parent().unwrap()).unwrap();
        let bytes: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes > 0 && bytes <= 2 << 20, "{bytes}");
    }

    #[tokio::test]
    async fn an_unusable_folder_costs_only_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let broken = cache(folder.path(), ByteSize::mib(2));
        let place = id(0).path(folder.path());
        fs::write(place.parent().unwrap(), "in the way").unwrap();
        assert!(fetched(&broken, 0).await);
        assert!(fetched(&broken, 0).await);
    }
}
