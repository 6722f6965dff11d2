//! Data files of generated layers: right bytes or none, whatever happens to the files.

use std::collections::HashSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use estargz::pool::Pool;
use estargz::toc::Limits as TocLimits;
use estargz::write::{Options, write};
use estargz::{Footer, Toc, UnverifiedToc, footer};
use tar::{Builder, Header};

use super::crash::steps::is_killed_after;
use super::*;
use crate::agent::layer::tree::Tree;

/// Chunks of 64 KiB.
const CHUNK: u32 = 64 << 10;

/// Returns a layer of files with these names and sizes.
pub(in crate::agent) fn tree(files: &[(&str, usize)]) -> Arc<Tree> {
    tree_with(files, CHUNK)
}

pub(super) fn tree_with(files: &[(&str, usize)], chunk_size: u32) -> Arc<Tree> {
    let toc = toc(files, chunk_size);
    Arc::new(Tree::new(toc, "state", Vec::new()).unwrap())
}

fn toc(files: &[(&str, usize)], chunk_size: u32) -> Toc {
    let mut tar = Builder::new(Vec::new());
    for (name, size) in files {
        let mut header = Header::new_ustar();
        header.set_size(*size as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content(name, *size).as_slice())
            .unwrap();
    }
    let mut blob = Vec::new();
    let options = Options::default().with_chunk_size(chunk_size);
    let pool = Pool::new(NonZeroUsize::MIN, 64 << 20);
    let written = write(
        tar.into_inner().unwrap().as_slice(),
        &mut blob,
        &options,
        &pool,
    )
    .unwrap();
    let size = blob.len() as u64;
    let slice = |range: std::ops::Range<u64>| {
        &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let footer = Footer::parse(slice(footer::tail_range(size)), size).unwrap();
    let section = slice(footer.toc_range().unwrap());
    let toc = UnverifiedToc::parse(section, &footer, &TocLimits::default()).unwrap();
    toc.verify(&written.toc_digest).unwrap()
}

/// Returns bytes that differ between names and places.
fn content(name: &str, size: usize) -> Vec<u8> {
    let seed = name
        .bytes()
        .fold(1_u64, |seed, byte| seed * 131 + u64::from(byte));
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33).to_le_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

/// The chunks of the files, and that of the landmark which the writer adds.
const ALL: usize = 9;

/// A folder for data files, and the layer `a`.
struct World {
    folder: tempfile::TempDir,
    tree: Arc<Tree>,
    chunks: Vec<Bytes>,
}

const FILES: [(&str, usize); 3] = [
    ("one", 5 * CHUNK as usize),
    ("two", 100),
    ("three", 100_000),
];

impl World {
    fn new() -> Self {
        let tree = tree(&FILES);
        Self {
            folder: tempfile::tempdir().unwrap(),
            chunks: chunks(&tree),
            tree,
        }
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn store(&self, bytes: u64) -> DataStore {
        let limits = Limits {
            bytes,
            min_free: Some(0),
            memory: 1 << 20,
        };
        DataStore::open(&self.folder(), limits).unwrap()
    }

    fn open(&self) -> (DataStore, Arc<LayerData>) {
        let store = self.store(1 << 30);
        let data = store.layer("a", Arc::clone(&self.tree)).unwrap();
        (store, data)
    }

    fn numbers(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.chunks.len()).unwrap()
    }

    /// Returns a store that holds all chunks on disk.
    fn full(&self) -> (DataStore, Arc<LayerData>) {
        let (store, data) = self.open();
        self.put(&store, &data, self.numbers());
        assert!(data.is_complete());
        (store, data)
    }

    fn put(&self, store: &DataStore, data: &LayerData, numbers: impl IntoIterator<Item = u32>) {
        numbers
            .into_iter()
            .for_each(|number| store.put(data, number, self.content(number)));
    }

    fn content(&self, number: u32) -> &Bytes {
        &self.chunks[number as usize]
    }

    /// Returns the numbers of the chunks that can be read. All bytes must be right.
    fn readable(&self, data: &LayerData) -> Vec<u32> {
        let is_read = |number: &u32| {
            let content = self.content(*number);
            let read = data.read_chunk(*number, 0..content.len() as u64);
            read.is_some_and(|read| {
                assert!(read == content, "chunk {number}");
                true
            })
        };
        self.numbers().filter(is_read).collect()
    }
}

/// Returns the content of all chunks of a layer.
fn chunks(tree: &Tree) -> Vec<Bytes> {
    let mut chunks = vec![Bytes::from_static(&[0xf]); tree.toc().chunk_count()];
    for (name, size) in FILES {
        let content = content(name, size);
        let node = tree.toc().lookup(name).unwrap();
        for (number, chunk) in node.chunk_numbers().zip(node.chunks()) {
            let start = usize::try_from(chunk.file_offset).unwrap();
            let end = start + usize::try_from(chunk.size).unwrap();
            chunks[number as usize] = Bytes::copy_from_slice(&content[start..end]);
        }
    }
    chunks
}

#[test]
fn chunks_are_read_in_part_together_and_again_after_a_restart() {
    let world = World::new();
    let (store, data) = world.open();
    assert!(!data.holds(0) && data.read_chunk(0, 0..10).is_none());
    assert_eq!(
        store.usage(),
        CacheUsage::default(),
        "no file before the first chunk"
    );
    world.put(&store, &data, [0, 1]);
    assert_eq!(
        data.read_chunk(0, 990..1000).unwrap(),
        world.content(0).slice(990..1000)
    );
    assert_eq!(
        data.read_chunk(0, 0..u64::from(CHUNK) + 1),
        None,
        "beyond the end"
    );
    let both = data.read(10..2 * u64::from(CHUNK) - 10).unwrap();
    let expected = content("one", 2 * CHUNK as usize);
    assert!(both == expected[10..expected.len() - 10]);
    assert_eq!(
        data.read(0..3 * u64::from(CHUNK)),
        None,
        "one of three is absent"
    );
    assert!(!data.is_complete());
    drop((store, data));
    let (store, data) = world.open();
    assert_eq!(world.readable(&data), [0, 1]);
    world.put(&store, &data, world.numbers());
    assert!(data.is_complete());
    let metadata = fs::metadata(data.path()).unwrap();
    assert_eq!(metadata.len(), data.places().size());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let node = world.tree.toc().lookup("two").unwrap();
    let place = usize::try_from(data.places().of_file(node).unwrap()).unwrap();
    assert!(fs::read(data.path()).unwrap()[place..place + 100] == content("two", 100));
}

#[test]
fn usage_is_what_the_file_system_counts() {
    let world = World::new();
    let (store, data) = world.full();
    let on_disk: u64 = ["a.data", "a.map"]
        .map(|name| fs::metadata(world.path(name)).unwrap().blocks() * 512)
        .iter()
        .sum();
    let expected = CacheUsage {
        chunks: ALL as u64,
        bytes: on_disk,
        inodes: 2,
    };
    assert_eq!(store.usage(), expected);
    assert_eq!(data.usage().bytes, on_disk);
    drop(data);
    assert_eq!(
        world.store(1 << 30).usage(),
        CacheUsage {
            chunks: 0,
            ..expected
        }
    );
}

#[test]
fn damaged_content_is_noticed_at_the_first_use_and_forgotten() {
    let world = World::new();
    drop(world.full());
    let file = fs::OpenOptions::new()
        .write(true)
        .open(world.path("a.data"))
        .unwrap();
    file.write_all_at(b"damage", u64::from(CHUNK) + 100)
        .unwrap();
    let (store, data) = world.open();
    assert!(data.holds(1), "it counts until it is compared");
    assert_eq!(data.read_chunk(1, 0..1), None);
    assert!(!data.holds(1));
    assert_eq!(world.readable(&data), [0, 2, 3, 4, 5, 6, 7, 8]);
    world.put(&store, &data, [1]);
    assert_eq!(world.readable(&data).len(), ALL);
}

type Damage = fn(&World);

#[test]
fn files_that_do_not_fit_are_dropped() {
    let world = World::new();
    let cases: [(&str, Damage); 6] = [
        ("no map", |world| {
            fs::remove_file(world.path("a.map")).unwrap()
        }),
        ("no data", |world| {
            fs::remove_file(world.path("a.data")).unwrap()
        }),
        ("another data file", |world| {
            fs::copy(world.path("a.data"), world.path("b.data")).unwrap();
            fs::rename(world.path("b.data"), world.path("a.data")).unwrap();
        }),
        ("cut data", |world| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(world.path("a.data"))
                .unwrap();
            file.set_len(5000).unwrap();
        }),
        ("torn map", |world| {
            let map = fs::read(world.path("a.map")).unwrap();
            fs::write(world.path("a.map"), &map[..map.len() - 1]).unwrap();
        }),
        ("damaged map", |world| {
            let mut map = fs::read(world.path("a.map")).unwrap();
            map[20] ^= 1;
            fs::write(world.path("a.map"), &map).unwrap();
        }),
    ];
    for (case, damage) in cases {
        drop(world.full());
        damage(&world);
        let (store, data) = world.open();
        assert!(world.readable(&data).is_empty(), "{case}");
        world.put(&store, &data, [3]);
        assert_eq!(world.readable(&data), [3], "{case}");
        store.discard("a");
    }
}

