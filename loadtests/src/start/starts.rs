//! The starts of one image in one way, each on an empty node.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::made::Workload;
use super::rows::{Daemon, Form, Row};
use crate::figures::Spread;
use crate::harness::run;
use crate::node::{Container, Node, Snapshotter, UNPACKED};
use crate::server::{self, Server};
use crate::support::eventually::within;
use crate::support::link::Link;

pub(super) const MEGABITS: u64 = 100;
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(20);
/// The name of Starlift's agent in containerd.
const LAZY: &str = "lazy";
const REFERENCE: &str = "reference";
/// The duration of recording of a start that is reported to the server. All workloads are ready by
/// then.
const RECORD: &str = "15s";
/// The time within which the server must have stored an observation.
const LEARNING_LIMIT: Duration = Duration::from_secs(120);
const LEARNING_POLL: Duration = Duration::from_millis(200);

/// A row's own registry, so that no row learns from another's starts, and the measured starts.
#[derive(Debug)]
pub(super) struct Starts {
    pub(super) row: &'static Row,
    runs: Vec<Run>,
    server: Server,
    /// The image's name in the registry, without the host.
    image: String,
    /// Seconds of processor time of the conversion; 0 if there was none.
    pub(super) conversion_cpu: f64,
    /// The served manifest.
    pub(super) manifest: Value,
    _store: tempfile::TempDir,
}

/// One start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Seconds of the pull.
    pub(super) pull: f64,
    /// Seconds from the start of the pull until the workload was ready.
    pub(super) ready: f64,
    /// Requests until the workload was ready.
    pub(super) requests: u64,
    /// Bytes that the registry sent until the workload was ready, including headers.
    pub(super) bytes: u64,
    /// Seconds of processor time of the server until the workload was ready.
    pub(super) server_cpu: f64,
    /// The same of the snapshotter; 0 where containerd unpacks.
    pub(super) node_cpu: f64,
}

/// A ready workload and all it depends on, in the order of dropping.
struct Started {
    run: Run,
    _container: Container,
    _node: Node,
    _link: Link,
}

impl Starts {
    /// Starts a registry that serves the image in the row's form. `place` holds images that are
    /// made for that.
    pub(super) fn begin(
        row: &'static Row,
        workload: &Workload,
        starlift: &Path,
        place: &Path,
        chunk_size: Option<&str>,
    ) -> anyhow::Result<Self> {
        let image = match row.form {
            Form::Source | Form::Converted => workload.image.clone(),
            Form::ByStarlift => workload.by_starlift(starlift, place)?,
            Form::ByReference => workload.by_reference()?,
        };
        let store = tempfile::tempdir()?;
        // The server learns from the observations that agents send before the measurement, and not
        // from range requests.
        let learning = ("SERVE_PROFILES__LEARN_FROM_RANGES", "false");
        let chunk_size = chunk_size.map(|size| ("CONVERT_CHUNK_SIZE", size));
        let settings: Vec<_> = [learning].into_iter().chain(chunk_size).collect();
        let upstream = format!("local=oci:{}", image.dir.display());
        let server = Server::start_with(starlift, store.path(), &[upstream], &settings)?;
        if row.form == Form::Source {
            let image = format!("local/image@{}", image.digest()?);
            return Ok(Self {
                row,
                runs: Vec::new(),
                server,
                image,
                conversion_cpu: 0.0,
                manifest: workload.image.manifest()?,
                _store: store,
            });
        }
        let image = "local/image:1".to_owned();
        let (_, manifest) = server::converted(&format!(
            "http://{}/v2/local/image/manifests/1",
            server.address
        ))?;
        let starts = Self {
            row,
            runs: Vec::new(),
            conversion_cpu: server.daemon.cpu()?,
            server,
            image,
            manifest,
            _store: store,
        };
        if row.profiles {
            // The predicted profile follows the converted image a moment later.
            learned(|| Ok(starts.server.files_ahead(&starts.manifest)? > 0)).context(row.name)?;
        }
        (0..row.learned)
            .try_for_each(|_| starts.teach(workload, starlift))
            .context(row.name)?;
        Ok(starts)
    }

    pub(super) fn measure(&mut self, workload: &Workload, starlift: &Path) -> anyhow::Result<()> {
        let run = self.once(workload, starlift).context(self.row.name)?;
        self.runs.push(run);
        Ok(())
    }

