//! Containers that read their files again and again and compare them with the image's, and short
//! ones that come and go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::soak::node::Node;
use crate::soak::tally::{Outcome, Tally};
use crate::soak::upstream::Image;
use crate::support::image::Random;

/// Reads every file of `/check/sums`. Each line of a result is one file.
const PASS: &str = "\
while read -r sum file; do
  if got=$(/busybox sha256sum \"/$file\" 2>/dev/null); then
    if [ \"${got%% *}\" = \"$sum\" ]; then echo >>/check/right; else echo \"$file\" >>/check/wrong; fi
  else
    echo >>/check/failed
  fi
done </check/sums
";
/// The pause after a container was removed, before the next one comes.
const CHURN_PAUSE: Duration = Duration::from_secs(3);
/// The pause between two files whose pages are dropped.
const DROP_PAUSE: Duration = Duration::from_millis(200);
/// A read through a dead agent waits for the next one.
const DROP_LIMIT: &str = "60";

/// The files that a container has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) right: u64,
    pub(crate) failed: u64,
    pub(crate) wrong: u64,
}

impl Checked {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            right: self.right + other.right,
            failed: self.failed + other.failed,
            wrong: self.wrong + other.wrong,
        }
    }
}

/// A container that lives as long as the soak.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    id: String,
    tag: String,
    folder: PathBuf,
    /// The last change of the counts, and the longest time without one.
    last: (Checked, Instant),
    pub(crate) longest_pause: Duration,
    pub(crate) restarts: usize,
}

/// A node that several tasks use.
pub(crate) type SharedNode = Arc<Node>;

impl Container {
    /// Pulls the image and starts the container.
    pub(crate) async fn start(node: &Node, image: &Image) -> anyhow::Result<Self> {
        let name = format!("node {}, {}", node.number, image.tag);
        let id = node.container_id(&image.tag);
        let folder = node.folder(&format!("check-{}", image.tag));
        prepare(&folder, image)?;
        let endless = format!("while [ ! -e /check/stop ]; do\n{PASS}/busybox sleep 1\ndone\n");
        fs::write(folder.join("script"), endless)?;
        node.pull(&image.tag).await?;
        let container = Self {
            name,
            id,
            tag: image.tag.clone(),
            folder,
            last: (Checked::default(), Instant::now()),
            longest_pause: Duration::ZERO,
            restarts: 0,
        };
        container.run(node).await?;
        Ok(container)
    }

    async fn run(&self, node: &Node) -> anyhow::Result<()> {
        let arguments = node.container(&self.tag, &self.id, &self.folder, "script");
        node.ctr(&format!("run -d {arguments}")).await.map(drop)
    }

    /// Returns the counts, and notes the time without progress.
    pub(crate) fn look(&mut self) -> Checked {
        let now = counts(&self.folder);
        let pause = self.last.1.elapsed();
        if now != self.last.0 {
            self.last = (now, Instant::now());
        }
        self.longest_pause = self.longest_pause.max(pause);
        now
    }

    /// Starts the container again if it has ended: a failed read of its memory may have killed it.
    pub(crate) async fn revive(&mut self, node: &Node) -> anyhow::Result<()> {
        if self.pid(node).await.is_some() {
            return Ok(());
        }
        // An error of containerd does not say that the container has ended.
        if node.ctr("version").await.is_err() {
            return Ok(());
        }
        let _ended = node.ctr(&format!("task rm -f {}", self.id)).await;
        let _removed = node.ctr(&format!("containers rm {}", self.id)).await;
        self.run(node).await?;
        self.restarts += 1;
        Ok(())
    }

    /// Returns the number of the container's process, if it runs.
    pub(crate) async fn pid(&self, node: &Node) -> Option<u32> {
        let listed = node.ctr("tasks ls").await.ok()?;
        let row = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.first() == Some(&self.id.as_str()))?;
        (row.get(2) == Some(&"RUNNING")).then(|| row.get(1)?.parse().ok())?
    }

    /// Ends the container after its pass, and removes it and its image.
    pub(crate) async fn end(&self, node: &Node) -> anyhow::Result<()> {
        fs::write(self.folder.join("stop"), "")?;
        let limit = Instant::now() + Duration::from_secs(120);
        while self.pid(node).await.is_some() && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let is_stuck = self.pid(node).await.is_some();
        if is_stuck {
            let _killed = node.ctr(&format!("task kill -s SIGKILL {}", self.id)).await;
        }
        let _deleted = node.ctr(&format!("task rm -f {}", self.id)).await;
        node.ctr(&format!("containers rm {}", self.id)).await?;
        node.remove(&self.tag).await?;
        anyhow::ensure!(!is_stuck, "{} did not end", self.name);
        Ok(())
    }
}