#[test]
fn a_map_of_another_toc_is_dropped() {
    let world = World::new();
    drop(world.full());
    let store = world.store(1 << 30);
    let other = tree(&[
        ("one", 5 * CHUNK as usize),
        ("two", 101),
        ("three", 100_000),
    ]);
    let data = store.layer("a", other).unwrap();
    assert_eq!(data.chunk_counts(), (9, 0));
}

/// Runs `work` on a store that `prepare` made, kills it after every number of steps, and opens the
/// files again. Returns how many steps there are.
fn kill_at_every_step(
    prepare: impl Fn(&World) -> (DataStore, Arc<LayerData>),
    work: impl Fn(&World, &DataStore, &Arc<LayerData>),
    check: impl Fn(&World, &[u32]),
) -> u32 {
    for steps in 0.. {
        let world = World::new();
        let (store, data) = prepare(&world);
        let is_killed = is_killed_after(steps, || work(&world, &store, &data));
        drop((store, data));
        let (store, data) = world.open();
        check(&world, &world.readable(&data));
        world.put(&store, &data, world.numbers());
        assert_eq!(
            world.readable(&data).len(),
            ALL,
            "it can be completed after {steps} steps"
        );
        if !is_killed {
            return steps;
        }
    }
    unreachable!("work ends")
}

