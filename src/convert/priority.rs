//! The files that a container needs first, known beforehand. They are moved to the front of their
//! layers.
//!
//! Another order needs the whole layer before the first byte can be written, so a prioritized layer
//! is held in a temporary file. The server uses this only for `reorder`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};

use estargz::pool::Pool;
use estargz::write::{self, Error, Landmark, Layout, Options, Written, reorder};
use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

/// Bytes copied at once into the temporary file.
const SPOOL_BYTES: usize = 256 << 10;

/// Files in the order of their first use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Priorities {
    files: Vec<Priority>,
    keeps_lazy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priority {
    pub path: Vec<u8>,
    /// Digest of the source layer that the file was read from; `None` means every layer that has
    /// the file.
    pub layer: Option<Digest>,
}

/// The outcome for a prioritized layer.
#[derive(Debug)]
pub struct Prioritized {
    /// Its source is the given tar, not the reordered one.
    pub written: Written,
    /// The paths that are not in the layer.
    pub missing: Vec<Vec<u8>>,
}

/// A tar in a temporary file.
struct Spooled {
    file: File,
    digest: estargz::Digest,
    size: u64,
}

impl Priorities {
    pub fn new(files: Vec<Priority>) -> Self {
        Self {
            files,
            keeps_lazy: false,
        }
    }

    /// Sets whether layers that are eStargz already keep their order.
    #[must_use]
    pub fn keeping_lazy_layers(self, keeps_lazy: bool) -> Self {
        Self { keeps_lazy, ..self }
    }

    /// Whether layers that are eStargz already are converted again, because their order may differ.
    pub(super) fn renew_lazy_layers(&self) -> bool {
        !self.is_empty() && !self.keeps_lazy
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns the paths that come first in `layer`, each once.
    pub fn of(&self, layer: &Digest) -> Vec<Vec<u8>> {
        let files = self
            .files
            .iter()
            .filter(|file| file.layer.as_ref().is_none_or(|of| of == layer));
        let mut seen = HashSet::new();
        files
            .map(|file| &file.path)
            .filter(|path| seen.insert(*path))
            .cloned()
            .collect()
    }

    /// Returns a digest over all priorities that a layer's bytes depend on.
    pub(super) fn digest(&self) -> Digest {
        let mut text = if self.keeps_lazy {
            b"lazy layers stay ".to_vec()
        } else {
            Vec::new()
        };
        for Priority { path, layer } in &self.files {
            let layer = layer.as_ref().map(Digest::to_string).unwrap_or_default();
            text.extend(format!("{} {layer} ", path.len()).into_bytes());
            text.extend(path);
        }
        Digest::sha256_of(&text)
    }
}

/// Writes the blob of `tar` with the files of `prioritized`, in their order, in front of the
/// landmark.
///
/// # Errors
/// As [`write::write`]. A temporary file that cannot be written counts as an output error.
pub fn write_prioritized(
    tar: impl Read,
    out: impl Write,
    options: &Options,
    pool: &Pool,
    prioritized: &[Vec<u8>],
) -> Result<Prioritized, Error> {
    let source = spool(tar, options.limits.max_source_bytes)?;
    let reordered = reorder(source.file, prioritized)?;
    let missing = reordered.missing().to_vec();
    let options = options
        .clone()
        .with_layout(Layout::Classic)
        .with_landmark(Landmark::InSource);
    let mut written = write::write(reordered, out, &options, pool)?;
    written.source_diff_id = source.digest;
    written.source_size = source.size;
    Ok(Prioritized { written, missing })
}

fn spool(mut tar: impl Read, limit: u64) -> Result<Spooled, Error> {
    let mut file = tempfile::tempfile().map_err(Error::Output)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; SPOOL_BYTES];
    loop {
        let read = tar.read(&mut buffer).map_err(Error::Source)?;
        if read == 0 {
            return Ok(Spooled {
                file,
                digest: hasher.into(),
                size,
            });
        }
        size += read as u64;
        if size > limit {
            return Err(Error::Limit {
                what: "bytes of source",
                limit,
            });
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(Error::Output)?;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn file(path: &str, layer: Option<&str>) -> Priority {
        let layer = layer.map(|layer| Digest::sha256_of(layer.as_bytes()));
        Priority {
            path: path.as_bytes().to_vec(),
            layer,
        }
    }

    #[test]
    fn a_layer_gets_its_own_files_and_those_of_no_layer_once_and_in_order() {
        let files = [
            file("a", None),
            file("b", Some("top")),
            file("c", Some("base")),
            file("a", Some("top")),
        ];
        let priorities = Priorities::new(files.to_vec());
        assert_eq!(priorities.of(&Digest::sha256_of(b"top")), [b"a", b"b"]);
        assert_eq!(priorities.of(&Digest::sha256_of(b"base")), [b"a", b"c"]);
        assert_eq!(priorities.of(&Digest::sha256_of(b"else")), [b"a"]);
    }

    #[test]
    fn the_digest_distinguishes_files_layers_and_orders() {
        let lists = [
            vec![],
            vec![file("ab", None)],
            vec![file("a", None), file("b", None)],
            vec![file("a", Some("x"))],
        ];
        let keeping = Priorities::new(lists[1].clone()).keeping_lazy_layers(true);
        let digests = lists
            .into_iter()
            .map(|files| Priorities::new(files).digest())
            .chain([keeping.digest()]);
        assert_eq!(digests.collect::<HashSet<_>>().len(), 5);
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let limits = write::Limits::default().with_max_source_bytes(1 << 20);
        let options = Options::default().with_limits(limits);
        let pool = Pool::new(NonZeroUsize::MIN, 1 << 20);
        let bomb = std::io::repeat(0);
        let error =
            write_prioritized(bomb, Vec::new(), &options, &pool, &[b"a".to_vec()]).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Limit {
                    limit: 1_048_576,
                    ..
                }
            ),
            "{error}"
        );
    }
}
