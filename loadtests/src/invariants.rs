//! Invariants that hold at any speed: a fast wrong answer ends the run.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;

use crate::harness::run;
use crate::images::Image;

/// The digest of each named result, which must not change between the rounds of a scenario.
#[derive(Debug, Default)]
pub(crate) struct SameBytes(BTreeMap<String, String>);

impl SameBytes {
    /// Records the digest of `name`. Fails if an earlier round recorded another one.
    pub(crate) fn note(&mut self, name: &str, digest: &str) -> anyhow::Result<()> {
        let first = self
            .0
            .entry(name.to_owned())
            .or_insert_with(|| digest.to_owned());
        ensure!(first == digest, "{name}: {digest} after {first}");
        Ok(())
    }
}

/// Checks with `starlift verify` that the layout's image is the converted image of `source`.
pub(crate) fn is_converted(starlift: &Path, layout: &Path, source: &Image) -> anyhow::Result<()> {
    run(&format!(
        "{} verify oci:{}:1 --against {}",
        starlift.display(),
        layout.display(),
        source.oci()
    ))
    .map(drop)
}
