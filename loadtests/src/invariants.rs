//! What must hold whatever the speed: a fast wrong answer ends the run.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;

use crate::harness::run;
use crate::images::Image;

/// Everything that was made under one name in the rounds of a scenario, by digest.
#[derive(Debug, Default)]
pub(crate) struct SameBytes(BTreeMap<String, String>);

impl SameBytes {
    /// An error when an earlier round made something else of the same.
    pub(crate) fn note(&mut self, what: &str, digest: &str) -> anyhow::Result<()> {
        let first = self
            .0
            .entry(what.to_owned())
            .or_insert_with(|| digest.to_owned());
        ensure!(first == digest, "{what}: {digest} after {first}");
        Ok(())
    }
}

/// An error unless `starlift verify` finds the layout's image to be the twin of `source`.
pub(crate) fn is_twin(starlift: &Path, layout: &Path, source: &Image) -> anyhow::Result<()> {
    run(&format!(
        "{} verify oci:{}:1 --against {}",
        starlift.display(),
        layout.display(),
        source.oci()
    ))
    .map(drop)
}
