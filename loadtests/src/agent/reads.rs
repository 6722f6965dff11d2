//! Walks and reads files that are already on the node, with cold and with warm kernel caches.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::{Arguments, EROFS, LAZY, REFERENCE};
use crate::figures::{Spread, float};
use crate::images::Image;
use crate::invariants::SameBytes;
use crate::node::{Mounted, Node, Snapshotter, UNPACKED};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::support::image::Random;

const CONTESTANTS: [&str; 4] = [UNPACKED, LAZY, EROFS, REFERENCE];
/// A file of many chunks, and (`PIECES`) many files of one chunk each, the largest size that the
/// kernel reads by itself.
const LARGE: (&str, usize) = ("large", 256 << 20);
const PIECES: (usize, usize) = (64, 4 << 20);
const BLOCK: u64 = 4096;
/// Random reads of one run. The cold count is an eighth of the pages, so that few pages repeat. The
/// warm count is enough for a second.
const COLD_READS: u64 = 8192;
const WARM_READS: u64 = 400_000;

/// The work on a tree.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Reads every directory and stats every file.
    Walk,
    /// Reads every file from start to end.
    Sequential,
    /// Reads random blocks of the files in `directory`, on `threads` threads.
    Random {
        directory: &'static str,
        threads: u64,
    },
}

/// One kind of work on one image, cold or warm, and the seconds that each contestant took.
struct Contest {
    name: &'static str,
    image: &'static str,
    work: Work,
    is_cold: bool,
    seconds: [Vec<f64>; CONTESTANTS.len()],
}

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let place = place.path();
    let images = [Image::get("python")?, noise()?];
    let upstreams: Vec<String> = images
        .iter()
        .map(|image| format!("{}=oci:{}", image.name, image.dir.display()))
        .collect();
    let server = Server::start(&arguments.starlift, place, &upstreams)?;
    let agent = |name, driver| {
        let settings = [("BACKGROUND", "off"), ("DRIVER", driver)];
        Snapshotter::starlift(name, &arguments.starlift, place, &settings)
    };
    let node = Node::start(
        place,
        vec![
            agent(LAZY, "fuse")?,
            agent(EROFS, "erofs")?,
            Snapshotter::reference(REFERENCE, place)?,
        ],
    )?;
    let trees = images
        .each_ref()
        .map(|image| (image.name.as_str(), mount(&node, &server, &image.name)));
    report.note(
        "reads: every chunk is in the lazy snapshotters' caches, and the overlay is that of a second container; cold: \
         mounted anew after `drop_caches`; warm: done once before. Walk and all files are of `python`; random blocks of 4 KiB are of a file of 256 MiB (64 chunks) \
         and of 64 files of 4 MiB (a chunk each)",
    );
    let mut found = Vec::new();
    for (name, trees) in trees {
        found.push((name, trees?));
    }
    let mut contests = contests();
    for _ in 0..arguments.rounds {
        for contest in &mut contests {
            let (_, trees) = found
                .iter()
                .find(|(name, _)| *name == contest.image)
                .context("no such image")?;
            for (tree, seconds) in trees.iter().zip(&mut contest.seconds) {
                seconds.push(contest.work.time(tree, contest.is_cold)?);
            }
        }
    }
    report.table(
        "Files that are on the node. × is the contestant's time over ext4's: 1 is as fast, more is slower",
        &["", "", "ext4 + overlayfs", "lazy ×", "EROFS ×", "reference ×"],
        contests.iter().map(Contest::row).collect(),
    );
    for is_cold in [true, false] {
        let state = if is_cold { "cold" } else { "warm" };
        report.plot(Plot::Bars(Bars {
            title: format!(
                "Times ext4's time, {state} (less is better; whisker: best and worst round)"
            ),
            unit: "times",
            bars: contests
                .iter()
                .filter(|contest| contest.is_cold == is_cold)
                .flat_map(Contest::bars)
                .collect(),
            marks: vec![(1.0, "ext4".to_owned())],
        }));
    }
    Ok(())
}

fn noise() -> anyhow::Result<Image> {
    let pieces = (0..PIECES.0).map(|number| (format!("pieces/{number}"), PIECES.1));
    let large = (format!("large/{}", LARGE.0), LARGE.1);
    Image::of_noise("noise", &pieces.chain([large]).collect::<Vec<_>>())
}

/// Pulls the image on every contestant, reads it whole in one container's overlay, and returns that
/// of a second container: by then the layers are complete.
fn mount(node: &Node, server: &Server, name: &str) -> anyhow::Result<Vec<Mounted>> {
    let address = server.address;
    server::converted(&format!("http://{address}/v2/{name}/image/manifests/1"))?;
    let mut same = SameBytes::default();
    let mount = |contestant: &&str| {
        let image = format!("{address}/{name}/image:1");
        let first = node.pull_and_mount(&image, contestant, &format!("{name}-first"))?;
        same.note(name, &digest(&first.target)?)?;
        node.mount_again(&first, contestant, name)
    };
    CONTESTANTS.iter().map(mount).collect()
}