#[test]
fn a_writer_that_is_killed_at_any_step_leaves_right_bytes_or_none() {
    let put = |world: &World, store: &DataStore, data: &Arc<LayerData>| {
        world.put(store, data, [0, 5, 7]);
    };
    let steps = kill_at_every_step(World::open, put, |_, held| {
        assert!([0, 5, 7].starts_with(held), "{held:?}");
    });
    assert!(steps > 9, "{steps}");
}

#[test]
fn a_sync_that_is_killed_at_any_step_loses_nothing() {
    let sync = |_: &World, store: &DataStore, _: &Arc<LayerData>| store.sync();
    let steps = kill_at_every_step(World::full, sync, |_, held| assert_eq!(held.len(), ALL));
    assert!(steps >= 3, "{steps}");
}

#[test]
fn an_eviction_that_is_killed_at_any_step_leaves_right_bytes_or_none() {
    let durable = |world: &World| {
        let (store, data) = world.full();
        store.sync();
        (store, data)
    };
    let evict = |_: &World, _: &DataStore, data: &Arc<LayerData>| {
        assert_eq!(data.evict(&[1, 2, 4, 5, 6]), Some(5));
    };
    let steps = kill_at_every_step(durable, evict, |_, held| {
        assert!(
            [0, 3, 7, 8].iter().all(|number| held.contains(number)),
            "{held:?}"
        );
    });
    assert!(steps >= 5, "{steps}");
}

#[test]
fn a_removal_that_is_killed_at_any_step_leaves_right_bytes_or_none() {
    let discard = |_: &World, store: &DataStore, _: &Arc<LayerData>| store.discard("a");
    let steps = kill_at_every_step(World::full, discard, |_, held| {
        assert!(held.is_empty() || held.len() == ALL, "{held:?}");
    });
    assert!(steps >= 2, "{steps}");
}

