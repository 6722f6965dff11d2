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
use crate::node::{Container, Node, Snapshotter, UNPACKED};
use crate::server::{self, Server};

pub(super) const MEGABITS: u64 = 100;
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Our agent's name in containerd.
const LAZY: &str = "lazy";
/// How long a start that teaches is watched: all that is ready by then is known.
const RECORD: &str = "15s";
/// How long it may take after that until the server has it written down.
const LEARNING_LIMIT: Duration = Duration::from_secs(120);
const LEARNING_POLL: Duration = Duration::from_millis(200);

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

/// A workload that is ready, and all it runs on, in the order in which it is let go.
struct Started {
    run: Run,
    _container: Container,
    _node: Node,
    _link: Link,
}

impl Starts {
    /// Has a registry serve the image as the row wants it; `place` is for images that are made for that.
    pub(super) fn begin(
        row: &'static Row,
        workload: &Workload,
        starlift: &Path,
        place: &Path,
    ) -> anyhow::Result<Self> {
        let image = match row.form {
            Form::Original | Form::Twin => workload.image.clone(),
            Form::ByStarlift => workload.by_starlift(starlift, place)?,
            Form::ByReference => workload.by_reference()?,
        };
        let store = tempfile::tempdir()?;
        // It learns what agents tell it before the measurement, and nothing of the requests meanwhile.
        let settings = [("PROFILES__LEARN_FROM_RANGES", "false")];
        let upstream = format!("local=oci:{}", image.dir.display());
        let server = Server::start_with(starlift, store.path(), &[upstream], &settings)?;
        if row.form == Form::Original {
            let image = format!("local/image@{}", image.digest()?);
            return Ok(Self {
                row,
                runs: Vec::new(),
                server,
                image,
                _store: store,
            });
        }
        let image = "local/image:1".to_owned();
        let (_, manifest) = server::twin(&format!(
            "http://{}/v2/local/image/manifests/1",
            server.address
        ))?;
        let starts = Self {
            row,
            runs: Vec::new(),
            server,
            image,
            _store: store,
        };
        if row.profiles {
            // What the server makes of the image itself comes a moment after the twin.
            until(|| Ok(starts.server.files_ahead(&manifest)? > 0)).context(row.name)?;
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

    /// A start that the server is told of.
    fn teach(&self, workload: &Workload, starlift: &Path) -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let known = self.server.profiles_written()?;
        let _running = self.start(workload, starlift, place.path(), &[("RECORD", RECORD)])?;
        until(|| Ok(self.server.profiles_written()? > known))
    }

    fn once(&self, workload: &Workload, starlift: &Path) -> anyhow::Result<Run> {
        let place = tempfile::tempdir()?;
        let profiles = self.row.profiles.to_string();
        // A start that is measured teaches nothing: the next round is to find what this one found.
        let started = self.start(
            workload,
            starlift,
            place.path(),
            &[("PROFILES", &profiles), ("RECORD", "0s")],
        )?;
        Ok(started.run)
    }

    /// Pulls the image onto a new node, with the agent set so where one is needed, and runs it until it is ready.
    fn start(
        &self,
        workload: &Workload,
        starlift: &Path,
        place: &Path,
        agent: &[(&str, &str)],
    ) -> anyhow::Result<Started> {
        let (snapshotter, snapshotters) = match self.row.form {
            Form::Original => (UNPACKED, Vec::new()),
            _ => (
                LAZY,
                vec![Snapshotter::starlift(LAZY, starlift, place, agent)?],
            ),
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
        let run = Run {
            pull,
            ready: (ready - begun).as_secs_f64(),
            requests,
            bytes,
        };
        Ok(Started {
            run,
            _container: container,
            _node: node,
            _link: link,
        })
    }

    pub(super) fn spread(&self, figure: fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// The median of the seconds until ready.
    pub(super) fn ready(&self) -> f64 {
        self.spread(|run| run.ready).median
    }
}

/// Waits until the server knows what it is to know.
fn until(is_so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(
            begun.elapsed() < LEARNING_LIMIT,
            "the server learned nothing"
        );
        std::thread::sleep(LEARNING_POLL);
    }
    Ok(())
}

/// An error if the agent in `root` had a layer unpacked.
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