fn contests() -> Vec<Contest> {
    let both = |name, image, work| {
        [true, false].map(|is_cold| Contest {
            name,
            image,
            work,
            is_cold,
            seconds: Default::default(),
        })
    };
    let random = |directory, threads| Work::Random { directory, threads };
    [
        both("walk", "python", Work::Walk),
        both("all files", "python", Work::Sequential),
        both("large file, 1 thread", "noise", random("large", 1)),
        both("large file, 4 threads", "noise", random("large", 4)),
        both("4 MiB files, 1 thread", "noise", random("pieces", 1)),
        both("4 MiB files, 4 threads", "noise", random("pieces", 4)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Work {
    /// Returns the seconds that the work takes. Preparations that make the caches cold or warm do
    /// not count.
    fn time(self, tree: &Mounted, is_cold: bool) -> anyhow::Result<f64> {
        tree.cool()?;
        let target = &tree.target;
        let is_warm = !is_cold;
        match self {
            Self::Walk => {
                let walk = || timed(|| files(target).map(drop));
                if is_warm {
                    walk()?;
                }
                walk()
            }
            Self::Sequential => {
                let read = || timed(|| files(target)?.iter().try_for_each(|file| read_whole(file)));
                if is_warm {
                    read()?;
                }
                read()
            }
            Self::Random { directory, threads } => {
                let paths = files(&target.join(directory))?;
                if is_warm {
                    paths.iter().try_for_each(|path| read_whole(path))?;
                }
                let opened: Vec<File> = paths.iter().map(File::open).collect::<Result<_, _>>()?;
                let reads = if is_cold { COLD_READS } else { WARM_READS };
                timed(|| read_at_random(&opened, threads, reads))
            }
        }
    }

    /// Formats the figures of runs that took `seconds`.
    fn show(self, is_cold: bool, seconds: &Spread) -> String {
        let reads = float(if is_cold { COLD_READS } else { WARM_READS });
        let (factor, unit) = match self {
            Self::Walk => (1e3, "ms"),
            Self::Sequential => (1.0, "s"),
            Self::Random { .. } => (1e6 / reads, "µs/read"),
        };
        let Spread {
            median,
            least,
            most,
        } = *seconds;
        let scaled = Spread {
            median: median * factor,
            least: least * factor,
            most: most * factor,
        };
        format!("{} {unit}", scaled.show(2))
    }
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Returns the regular files of a tree in directory order, and stats each one.
pub(super) fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut directories, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn read_whole(path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.size();
    let (mut buffer, mut read) = (vec![0; 128 << 10], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => read += count as u64,
        }
    }
    ensure!(read == size, "{}: {read} bytes of {size}", path.display());
    Ok(())
}

fn read_at_random(files: &[File], threads: u64, reads: u64) -> anyhow::Result<()> {
    let sizes: Vec<u64> = files
        .iter()
        .map(|file| Ok(file.metadata()?.size()))
        .collect::<std::io::Result<_>>()?;
    let read = |thread: u64| -> anyhow::Result<()> {
        let (mut random, mut buffer) = (Random::new(thread), vec![0; usize::try_from(BLOCK)?]);
        for _ in 0..reads / threads {
            let index = usize::try_from(random.below(files.len() as u64))?;
            let block = random.below(sizes[index] / BLOCK);
            files[index].read_exact_at(&mut buffer, block * BLOCK)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (1..=threads)
            .map(|thread| scope.spawn(move || read(thread)))
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a reader panicked"))
        })
    })
}

/// Returns a digest of every file's path and content.
fn digest(root: &Path) -> anyhow::Result<String> {
    let mut paths = files(root)?;
    paths.sort();
    let mut hash = Sha256::new();
    for path in paths {
        hash.update(path.strip_prefix(root)?.as_os_str().as_encoded_bytes());
        hash.update(fs::read(path)?);
    }
    Ok(hex::encode(hash.finalize()))
}

impl Contest {
    fn spreads(&self) -> [Spread; CONTESTANTS.len()] {
        self.seconds
            .each_ref()
            .map(|seconds| Spread::of(seconds.iter().copied()))
    }

    fn row(&self) -> Vec<String> {
        let [unpacked, others @ ..] = self.spreads();
        let times = |other: &Spread| format!("{:.2}", other.median / unpacked.median);
        let state = if self.is_cold { "cold" } else { "warm" };
        let first = [
            self.name.to_owned(),
            state.to_owned(),
            self.work.show(self.is_cold, &unpacked),
        ];
        first.into_iter().chain(others.iter().map(times)).collect()
    }

    fn bars(&self) -> Vec<Bar> {
        let [unpacked, others @ ..] = self.spreads();
        let bar = |(group, other): (usize, &Spread)| Bar {
            label: format!(
                "{}, {}",
                self.name,
                CONTESTANTS[group + 1]
                    .trim_start_matches("lazy-")
                    .replace('-', " ")
            ),
            value: other.median / unpacked.median,
            least: other.least / unpacked.median,
            most: other.most / unpacked.median,
            group,
        };
        others.iter().enumerate().map(bar).collect()
    }
}