/// Makes the map one of another boot, as a power cut does.
fn boot_again(world: &World) {
    let data = fs::metadata(world.path("a.data")).unwrap();
    let subject = map::Subject {
        chunks: 9,
        toc: world.tree.toc().digest(),
        inode: data.ino(),
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path("a.map"))
        .unwrap();
    let states = map::Map::new(file)
        .read(&subject, map::Boot::current())
        .unwrap()
        .unwrap()
        .0;
    let other = map::Boot::of_test([9; 16]);
    drop(map::Map::create(&world.path("a.map"), &subject, other, states.into_iter()).unwrap());
}

#[test]
fn a_power_cut_that_loses_content_is_noticed_and_synced_content_is_kept() {
    let world = World::new();
    let (store, data) = world.open();
    world.put(&store, &data, [0, 1]);
    store.sync();
    world.put(&store, &data, world.numbers());
    assert!(data.is_complete());
    drop((store, data));
    boot_again(&world);
    // The disk has the map, and of the content only the part that was synced.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(world.path("a.data"))
        .unwrap();
    let size = file.metadata().unwrap().len();
    file.set_len(2 * u64::from(CHUNK)).unwrap();
    file.set_len(size).unwrap();
    let (store, data) = world.open();
    assert!(!data.is_complete(), "nobody else may read it yet");
    assert_eq!(world.readable(&data), [0, 1]);
    assert_eq!(data.chunk_counts(), (9, 2));
    world.put(&store, &data, world.numbers());
    assert!(data.is_complete());
}

#[test]
fn doubtful_content_that_is_whole_is_kept_without_a_fetch() {
    let world = World::new();
    drop(world.full());
    boot_again(&world);
    let (store, data) = world.open();
    assert!(!data.is_complete());
    assert_eq!(world.readable(&data).len(), ALL);
    assert!(data.is_complete());
    store.sync();
    drop((store, data));
    boot_again(&world);
    let (_store, data) = world.open();
    assert!(data.is_complete(), "it was made durable");
}

#[test]
fn the_least_recently_used_are_evicted_and_their_blocks_freed() {
    let world = World::new();
    let store = world.store(5 * u64::from(CHUNK));
    let data = store.layer("a", Arc::clone(&world.tree)).unwrap();
    world.put(&store, &data, [0, 1, 2]);
    data.read_chunk(0, 0..1).unwrap();
    world.put(&store, &data, [3, 4]);
    assert_eq!(
        world.readable(&data),
        [0, 2, 3, 4],
        "the map takes a block too"
    );
    let usage = store.usage();
    assert!(
        usage.bytes <= store.limit() && usage.chunks == 4,
        "{usage:?}"
    );
    assert_eq!(usage.bytes, data.usage().bytes);
    drop((store, data));
    assert_eq!(world.readable(&world.open().1), [0, 2, 3, 4]);
}

#[test]
fn content_that_is_held_in_its_place_is_not_evicted() {
    let world = World::new();
    let (_store, data) = world.full();
    let hold = data.hold();
    assert_eq!(data.evict(&[0, 1]), None);
    assert!(data.is_complete());
    drop(hold);
    let reader = fs::File::open(data.path()).unwrap();
    assert_eq!(data.evict(&[0, 1]), None, "somebody else has it open");
    assert!(data.is_complete());
    drop(reader);
    assert_eq!(data.evict(&[0, 1]), Some(2));
}

#[tokio::test]
async fn held_content_is_evicted_once_it_is_released() {
    let world = World::new();
    let store = world.store(5 * u64::from(CHUNK));
    let data = store.layer("a", Arc::clone(&world.tree)).unwrap();
    world.put(&store, &data, [0, 1]);
    let hold = data.hold();
    let other = tree(&[("other", 5 * CHUNK as usize)]);
    let other = store.layer("b", other).unwrap();
    let size = CHUNK as usize;
    let all = content("other", 5 * size);
    let put = |number: u32| {
        let content = all[number as usize * size..][..size].to_vec();
        store.put(&other, number, &content.into());
    };
    (0..4).for_each(put);
    assert_eq!(data.chunk_counts().1, 2, "others went in its place");
    let wanted = store.wanted().await;
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].name(), "a");
    drop(hold);
    put(4);
    assert_eq!(world.readable(&data), [1], "the least recently used went");
}

