//! The chunks of a layer that a profile stands for.

use std::collections::HashSet;

use super::queue::QueuedChunk;
use crate::agent::layer::Layer;
use crate::agent::layer::tree::{Content, FileId};
use crate::profile::{Profile, ProfiledFile, Source};

/// If a profile does not list parts of a file, all chunks of a file up to this size are fetched.
const WHOLE: u64 = 16 << 20;
/// Bytes at the beginning and at the end of a larger file: a header with the tables that the dynamic
/// linker reads (ELF), the directory of an archive (zip, a JVM's modules).
const END: u64 = 4 << 20;

/// A file of a profile that exists in a layer.
#[derive(Debug)]
pub(super) struct Planned {
    /// Its place in the profile.
    pub(super) file: u32,
    pub(super) id: FileId,
    /// Its chunks that are not on this node.
    pub(super) missing: Vec<QueuedChunk>,
}

/// Whether `profile` lists the parts of files that starts have read in the layer at this place of its
/// image. Predicted parts are only the beginning.
pub(super) fn lists_parts_read(profile: &Profile, place: u32) -> bool {
    let is_read = |source: &Source| *source != Source::Static;
    profile.files.iter().any(|profiled| {
        profiled.layer == place
            && !profiled.extents.is_empty()
            && profiled.sources.iter().any(is_read)
    })
}

/// Returns the files that `profile` names in the layer at this place of its image. Skips files that
/// the layer does not have.
pub(super) fn plan(profile: &Profile, place: u32, layer: &Layer) -> Vec<Planned> {
    let mut seen = HashSet::new();
    let files = (0..)
        .zip(&profile.files)
        .filter(|(_, profiled)| profiled.layer == place);
    let planned = files.filter_map(|(file, profiled)| {
        let id = layer.tree().file(&profiled.path)?;
        seen.insert(id).then(|| Planned {
            file,
            id,
            missing: missing(layer, id, file, profiled),
        })
    });
    planned.collect()
}

fn missing(layer: &Layer, id: FileId, file: u32, profiled: &ProfiledFile) -> Vec<QueuedChunk> {
    let Some(Content::Chunks(node)) = layer.tree().content(id) else {
        return Vec::new();
    };
    let all = node.chunk_numbers();
    let at = |offset| node.chunk_number_at(offset);
    let numbers: Vec<u32> = if !profiled.extents.is_empty() {
        let parts = profiled.extents.iter().filter_map(|part| {
            let first = at(part.start)?;
            let last = at((part.end - 1).min(node.size().saturating_sub(1)))?;
            Some(first..=last)
        });
        parts.flatten().collect()
    } else if node.size() <= WHOLE {
        all.collect()
    } else {
        let (head, tail) = (at(END - 1), at(node.size() - END));
        let is_in_head = |number| head.is_some_and(|head| number <= head);
        let is_in_tail = |number| tail.is_some_and(|tail| number >= tail);
        all.filter(|number| is_in_head(*number) || is_in_tail(*number))
            .collect()
    };
    let absent = numbers.into_iter().filter(|number| !layer.is_held(*number));
    let chunks = absent.filter_map(|number| Some((number, layer.tree().toc().chunk(number)?)));
    chunks
        .map(|(number, chunk)| QueuedChunk {
            file,
            number,
            range: chunk.range,
        })
        .collect()
}
