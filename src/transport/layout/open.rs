//! Which images a directory or an archive lists.

use super::docker;
use super::files::{Extent, Files};
use super::images::Images;
use crate::oci::manifest::{Index, MAX_MANIFEST_BYTES};
use crate::registry::Error;

/// What the `index.json` of a layout lists.
pub(super) fn directory(files: Files) -> Result<Images, Error> {
    match files.open("index.json") {
        Ok(index) => Ok(Images::listed(files, read_index(&index)?)),
        Err(Error::NotFound) => Err(Error::Malformed("the layout has no index.json".to_owned())),
        Err(error) => Err(error),
    }
}

/// What an archive lists in `index.json`, whose manifests are those that the images were pulled by, and what it
/// lists in the older `manifest.json` alone.
///
/// Without `oci-layout` an `index.json` is some file, as it is to containerd and Docker; one that cannot be read is
/// no loss where there is a `manifest.json`, which is all that skopeo and older engines read.
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