#[test]
fn damaged_content_that_somebody_else_reads_keeps_its_blocks_until_it_is_written_again() {
    let world = World::new();
    drop(world.full());
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path("a.data"))
        .unwrap();
    file.write_all_at(b"damage", 100).unwrap();
    let (store, data) = world.open();
    let hold = data.hold();
    let blocks = file.metadata().unwrap().blocks();
    let mut next = Some(0);
    while let Some(from) = next {
        let checked = data.check_some(from, 1);
        assert!(checked.bytes <= u64::from(CHUNK));
        next = checked.next;
    }
    assert_eq!(data.missing(), [0]);
    assert!(!data.is_complete() && !data.is_checked());
    assert_eq!(file.metadata().unwrap().blocks(), blocks);
    world.put(&store, &data, [0]);
    assert!(data.is_complete() && data.is_checked());
    assert_eq!(world.readable(&data).len(), ALL);
    drop(hold);
}

#[test]
fn a_map_says_whether_a_layer_is_complete_and_durable() {
    let world = World::new();
    let (store, data) = world.full();
    let toc = world.tree.toc().digest();
    assert!(!store.is_durable("a", &toc), "not synced");
    store.sync();
    assert!(store.is_durable("a", &toc));
    assert!(!store.is_durable("a", &estargz::Digest::of(b"other")));
    assert!(!store.is_durable("b", &toc));
    data.evict(&[3]);
    assert!(!store.is_durable("a", &toc));
}

#[test]
fn chunks_of_another_layer_are_copied() {
    let world = World::new();
    let (store, first) = world.full();
    let more = [FILES[2], ("new", 10), FILES[0]];
    let second = store.layer("b", tree(&more)).unwrap();
    let (_, held) = second.chunk_counts();
    assert_eq!(held, 0);
    let all = 0..u32::try_from(second.tree().toc().chunk_count()).unwrap();
    let copied: Vec<u32> = all.filter(|number| store.adopt(&second, *number)).collect();
    assert_eq!(copied, [0, 1, 3, 4, 5, 6, 7, 8], "all but the new file");
    store.discard("a");
    drop(first);
    let node = second.tree().toc().lookup("one").unwrap();
    let place = second.places().of_file(node).unwrap();
    let read = second.read(place..place + node.size()).unwrap();
    assert!(read == content("one", 5 * CHUNK as usize));
}

#[test]
fn chunks_stay_in_memory_if_the_disk_cannot_be_written() {
    let world = World::new();
    let store = world.store(1 << 30);
    fs::remove_dir(world.folder()).unwrap();
    fs::write(world.folder(), "in the way").unwrap();
    let data = store.layer("a", Arc::clone(&world.tree)).unwrap();
    world.put(&store, &data, [0]);
    assert_eq!(store.usage(), CacheUsage::default());
    assert!(store.has(&data, 0));
    let read = store.read_chunk(&data, 0, 5..10).unwrap();
    assert_eq!(read, world.content(0).slice(5..10));
}

#[test]
fn files_that_cannot_be_opened_at_the_moment_are_not_damaged() {
    let world = World::new();
    let (_store, data) = world.full();
    data.close();
    let aside = world.folder.path().join("aside");
    fs::rename(world.folder(), &aside).unwrap();
    fs::write(world.folder(), "in the way").unwrap();
    assert_eq!(data.read_chunk(0, 0..1), None);
    assert_eq!(data.chunk_counts(), (9, 9));
    fs::remove_file(world.folder()).unwrap();
    fs::rename(&aside, world.folder()).unwrap();
    assert_eq!(world.readable(&data).len(), ALL);
}

#[test]
fn a_folder_that_is_removed_is_made_again() {
    let world = World::new();
    let (store, data) = world.full();
    fs::remove_dir_all(world.folder()).unwrap();
    assert_eq!(
        world.readable(&data).len(),
        ALL,
        "the open file is still there"
    );
    store.discard("other");
    data.close();
    assert!(world.readable(&data).is_empty());
    world.put(&store, &data, [0, 1]);
    assert_eq!(world.readable(&data), [0, 1]);
    fs::remove_dir_all(world.folder()).unwrap();
    world.put(&store, &data, [2]);
    world.put(&store, &data, [3]);
    assert_eq!(world.readable(&data), [3], "a write notices it");
    drop((store, data));
    assert_eq!(world.readable(&world.open().1), [3]);
}

