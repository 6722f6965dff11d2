//! `src/agent/layer/data/` and `src/agent/layer/fetch/pending.rs`: chunks of a layer are read and fetched while
//! others of them are evicted from its data file, and while a kernel reads the file.

use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use estargz::pool::Pool;
use estargz::toc::Limits as TocLimits;
use estargz::write::{Options, write};
use estargz::{Footer, UnverifiedToc, footer};
use models::agent::layer::data::{DataStore, LayerData, Limits};
use models::agent::layer::fetch::{FetchError, Fetcher, Registry};
use models::agent::layer::tree::Tree;
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

/// Orders tried of each model with each scheduler. Files make a step slow.
const ORDERS: usize = 300;
/// As large as a block of the file system.
const CHUNK: usize = 4096;
const CHUNKS: u32 = 3;

/// The TOC of a layer, and the content of its chunks.
static LAYER: LazyLock<(Arc<Tree>, Vec<Bytes>)> = LazyLock::new(layer);

fn layer() -> (Arc<Tree>, Vec<Bytes>) {
    let chunks: Vec<Bytes> = (1..=u8::try_from(CHUNKS).unwrap())
        .map(|number| Bytes::from(vec![number; CHUNK]))
        .collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size((CHUNK * chunks.len()) as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", chunks.concat().as_slice())
        .unwrap();
    let (tar, mut blob) = (tar.into_inner().unwrap(), Vec::new());
    let options = Options::default().with_chunk_size(u32::try_from(CHUNK).unwrap());
    let pool = Pool::new(NonZeroUsize::MIN, 1 << 20);
    let written = write(tar.as_slice(), &mut blob, &options, &pool).unwrap();
    let slice = |range: std::ops::Range<u64>| {
        &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let size = blob.len() as u64;
    let footer = Footer::parse(slice(footer::tail_range(size)), size).unwrap();
    let section = slice(footer.toc_range().unwrap());
    let toc = UnverifiedToc::parse(section, &footer, &TocLimits::default()).unwrap();
    let toc = toc.verify(&written.toc_digest).unwrap();
    (Arc::new(Tree::new(toc)), chunks)
}

/// A store with room for the map and about two chunks.
struct World {
    store: Arc<DataStore>,
    data: Arc<LayerData>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(3 * CHUNK as u64)
    }

    fn with(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            bytes,
            min_free: Some(0),
            memory: 0,
        };
        let store = Arc::new(DataStore::open(folder.path(), limits).unwrap());
        let data = store.layer("layer", Arc::clone(&LAYER.0)).unwrap();
        Self {
            store,
            data,
            _folder: folder,
        }
    }

    fn fetcher(&self, lost: usize) -> Fetcher {
        let registry = Registry::new(LAYER.1.clone(), lost);
        Fetcher::new(Arc::clone(&self.store), Arc::clone(&self.data), registry)
    }
}

fn content(number: u32) -> &'static Bytes {
    &LAYER.1[number as usize]
}

/// A read that came when the request's other readers had just left is tried again.
async fn patiently(fetcher: &Fetcher, number: u32) -> Result<Bytes, FetchError> {
    loop {
        match fetcher.read(number).await {
            Err(FetchError::Unwanted) => yield_now().await,
            outcome => return outcome,
        }
    }
}

/// Tries many orders of the steps of `model`.
fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    // The product's files need more than the scheduler's default.
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new(ORDERS);
    Runner::new(random, config.clone()).run(model.clone());
    Runner::new(PctScheduler::new(3, ORDERS), config).run(model);
}

/// Reads all chunks with readers that begin at different ones. Returns the failures.
fn read_all(fetcher: &Fetcher) -> usize {
    block_on(async {
        let readers = (0..CHUNKS).map(|first| {
            // This reader leaves at once; its request may find that nobody waits for the chunk.
            fetcher.leave((first + 1) % CHUNKS);
            let fetcher = fetcher.clone();
            spawn(async move {
                let mut failures = 0;
                for number in (first..first + CHUNKS).map(|number| number % CHUNKS) {
                    match patiently(&fetcher, number).await {
                        Ok(bytes) => assert!(bytes == content(number), "chunk {number}"),
                        Err(_aborted) => failures += 1,
                    }
                }
                failures
            })
        });
        let mut failures = 0;
        for reader in readers.collect::<Vec<_>>() {
            failures += reader.await.unwrap();
        }
        failures
    })
}

#[test]
fn every_reader_gets_the_content_while_chunks_are_evicted() {
    let model = || {
        let world = World::new();
        let fetcher = world.fetcher(0);
        let evictor = thread::spawn({
            let store = Arc::clone(&world.store);
            move || {
                for _ in 0..2 {
                    store.keep_limits();
                    thread::yield_now();
                }
            }
        });
        assert_eq!(read_all(&fetcher), 0);
        evictor.join().unwrap();
        for number in 0..CHUNKS {
            assert!(
                fetcher.is_idle(number),
                "chunk {number} is left in the table"
            );
        }
        world.store.keep_limits();
        let usage = world.store.usage();
        assert!(usage.bytes <= world.store.limit(), "{usage:?}");
    };
    check(model);
}

#[test]
fn without_an_eviction_each_chunk_is_fetched_once() {
    check(|| {
        let fetcher = World::with(1 << 30).fetcher(0);
        assert_eq!(read_all(&fetcher), 0);
        assert_eq!(fetcher.requests(), CHUNKS as usize);
    });
}

#[test]
fn a_request_that_is_lost_costs_its_readers_an_error_and_nobody_waits_for_ever() {
    check(|| {
        let fetcher = World::new().fetcher(2);
        // Each lost request is shared by at most all readers.
        assert!(read_all(&fetcher) <= 2 * CHUNKS as usize);
        assert_eq!(
            read_all(&fetcher),
            0,
            "the next request finds the table empty"
        );
    });
}

#[test]
fn a_hold_keeps_the_content_for_a_reader_of_the_file() {
    check(|| {
        let world = World::new();
        world.store.put(&world.data, 0, content(0));
        let kernel = thread::spawn({
            let data = Arc::clone(&world.data);
            move || {
                let hold = data.hold();
                if !data.holds(0) {
                    return;
                }
                let toc = data.tree().toc();
                let place = data.places().of_chunk(toc, 0).unwrap();
                let file = std::fs::File::open(data.path()).unwrap();
                for _ in 0..3 {
                    let mut bytes = vec![0; CHUNK];
                    file.read_exact_at(&mut bytes, place.start).unwrap();
                    assert!(bytes == *content(0), "a hole is read as content");
                    thread::yield_now();
                }
                drop(hold);
            }
        });
        for number in 1..CHUNKS {
            world.store.put(&world.data, number, content(number));
        }
        world.store.keep_limits();
        kernel.join().unwrap();
    });
}
