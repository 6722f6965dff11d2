//! Whether this kernel can mount EROFS over the agent's FUSE mount: it is tried at each start.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use erofs_metadata::{Attributes, Data, Image, ImageError, Kind};

use super::{mount, mounts};
use crate::agent::layer_mount::{LayerMount, erofs_folder};
use crate::agent::mountpoint;

/// The name of the probe's data in the FUSE mount.
pub(in crate::agent) const NAME: &str = "probe";
/// One block.
const CONTENT: [u8; 4096] = [0xa5; 4096];
pub(in crate::agent) const SIZE: u64 = CONTENT.len() as u64;
const EIO: i32 = 5;

/// The data of the probe, which can be made unreadable.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    fails: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("Linux {0} may show zeros after a failed read: 6.12.80, 6.18.44 or 7.0 is needed")]
    Version(String),
    #[error("a metadata image over the FUSE mount could not be mounted")]
    Mount(#[source] io::Error),
    #[error("a read that failed in the FUSE mount was not reported as an error")]
    Error,
    #[error("a file was read wrong")]
    Content,
    #[error("probe not written")]
    Io(#[from] io::Error),
}

impl Probe {
    /// Returns the content, or `None` while it is unreadable.
    pub(crate) fn content(&self) -> Option<&'static [u8]> {
        (!self.fails.load(Ordering::Relaxed)).then_some(&CONTENT)
    }

    /// Mounts a file over the FUSE mount, lets a read fail, and reads again. Blocking.
    ///
    /// # Errors
    /// If one of these did not go as it must.
    pub(crate) fn run(&self, root: &Path) -> Result<(), ProbeError> {
        let folder = erofs_folder(root);
        mounts::make_folder(&folder)?;
        let (at, image) = (folder.join(NAME), folder.join("probe.image"));
        mountpoint::clear(&at)?;
        write(&image)?;
        let data = LayerMount::Data.directory(root).join(NAME);
        let outcome = mount::mount(&image, &data, &at)
            .map_err(ProbeError::Mount)
            .and_then(|()| self.read(&at.join(NAME)));
        let removed = remove(&at, &image).map_err(ProbeError::Io);
        // A mount that failed has made no folder, and its reason is the one that counts.
        outcome.and(removed)
    }

    fn read(&self, file: &Path) -> Result<(), ProbeError> {
        let read = || {
            let mut content = Vec::new();
            File::open(file)?.read_to_end(&mut content)?;
            Ok::<_, io::Error>(content)
        };
        self.fails.store(true, Ordering::Relaxed);
        let failed = read();
        self.fails.store(false, Ordering::Relaxed);
        match failed {
            Err(error) if error.raw_os_error() == Some(EIO) => {}
            _ => return Err(ProbeError::Error),
        }
        match read() {
            Ok(content) if content == CONTENT => Ok(()),
            _ => Err(ProbeError::Content),
        }
    }
}

fn remove(at: &Path, image: &Path) -> io::Result<()> {
    mountpoint::clear(at)?;
    fs::remove_file(image)?;
    fs::remove_dir(at)
}

fn write(path: &Path) -> io::Result<()> {
    let image = || {
        let mut image = Image::builder().device(1).build()?;
        let file = Kind::File {
            size: SIZE,
            data: Data::At(0),
        };
        let attributes = Attributes::default().with_permissions(0o400);
        image.insert(image.root(), NAME.as_bytes(), file, &attributes)?;
        image.write_to(File::create(path).map_err(ImageError::Write)?)
    };
    image().map_err(io::Error::other)
}

/// Whether a reader that is killed, or a read that is answered in part, leaves no zeros in the page
/// cache. A probe could not see it. 6.18.44 is the first version of its series that was tried.
///
/// # Errors
/// If this version may have the fault.
pub(super) fn check_version(release: &str) -> Result<(), ProbeError> {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let is_right = match (next(), next(), next()) {
        (6, 12, patch) => patch >= 80,
        (6, 18, patch) => patch >= 44,
        (major, _, _) => major >= 7,
    };
    is_right
        .then_some(())
        .ok_or_else(|| ProbeError::Version(release.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_fault_are_refused() {
        for right in [
            "6.12.80",
            "6.12.101-lts",
            "6.18.44-fc-v657",
            "7.0.0",
            "7.2.0-rc1",
            "10.0",
        ] {
            assert!(check_version(right).is_ok(), "{right}");
        }
        for wrong in [
            "5.15.0",
            "6.8.0-45-generic",
            "6.12.79",
            "6.12",
            "6.17.99",
            "6.18.3",
            "x",
        ] {
            assert!(check_version(wrong).is_err(), "{wrong}");
        }
    }
}