#[test]
fn nothing_is_stored_for_a_layer_that_was_removed() {
    let world = World::new();
    let (store, data) = world.full();
    store.discard("a");
    world.put(&store, &data, [0]);
    assert!(world.readable(&data).is_empty());
    assert_eq!(fs::read_dir(world.folder()).unwrap().count(), 0);
    assert_eq!(store.usage(), CacheUsage::default());
    store.revive(&data);
    world.put(&store, &data, [0]);
    assert_eq!(world.readable(&data), [0]);
}

#[test]
fn files_of_unknown_layers_and_of_earlier_versions_are_deleted() {
    let world = World::new();
    drop(world.full());
    fs::create_dir_all(world.path("ab")).unwrap();
    fs::write(world.path("ab/cdef"), "a chunk of an earlier version").unwrap();
    let store = world.store(1 << 30);
    store.retain(&HashSet::from(["b".to_owned()])).unwrap();
    assert_eq!(store.usage(), CacheUsage::default());
    while fs::read_dir(world.folder()).unwrap().count() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn readers_during_evictions_get_right_bytes_or_none() {
    let world = World::new();
    let (store, data) = world.full();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        reads += world.readable(&data).len();
                    }
                    reads
                })
            })
            .collect();
        for round in 0..200 {
            data.evict(
                &world
                    .numbers()
                    .filter(|number| number % 3 != round % 3)
                    .collect::<Vec<_>>(),
            );
            world.put(&store, &data, world.numbers());
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        let reads: usize = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum();
        assert!(reads > 0);
    });
    assert_eq!(world.readable(&data).len(), ALL);
}

#[test]
fn few_files_are_open_however_many_layers_there_are() {
    let world = World::new();
    let store = world.store(1 << 30);
    let small = tree(&[("one", 10)]);
    let open = |number: u32| {
        store
            .layer(&number.to_string(), Arc::clone(&small))
            .unwrap()
    };
    let layers: Vec<_> = (0..300).map(open).collect();
    let content = Bytes::from(content("one", 10));
    for data in &layers {
        store.put(data, 0, &content);
    }
    let is_open = |data: &&Arc<LayerData>| data.is_open();
    assert!(layers.iter().filter(is_open).count() <= 128);
    for data in &layers {
        assert_eq!(store.read_chunk(data, 0, 0..10).unwrap(), content);
    }
    assert!(layers.iter().filter(is_open).count() <= 129);
}

/// Returns the bytes that the program has allocated.
fn allocated() -> usize {
    #[expect(
        unsafe_code,
        reason = "the system's allocator, which tests have, counts for C only"
    )]
    // SAFETY: it only counts.
    let found = unsafe { libc::mallinfo2() };
    found.uordblks + found.hblkhd
}

#[test]
fn a_layer_in_use_takes_few_bytes_of_memory_for_each_of_its_files() {
    const COUNT: usize = 5000;
    let names: Vec<String> = (0..COUNT).map(|number| format!("f-{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), 10)).collect();
    let world = World::new();
    let store = world.store(1 << 30);
    let toc = toc(&files, CHUNK);
    let parsed = usize::try_from(toc.memory_bytes()).unwrap();
    assert!(parsed > 88 * COUNT);
    let before = allocated();
    let tree = Arc::new(Tree::new(store.map(toc), "state", Vec::new()).unwrap());
    let data = store.layer("many", tree).unwrap();
    let grown = (allocated() + parsed).saturating_sub(before);
    assert!(grown < 8 * COUNT, "{grown} bytes for {COUNT} files");
    for name in ["f-0", "f-4999"] {
        let node = data.tree().toc().lookup(name).unwrap();
        let number = node.chunk_numbers().start;
        let content = Bytes::from(content(name, 10));
        store.put(&data, number, &content);
        store.release_tables();
        assert_eq!(data.read_chunk(number, 0..10), Some(content));
    }
}
