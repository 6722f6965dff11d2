//! The started images, and the same images as users optimise them by hand: run once, with the files
//! that were read placed first.

use std::fs;
use std::path::{Path, PathBuf};

use super::ready::Ready;
use crate::containerd::Containerd;
use crate::harness::{Running, run};
use crate::images::Image;

const MAKE_IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/start/make-image");
/// The base image of all others.
const BASE: &str = "debian";
/// Seconds of recording, enough on a busy machine.
const PERIOD: u32 = 15;

/// An image, and the way to see that its container is ready.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) image: Image,
    pub(crate) ready: Ready,
}

impl Workload {
    pub(crate) fn get(name: &str) -> anyhow::Result<Self> {
        let ready = match name {
            "nginx" => Ready::Serves(18080),
            "node" => Ready::Serves(18081),
            "postgres" => Ready::Answers(15432),
            _ => Ready::Says,
        };
        Image::by(MAKE_IMAGE, BASE)?;
        Ok(Self {
            image: Image::by(MAKE_IMAGE, name)?,
            ready,
        })
    }

    /// Optimises the image with `starlift optimize`, in `place`.
    pub(super) fn by_starlift(&self, starlift: &Path, place: &Path) -> anyhow::Result<Image> {
        let made = Image {
            name: format!("{}-by-starlift", self.image.name),
            dir: place.join("by-starlift"),
        };
        let optimize = format!(
            "{} optimize --net-host --period {PERIOD}",
            starlift.display()
        );
        let line = format!("{optimize} {} {}", self.image.oci(), made.oci());
        self.observe(&line, &place.join("optimize.log"))?;
        Ok(made)
    }

    /// Optimises the image with `ctr-remote image optimize --oci`. The result is kept, because
    /// making it takes minutes and always gives the same image.
    pub(super) fn by_reference(&self) -> anyhow::Result<Image> {
        Image::kept(
            MAKE_IMAGE,
            &format!("{}-by-reference", self.image.name),
            |dir| {
                let place = tempfile::tempdir()?;
                let containerd = Containerd::start(place.path())?;
                let imported = containerd.import(&self.image, place.path())?;
                let optimize = format!(
                    "ctr-remote -a {} images optimize --oci --net-host",
                    containerd.socket
                );
                let line = format!("{optimize} --period {PERIOD} {imported} optimized:1");
                self.observe(&line, &place.path().join("optimize.log"))?;
                let archive: PathBuf = place.path().join("optimized.tar");
                containerd.ctr(&format!("images export {} optimized:1", archive.display()))?;
                let (from, to) = (archive.display(), dir.display());
                run(&format!(
                    "skopeo copy --quiet --preserve-digests oci-archive:{from} oci:{to}:1"
                ))?;
                Ok(fs::remove_file(archive)?)
            },
        )
    }

    /// Runs a command that runs the workload, and sends the workload the same request as in the
    /// measurement.
    fn observe(&self, line: &str, log: &Path) -> anyhow::Result<()> {
        let mut process = Running::start(line, log)?;
        self.ready.wait(&mut process)?;
        process.finish()
    }
}
