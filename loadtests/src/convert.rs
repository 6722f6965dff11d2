//! The conversion of an image, whole, from layout to layout, against the reference's.
//!
//! The reference converts inside a containerd that this scenario starts, into its content store; we convert from an OCI
//! layout into a fresh one. Both read the same compressed layers and both write all they make to the same disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::harness::{Cost, measure, run, spread};

/// How long containerd may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Clock ticks a second in `/proc/PID/stat` (proc(5); 100 on every Linux we run on).
const TICKS: f64 = 100.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image: an OCI layout.
    layout: PathBuf,
    /// The image's tag in the layout.
    #[arg(long, default_value = "1")]
    tag: String,
    /// The executable to measure.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Rounds; in each, every contestant runs once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// One way to convert: its name in the table and what its runs cost.
struct Contestant {
    name: &'static str,
    costs: Vec<Cost>,
    bytes: u64,
}

fn run_all(arguments: &Arguments, place: &Path) -> anyhow::Result<Vec<Contestant>> {
    let source = format!("oci:{}:{}", arguments.layout.display(), arguments.tag);
    let archive = place.join("source.tar");
    run(&format!("skopeo copy --quiet {source} oci-archive:{}:source:1", archive.display()))?;
    let containerd = Containerd::start(place)?;
    containerd.ctr(&format!("images import --base-name source --all-platforms {}", archive.display()))?;
    let listed = containerd.ctr("images ls -q")?;
    let image = listed.lines().next().context("nothing imported")?.to_owned();

    let mut contestants = ["reference", "default", "fast"].map(|name| Contestant { name, costs: Vec::new(), bytes: 0 });
    for round in 0..arguments.rounds {
        for contestant in &mut contestants {
            if contestant.name == "reference" {
                let before = containerd.cpu()?;
                let made = format!("made:{round}");
                let line = format!("ctr-remote -a {} images convert --estargz --oci {image} {made}", containerd.socket);
                let mut cost = measure(&line)?;
                cost.cpu += containerd.cpu()? - before;
                contestant.costs.push(cost);
                contestant.bytes = containerd.layer_bytes(&made)?;
                containerd.ctr(&format!("images rm --sync {made}"))?;
            } else {
                let target = place.join(contestant.name);
                let flag = if contestant.name == "fast" { " --fast" } else { "" };
                let starlift = arguments.starlift.display();
                let line = format!("{starlift} convert{flag} {source} oci:{}:1", target.display());
                contestant.costs.push(measure(&line)?);
                contestant.bytes = layout_layer_bytes(&target)?;
                fs::remove_dir_all(&target)?;
            }
        }
    }
    Ok(contestants.into())
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
pub(crate) fn run_and_print(arguments: &Arguments) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let contestants = run_all(arguments, place.path())?;
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("load average at the end: {}", load.trim());
    println!("| | wall s (least–most) | CPU s | peak MiB | layers MB | wall × | CPU × | size |");
    println!("|---|---|---|---|---|---|---|---|");
    let of = |contestant: &Contestant, figure: fn(&Cost) -> f64| spread(contestant.costs.iter().map(figure).collect());
    let Some(reference) = contestants.first() else { return Ok(()) };
    for contestant in &contestants {
        let (wall, least, most) = of(contestant, |cost| cost.wall);
        let (cpu, ..) = of(contestant, |cost| cost.cpu);
        let (memory, ..) = of(contestant, |cost| cost.memory);
        #[expect(clippy::cast_precision_loss, reason = "a table needs three digits")]
        let (bytes, reference_bytes) = (contestant.bytes as f64, reference.bytes as f64);
        println!(
            "| {} | {wall:.2} ({least:.2}–{most:.2}) | {cpu:.2} | {memory:.0} | {:.2} | {:.1} | {:.1} | {:.3} |",
            contestant.name,
            bytes / 1e6,
            of(reference, |cost| cost.wall).0 / wall,
            of(reference, |cost| cost.cpu).0 / cpu,
            bytes / reference_bytes,
        );
    }
    Ok(())
}

fn layout_layer_bytes(layout: &Path) -> anyhow::Result<u64> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let blob = |digest: &Value| {
        let hex = digest.as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
        fs::read(layout.join("blobs/sha256").join(hex))
    };
    layer_bytes(&serde_json::from_slice(&blob(&index["manifests"][0]["digest"])?)?)
}

fn layer_bytes(manifest: &Value) -> anyhow::Result<u64> {
    let layers = manifest["layers"].as_array().context("no image manifest")?;
    ensure!(!layers.is_empty(), "no layers");
    Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).sum())
}

/// A containerd of our own; ends when dropped.
struct Containerd {
    child: Child,
    socket: String,
}

impl Containerd {
    fn start(place: &Path) -> anyhow::Result<Self> {
        let at = |name: &str| place.join(name).display().to_string();
        let config = place.join("containerd.toml");
        fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
        let socket = at("containerd.sock");
        let log = fs::File::create(place.join("containerd.log"))?;
        let child = Command::new("containerd")
            .args(["--config", &at("containerd.toml"), "--root", &at("root"), "--state", &at("state")])
            .args(["--address", &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("containerd")?;
        let containerd = Self { child, socket };
        let begun = Instant::now();
        while containerd.ctr("version").is_err() {
            ensure!(begun.elapsed() < START_LIMIT, "containerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    fn ctr(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ctr -a {} {arguments}", self.socket))
    }

    /// Processor seconds it has used.
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted from behind the name, which may hold blanks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) / TICKS)
    }

    fn layer_bytes(&self, image: &str) -> anyhow::Result<u64> {
        let listed = self.ctr("images ls")?;
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(image)).context("not listed")?;
        let digest = line.split_whitespace().nth(2).context("no digest")?;
        let mut manifest: Value = serde_json::from_str(&self.ctr(&format!("content get {digest}"))?)?;
        if let Some(child) = manifest["manifests"][0]["digest"].as_str() {
            manifest = serde_json::from_str(&self.ctr(&format!("content get {child}"))?)?;
        }
        layer_bytes(&manifest)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
