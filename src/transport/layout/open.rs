//! Finds the images that a directory or an archive lists.

use super::docker;
use super::files::{Extent, Files};
use super::images::Images;
use crate::oci::manifest::{Index, MAX_MANIFEST_BYTES};
use crate::registry::Error;

/// Returns the images that the `index.json` of a layout lists.
pub(super) fn directory(files: Files) -> Result<Images, Error> {
    match files.open("index.json") {
        Ok(index) => Ok(Images::listed(files, read_index(&index)?)),
        Err(Error::NotFound) => Err(Error::Malformed("layout has no index.json".to_owned())),
        Err(error) => Err(error),
    }
}

/// Returns the images that an archive lists in `index.json`, whose manifests are those that the
/// images were pulled by, and those that it lists only in the older `manifest.json`.
///
/// Without `oci-layout`, an `index.json` beside a `manifest.json` is an ordinary file, as it is to
/// containerd and Docker. An unreadable `index.json` is ignored if there is a `manifest.json`,
/// which is all that skopeo and older engines read.
pub(super) fn archive(files: Files) -> Result<Images, Error> {
    let has = |name: &str| files.open(name).is_ok();
    if !has(docker::LIST) || has("oci-layout") {
        match files.open("index.json") {
            Ok(index) => match (read_index(&index), has(docker::LIST)) {
                (Ok(index), true) => return docker::load(Images::listed(files, index)),
                (Ok(index), false) => return Ok(Images::listed(files, index)),
                (Err(_), true) => {}
                (Err(error), false) => return Err(error),
            },
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    docker::load(Images::new(files))
}

fn read_index(index: &Extent) -> Result<Index, Error> {
    let index = index.read(MAX_MANIFEST_BYTES)?;
    serde_json::from_slice(&index).map_err(|error| Error::Malformed(format!("index.json: {error}")))
}
