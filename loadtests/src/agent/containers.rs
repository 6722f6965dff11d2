//! Starts new containers of an image that is already on the node, like most starts in a fleet. Each
//! container has a new overlay: the kernel knows the layers' files, but overlayfs has seen none of
//! them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::{Arguments, BEFORE, EROFS, LAZY, REFERENCE};
use crate::figures::{Spread, float};
use crate::harness::drop_caches;
use crate::images::Image;
use crate::node::{Node, Snapshotter, UNPACKED};
use crate::plot::{Bar, Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::start::Workload;

/// The workloads of `start` that run here.
const WORKLOADS: [&str; 4] = ["python", "node", "jvm", "nginx"];
/// The image that is walked and read. `TREE_WITH_XATTR` is the same image with one more layer,
/// which has an extended attribute.
const TREE: &str = "python";
const TREE_WITH_XATTR: &str = "python-xattr";
/// Prints the elapsed nanoseconds, then a figure that must be the same for all contestants.
const WALK: &str = "find / -xdev -printf '%s\\n' | wc -l";
const READ_ALL: &str = "find / -xdev -type f -print0 | xargs -0 cat | wc -c";

/// The work of a new container.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Runs these commands and times them in the container.
    Script(&'static str),
    /// Runs the image's own command until it is ready. The time counts from the container's
    /// creation.
    Start,
}

/// One kind of work on one image, cold or warm.
#[derive(Debug)]
struct Contest {
    name: String,
    image: &'static str,
    work: Work,
    is_cold: bool,
    /// The times of each contestant.
    seconds: Vec<Vec<f64>>,
    /// The kernel's requests to the agent in the last round, by operation.
    requests: BTreeMap<String, u64>,
}

/// The node, the names of its images, and the workloads.
struct Stage {
    node: Node,
    contestants: Vec<&'static str>,
    references: BTreeMap<&'static str, String>,
    workloads: BTreeMap<&'static str, Workload>,
    _server: Server,
}

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let stage = Stage::set(arguments, place.path())?;
    report.note(
        "containers: each figure is of a container that is new, of an image that was pulled and read whole before; \
         warm: another container did the same before; cold: after `drop_caches`. Walk and all files are timed in the \
         container, starts from the creation of the container until it says or serves the word",
    );
    let mut contests = contests(stage.contestants.len());
    for _ in 0..arguments.rounds {
        for contest in &mut contests {
            contest.round(&stage)?;
        }
    }
    let mut head = vec!["", "", "overlayfs", "lazy ×"];
    head.extend(
        stage.contestants[2..]
            .iter()
            .map(|contestant| match *contestant {
                BEFORE => "before ×",
                EROFS => "EROFS ×",
                _ => "reference ×",
            }),
    );
    head.push("kernel requests to the agent");
    report.table(
        "A new container of an image that is on the node. × is the contestant's time over overlayfs's",
        &head,
        contests.iter().map(Contest::row).collect(),
    );
    for is_cold in [true, false] {
        let state = if is_cold { "cold" } else { "warm" };
        let of_state = contests.iter().filter(|contest| contest.is_cold == is_cold);
        report.plot(Plot::Bars(Bars {
            title: format!("A new container: times overlayfs's time, {state} (less is better)"),
            unit: "times",
            bars: of_state
                .flat_map(|contest| contest.bars(&stage.contestants))
                .collect(),
            marks: vec![(1.0, "overlayfs".to_owned())],
        }));
    }
    Ok(())
}

fn contests(contestants: usize) -> Vec<Contest> {
    let both = |name: &str, image, work| {
        [true, false].map(|is_cold| Contest {
            name: name.to_owned(),
            image,
            work,
            is_cold,
            seconds: vec![Vec::new(); contestants],
            requests: BTreeMap::new(),
        })
    };
    let mut contests = Vec::new();
    for (image, note) in [(TREE, ""), (TREE_WITH_XATTR, ", xattrs")] {
        contests.extend(both(&format!("walk{note}"), image, Work::Script(WALK)));
        contests.extend(both(
            &format!("all files{note}"),
            image,
            Work::Script(READ_ALL),
        ));
        contests.extend(both(&format!("{TREE}{note}"), image, Work::Start));
    }
    for image in WORKLOADS.into_iter().filter(|image| *image != TREE) {
        contests.extend(both(image, image, Work::Start));
    }
    contests
}

