//! The record files of `optimize --record-out` and of `ctr-remote`: the files that a container
//! opened, in order.
//!
//! A line names a path and, if the recorder knew it, the layer of the file: the digest of the
//! image's manifest and the layer's index in it.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::convert::{Priorities, Priority};
use crate::failure::Failure;
use crate::oci::manifest::{ImageManifest, Index};
use crate::oci::{Digest, Manifest, Reference};
use crate::profile::{Extents, FileUse};
use crate::tempfiles::write_atomically;
use crate::transport::Endpoint;
use crate::transport::document::{is_index, parse};

/// The largest record that is read. A record of a million files has a fifth of it.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// A line of the record (stargz-snapshotter, `recorder.Entry`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifest_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer_index: Option<usize>,
}

impl Line {
    /// A file in the layer at `layer_index` of the image with this manifest.
    pub(crate) fn new(path: String, manifest_digest: Digest, layer_index: usize) -> Self {
        Self {
            path,
            manifest_digest: Some(manifest_digest),
            layer_index: Some(layer_index),
        }
    }
}

/// Reads the lines of `file`, in the order of first use.
pub(crate) fn read(file: &Path) -> Result<Vec<Line>, Failure> {
    let cannot = || Failure::when(format!("{} cannot be read", file.display()));
    if std::fs::metadata(file).map_err(cannot())?.len() > MAX_RECORD_BYTES {
        return Err(Failure::new(format!(
            "{} is longer than {MAX_RECORD_BYTES} bytes",
            file.display()
        )));
    }
    let text = std::fs::read(file).map_err(cannot())?;
    lines(&text).map_err(Failure::when(format!("{} is not a record", file.display())))
}

/// Writes the lines in the format of `ctr-remote`.
pub(crate) fn write(file: &Path, lines: &[Line]) -> Result<(), Failure> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(Failure::from_error)?;
        text.push(b'\n');
    }
    write_atomically(file, &text).map_err(Failure::when(format!(
        "{} cannot be written",
        file.display()
    )))
}

fn lines(text: &[u8]) -> Result<Vec<Line>, serde_json::Error> {
    serde_json::Deserializer::from_slice(text)
        .into_iter()
        .collect()
}

/// Returns the paths for a single layer, from all images of the record, without duplicates.
pub(crate) fn of_layer(lines: Vec<Line>) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let paths = lines.into_iter().map(|line| line.path.into_bytes());
    paths.filter(|path| seen.insert(path.clone())).collect()
}

/// Returns the files recorded for the image with this manifest. Files without a layer are left out.
pub(crate) fn of_manifest(lines: &[Line], manifest: &Digest) -> Vec<FileUse> {
    let own_lines = lines
        .iter()
        .filter(|line| line.manifest_digest.as_ref() == Some(manifest));
    let file = |line: &Line| {
        let layer = u32::try_from(line.layer_index?).ok()?;
        Some(FileUse {
            layer,
            path: line.path.clone(),
            extents: Extents::default(),
            after: Duration::ZERO,
        })
    };
    own_lines.filter_map(file).collect()
}

/// Returns the priorities for the layers of `root`, an image or an index. As in `ctr-remote`, a
/// line without a layer of this image counts for every layer that has the path.
pub(crate) async fn of_image(
    lines: Vec<Line>,
    endpoint: &Endpoint,
    root: &Manifest,
) -> Result<Priorities, Failure> {
    let mut images = HashMap::new();
    for digest in lines
        .iter()
        .filter_map(|line| line.manifest_digest.as_ref())
    {
        if !images.contains_key(digest) {
            images.insert(digest.clone(), layers(digest, endpoint, root).await?);
        }
    }
    let files = lines.into_iter().map(|line| {
        let layers = line.manifest_digest.and_then(|digest| images.get(&digest));
        let layer = layers
            .zip(line.layer_index)
            .and_then(|(layers, index)| layers.get(index))
            .cloned();
        Priority {
            path: line.path.into_bytes(),
            layer,
        }
    });
    Ok(Priorities::new(files.collect()))
}

/// Returns the layers of the image with this digest, if it is `root` or one of its children.
async fn layers(
    digest: &Digest,
    endpoint: &Endpoint,
    root: &Manifest,
) -> Result<Vec<Digest>, Failure> {
    let manifest = if *digest == root.digest {
        root.clone()
    } else if is_index(root)
        && parse::<Index>(root)?
            .manifests
            .iter()
            .any(|child| child.digest == *digest)
    {
        let action = format!("reading the manifest {digest}");
        let reference = Reference::Digest(digest.clone());
        endpoint
            .source
            .manifest(&endpoint.repository, &reference)
            .await
            .map_err(Failure::when(action))?
    } else {
        return Ok(Vec::new());
    };
    if is_index(&manifest) {
        return Ok(Vec::new());
    }
    Ok(parse::<ImageManifest>(&manifest)?
        .layers
        .into_iter()
        .map(|layer| layer.digest)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_format_of_ctr_remote() {
        let digest = Digest::sha256_of(b"");
        let text = format!(
            "{{\"path\":\"bin/sh\",\"manifestDigest\":\"{digest}\",\"layerIndex\":0}}\n{{\"path\":\"b\"}}\n"
        );
        let [first, second] = &*lines(text.as_bytes()).unwrap() else {
            panic!("two lines")
        };
        assert_eq!(
            (&*first.path, &first.manifest_digest, first.layer_index),
            ("bin/sh", &Some(digest.clone()), Some(0))
        );
        assert_eq!(
            (&*second.path, &second.manifest_digest, second.layer_index),
            ("b", &None, None)
        );
        assert_eq!(
            of_layer([first, second, first].map(Clone::clone).to_vec()),
            [b"bin/sh".to_vec(), b"b".to_vec()]
        );
        let used = of_manifest(&[first.clone(), second.clone()], &digest);
        assert_eq!(
            used.iter()
                .map(|file| (file.layer, &*file.path))
                .collect::<Vec<_>>(),
            [(0, "bin/sh")]
        );
        assert!(lines(b"").unwrap().is_empty());
        for wrong in [
            "{\"path\":1}",
            "{}",
            "bin/sh",
            "{\"path\":\"a\",\"manifestDigest\":\"x\"}",
        ] {
            assert!(lines(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