    /// Runs one start whose observation is sent to the server.
    fn teach(&self, workload: &Workload, starlift: &Path) -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let known = self.server.profiles_written()?;
        let _running = self.start(workload, starlift, place.path(), &[("RECORD", RECORD)])?;
        learned(|| Ok(self.server.profiles_written()? > known))
    }

    fn once(&self, workload: &Workload, starlift: &Path) -> anyhow::Result<Run> {
        let place = tempfile::tempdir()?;
        let profiles = self.row.profiles.to_string();
        // A measured start sends no observation, so that all rounds have the same profile.
        let started = self.start(
            workload,
            starlift,
            place.path(),
            &[("PROFILES", &profiles), ("RECORD", "0s")],
        )?;
        Ok(started.run)
    }

    /// Pulls the image onto a new node and runs it until it is ready. `agent` has the agent's
    /// settings, if the row needs an agent.
    fn start(
        &self,
        workload: &Workload,
        starlift: &Path,
        place: &Path,
        agent: &[(&str, &str)],
    ) -> anyhow::Result<Started> {
        let (snapshotter, snapshotters) = match self.row.node {
            Daemon::Overlayfs => (UNPACKED, Vec::new()),
            Daemon::Starlift => (
                LAZY,
                vec![Snapshotter::starlift(LAZY, starlift, place, agent)?],
            ),
            Daemon::Reference => (REFERENCE, vec![Snapshotter::reference(REFERENCE, place)?]),
        };
        let node = Node::start(place, snapshotters)?;
        let link = Link::start(self.server.address, MEGABITS, ROUND_TRIP);
        let image = format!("{}/{}", link.address, self.image);
        let asked = self.server.requests()?;
        let node_cpu = || match self.row.node {
            Daemon::Overlayfs => Ok(0.0),
            _ => node.daemon(snapshotter)?.cpu(),
        };
        let (server_before, node_before) = (self.server.daemon.cpu()?, node_cpu()?);
        let begun = Instant::now();
        node.pull(&image, snapshotter)?;
        let pull = begun.elapsed().as_secs_f64();
        let mut container = node.start_container(&image, snapshotter)?;
        let ready = workload.ready.wait(&mut container.process)?;
        let bytes = link.carried();
        let server_cpu = self.server.daemon.cpu()? - server_before;
        let node_cpu = node_cpu()? - node_before;
        let requests = self.server.requests()? - asked;
        if snapshotter == LAZY {
            all_is_lazy(starlift, &place.join(LAZY))?;
        }
        let run = Run {
            pull,
            ready: (ready - begun).as_secs_f64(),
            requests,
            bytes,
            server_cpu,
            node_cpu,
        };
        Ok(Started {
            run,
            _container: container,
            _node: node,
            _link: link,
        })
    }

    /// Returns the length of all TOCs of the served image.
    pub(super) fn toc_bytes(&self, starlift: &Path) -> anyhow::Result<u64> {
        let report = run(&format!(
            "{} inspect --json {}/{}",
            starlift.display(),
            self.server.address,
            self.image
        ))?;
        let report: Value = serde_json::from_str(&report)?;
        let images = report["images"].as_array().into_iter().flatten();
        let layers = images.flat_map(|image| image["layers"].as_array().into_iter().flatten());
        Ok(layers
            .filter_map(|layer| layer["toc"]["json_bytes"].as_u64())
            .sum())
    }

    pub(super) fn spread(&self, figure: fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// Returns the median of the seconds until ready.
    pub(super) fn ready(&self) -> f64 {
        self.spread(|run| run.ready).median
    }
}

/// Waits until the server has the expected profile.
fn learned(is_so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let look = || is_so().map(|is_so| is_so.then_some(())).transpose();
    within(LEARNING_LIMIT, LEARNING_POLL, look).context("no profile after the limit")?
}

/// Checks that the agent in `root` refused no layer.
fn all_is_lazy(starlift: &Path, root: &Path) -> anyhow::Result<()> {
    let status = run(&format!(
        "{} agent status --json --root {}",
        starlift.display(),
        root.display()
    ))?;
    let refusals = &serde_json::from_str::<Value>(&status)?["refusals"];
    ensure!(
        refusals.as_array().is_some_and(Vec::is_empty),
        "not lazy: {refusals}"
    );
    Ok(())
}