impl Stage {
    /// Pulls every image to every contestant and reads each whole.
    fn set(arguments: &Arguments, place: &std::path::Path) -> anyhow::Result<Self> {
        let mut workloads = BTreeMap::new();
        for name in WORKLOADS {
            workloads.insert(name, Workload::get(name)?);
        }
        let tree = &workloads[TREE];
        let with_xattr = Workload {
            image: tree.image.with_xattr(TREE_WITH_XATTR)?,
            ready: tree.ready,
        };
        workloads.insert(TREE_WITH_XATTR, with_xattr);
        let upstream = |image: &Image| format!("{}=oci:{}", image.name, image.dir.display());
        let upstreams: Vec<String> = workloads
            .values()
            .map(|workload| upstream(&workload.image))
            .collect();
        let server = Server::start(&arguments.starlift, place, &upstreams)?;
        let settings = [("BACKGROUND", "off"), ("RECORD", "0s")];
        let fuse: Vec<_> = settings.into_iter().chain([("DRIVER", "fuse")]).collect();
        let mut snapshotters = vec![Snapshotter::starlift(
            LAZY,
            &arguments.starlift,
            place,
            &fuse,
        )?];
        let erofs: Vec<_> = settings.into_iter().chain([("DRIVER", "erofs")]).collect();
        let starlift = &arguments.starlift;
        snapshotters.push(Snapshotter::starlift(EROFS, starlift, place, &erofs)?);
        if let Some(before) = &arguments.before {
            snapshotters.push(Snapshotter::starlift(BEFORE, before, place, &settings)?);
        }
        snapshotters.push(Snapshotter::reference(REFERENCE, place)?);
        let mut contestants = vec![UNPACKED];
        contestants.extend(snapshotters.iter().map(|snapshotter| snapshotter.name));
        let node = Node::start(place, snapshotters)?;
        let mut references = BTreeMap::new();
        for name in workloads.keys() {
            let path = format!("{name}/image");
            server::converted(&format!("http://{}/v2/{path}/manifests/1", server.address))?;
            let reference = format!("{}/{path}:1", server.address);
            for contestant in &contestants {
                node.pull(&reference, contestant)?;
                timed(&node, &reference, contestant, READ_ALL)?;
            }
            references.insert(*name, reference);
        }
        Ok(Self {
            node,
            contestants,
            references,
            workloads,
            _server: server,
        })
    }
}

impl Contest {
    /// Starts one container for each contestant.
    fn round(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let reference = &stage.references[self.image];
        let mut sums = Vec::new();
        for (contestant, seconds) in stage.contestants.iter().zip(&mut self.seconds) {
            if self.is_cold {
                drop_caches()?;
            } else {
                once(stage, self.image, reference, contestant, self.work)?;
            }
            let asked = stage.node.fuse_requests(contestant)?;
            let (took, sum) = once(stage, self.image, reference, contestant, self.work)?;
            seconds.push(took);
            sums.push(sum);
            if *contestant == LAZY {
                self.requests = stage
                    .node
                    .fuse_requests(contestant)?
                    .into_iter()
                    .map(|(operation, count)| {
                        let before = asked.get(&operation).copied().unwrap_or_default();
                        (operation, count - before)
                    })
                    .filter(|(_, count)| *count > 0)
                    .collect();
            }
        }
        ensure!(
            sums.windows(2).all(|pair| pair[0] == pair[1]),
            "{}: not the same files: {sums:?}",
            self.name
        );
        Ok(())
    }

    fn row(&self) -> Vec<String> {
        let spreads: Vec<Spread> = self
            .seconds
            .iter()
            .map(|seconds| Spread::of(seconds.iter().copied()))
            .collect();
        let mut row = vec![
            self.name.clone(),
            if self.is_cold { "cold" } else { "warm" }.to_owned(),
            format!("{} s", spreads[0].show(2)),
        ];
        let ratio = |spread: &Spread| {
            format!(
                "{:.2} ({} s)",
                spread.median / spreads[0].median,
                spread.show(2)
            )
        };
        row.extend(spreads[1..].iter().map(ratio));
        let mut requests = self.requests.values().sum::<u64>().to_string();
        let mut by_number: Vec<_> = self.requests.iter().collect();
        by_number.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (operation, count) in by_number.iter().take(4) {
            let _infallible = write!(requests, ", {operation} {count}");
        }
        row.push(requests);
        row
    }

    fn bars(&self, contestants: &[&'static str]) -> Vec<Bar> {
        let base = Spread::of(self.seconds[0].iter().copied()).median;
        let bar = |(group, (contestant, seconds)): (usize, (&&str, &Vec<f64>))| {
            let Spread {
                median,
                least,
                most,
            } = Spread::of(seconds.iter().map(|seconds| seconds / base));
            Bar {
                label: format!("{}, {contestant}", self.name),
                value: median,
                least,
                most,
                group,
            }
        };
        contestants
            .iter()
            .zip(&self.seconds)
            .enumerate()
            .skip(1)
            .map(bar)
            .collect()
    }
}

/// Returns the seconds that one new container took, and its script's output.
fn once(
    stage: &Stage,
    image: &str,
    reference: &str,
    contestant: &str,
    work: Work,
) -> anyhow::Result<(f64, String)> {
    match work {
        Work::Script(script) => timed(&stage.node, reference, contestant, script),
        Work::Start => {
            let begun = Instant::now();
            let mut container = stage.node.start_container(reference, contestant)?;
            let ready = stage.workloads[image].ready.wait(&mut container.process)?;
            Ok(((ready - begun).as_secs_f64(), String::new()))
        }
    }
}

/// Runs a script in a new container, and times it there.
fn timed(
    node: &Node,
    reference: &str,
    contestant: &str,
    script: &str,
) -> anyhow::Result<(f64, String)> {
    let script = format!("a=$(date +%s%N)\ns=$({script})\nb=$(date +%s%N)\necho $((b-a)) $s\n");
    let text = node.run(reference, contestant, &script)?.text;
    let (nanoseconds, sum) = text.trim().split_once(' ').context("no figures")?;
    Ok((float(nanoseconds.parse()?) / 1e9, sum.to_owned()))
}
