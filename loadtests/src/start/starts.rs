//! The starts of one image in one way, each on a node that has nothing yet.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::made::Workload;
use super::rows::{Form, Row};
use crate::figures::Spread;
use crate::harness::run;
use crate::link::Link;
use crate::node::{Node, Snapshotter, UNPACKED};
use crate::server::{self, Server};

pub(super) const MEGABITS: u64 = 100;
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Our agent's name in containerd.
const LAZY: &str = "lazy";

/// A row's registry, which no other row's starts teach anything, and the starts that were measured.
#[derive(Debug)]
pub(super) struct Starts {
    pub(super) row: &'static Row,
    runs: Vec<Run>,
    server: Server,
    /// The image there, without the host.
    image: String,
    _store: tempfile::TempDir,
}

/// One start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Seconds of the pull.
    pub(super) pull: f64,
    /// Seconds from the beginning of the pull until the workload was ready.
    pub(super) ready: f64,
    /// Requests until then.
    pub(super) requests: u64,
    /// Bytes that the registry sent until then, headers included.
    pub(super) bytes: u64,
}

impl Starts {
    /// Has a registry serve the image as the row wants it; `place` is for images that are made for that.
    pub(super) fn begin(row: &'static Row, workload: &Workload, starlift: &Path, place: &Path) -> anyhow::Result<Self> {
        let image = match row.form {
            Form::Original | Form::Twin => workload.image.clone(),
            Form::ByStarlift => workload.by_starlift(starlift, place)?,
            Form::ByReference => workload.by_reference()?,
        };
        let store = tempfile::tempdir()?;
        let server = Server::start(starlift, store.path(), &[format!("local=oci:{}", image.dir.display())])?;
        let mut name = "local/image:1".to_owned();
        if row.form == Form::Original {
            name = format!("local/image@{}", image.digest()?);
        } else {
            server::twin(&format!("http://{}/v2/local/image/manifests/1", server.address))?;
        }
        Ok(Self { row, runs: Vec::new(), server, image: name, _store: store })
    }

    pub(super) fn measure(&mut self, workload: &Workload, starlift: &Path) -> anyhow::Result<()> {
        let run = self.once(workload, starlift).context(self.row.name)?;
        self.runs.push(run);
        Ok(())
    }

    fn once(&self, workload: &Workload, starlift: &Path) -> anyhow::Result<Run> {
        let place = tempfile::tempdir()?;
        let place = place.path();
        let (snapshotter, snapshotters) = match self.row.form {
            Form::Original => (UNPACKED, Vec::new()),
            _ => (LAZY, vec![Snapshotter::starlift(LAZY, starlift, place, &[])?]),
        };
        let node = Node::start(place, snapshotters)?;
        let link = Link::start(self.server.address, MEGABITS, ROUND_TRIP);
        let image = format!("{}/{}", link.address, self.image);
        let asked = self.server.requests()?;
        let begun = Instant::now();
        node.pull(&image, snapshotter)?;
        let pull = begun.elapsed().as_secs_f64();
        let mut container = node.start_container(&image, snapshotter)?;
        let ready = workload.ready.wait(&mut container.process)?;
        let bytes = link.carried();
        let requests = self.server.requests()? - asked;
        if snapshotter == LAZY {
            all_is_lazy(starlift, &place.join(LAZY))?;
        }
        Ok(Run { pull, ready: (ready - begun).as_secs_f64(), requests, bytes })
    }

    pub(super) fn spread(&self, figure: fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// The median of the seconds until ready.
    pub(super) fn ready(&self) -> f64 {
        self.spread(|run| run.ready).median
    }
}

/// An error if the agent in `root` had a layer unpacked.
fn all_is_lazy(starlift: &Path, root: &Path) -> anyhow::Result<()> {
    let status = run(&format!("{} agent status --json --root {}", starlift.display(), root.display()))?;
    let refusals = &serde_json::from_str::<Value>(&status)?["refusals"];
    ensure!(refusals.as_array().is_some_and(Vec::is_empty), "not lazy: {refusals}");
    Ok(())
}