/// Writes the files that a container's script needs, and removes earlier results.
fn prepare(folder: &Path, image: &Image) -> anyhow::Result<()> {
    let _absent = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let mut sums = String::new();
    for (path, sum) in &image.files {
        writeln!(sums, "{sum} {path}")?;
    }
    Ok(fs::write(folder.join("sums"), sums)?)
}

fn counts(folder: &Path) -> Checked {
    let lines = |name: &str| {
        let text = fs::read(folder.join(name)).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count() as u64
    };
    Checked {
        right: lines("right"),
        failed: lines("failed"),
        wrong: lines("wrong"),
    }
}

/// Pulls images, starts a container of each that reads every file once, and removes both, until the
/// task is cancelled between two of them.
pub(crate) async fn churn(
    node: SharedNode,
    images: Vec<Image>,
    tally: Arc<Tally>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let (number, kind) = (node.number, kind_of(node.number));
    let mut random = Random::new(900 + number as u64);
    while !*stopped.borrow() {
        let image = &images[random.index(images.len())];
        let since = Instant::now();
        let outcome = start_once(&node, image).await;
        tally.count(kind, since, &outcome);
        let _stop = tokio::time::timeout(CHURN_PAUSE, stopped.changed()).await;
    }
}

fn kind_of(number: usize) -> &'static str {
    if number == 1 {
        "starts on node 1"
    } else {
        "starts on node 2"
    }
}

async fn start_once(node: &Node, image: &Image) -> Outcome {
    let folder = node.folder(&format!("once-{}", image.tag));
    let written =
        prepare(&folder, image).and_then(|()| Ok(fs::write(folder.join("script"), PASS)?));
    if let Err(error) = written {
        return Outcome::Wrong(format!("the check is not written: {error:#}"));
    }
    let outcome = match node.pull(&image.tag).await {
        Err(error) => Outcome::NotStarted("pull", format!("{error:#}")),
        Ok(()) => run_once(node, image, &folder).await,
    };
    let _later = node.remove(&image.tag).await;
    outcome
}

async fn run_once(node: &Node, image: &Image, folder: &Path) -> Outcome {
    let id = node.container_id(&format!("once-{}", image.tag));
    let arguments = node.container(&image.tag, &id, folder, "script");
    let run = node.ctr(&format!("run --rm {arguments}")).await;
    let Checked {
        right,
        failed,
        wrong,
    } = counts(folder);
    if run.is_err() {
        let _gone = node.ctr(&format!("task rm -f {id}")).await;
        let _gone = node.ctr(&format!("containers rm {id}")).await;
    }
    if wrong > 0 {
        let names = fs::read_to_string(folder.join("wrong")).unwrap_or_default();
        return Outcome::Wrong(format!("node {}, {}: {names}", node.number, image.tag));
    }
    match run {
        Err(error) => Outcome::NotStarted("run", format!("{error:#}")),
        Ok(_) if failed > 0 => Outcome::ReadErrors,
        Ok(_) if right == image.files.len() as u64 => Outcome::Started,
        Ok(_) => Outcome::NotStarted("check", format!("{right} of {} files", image.files.len())),
    }
}

/// Drops the pages of random files of a container from the kernel's cache, so that its next read
/// reaches the agent or its data file.
pub(crate) async fn drop_pages(node: SharedNode, ids: Vec<(String, BTreeMap<String, String>)>) {
    let mut random = Random::new(77);
    loop {
        tokio::time::sleep(DROP_PAUSE).await;
        let (id, files) = &ids[random.index(ids.len())];
        let Some(path) = files.keys().nth(random.index(files.len().max(1))) else {
            continue;
        };
        let Some(pid) = pid_of(&node, id).await else {
            continue;
        };
        // dd(1): with `count=0` it drops the whole file.
        let _during_a_fault = tokio::process::Command::new("timeout")
            .args([DROP_LIMIT, "dd", "iflag=nocache", "count=0", "status=none"])
            .arg(format!("if=/proc/{pid}/root/{path}"))
            .kill_on_drop(true)
            .output()
            .await;
    }
}

async fn pid_of(node: &Node, id: &str) -> Option<u32> {
    let listed = node.ctr("tasks ls").await.ok()?;
    let row = listed.lines().find(|line| line.starts_with(id))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

impl Container {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the names of the files that were wrong.
    pub(crate) fn wrong(&self) -> anyhow::Result<String> {
        fs::read_to_string(self.folder.join("wrong")).context("the wrong files")
    }
}
