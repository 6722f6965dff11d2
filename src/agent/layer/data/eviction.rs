//! The chunks to evict: the least recently used of all layers.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::layer_data::LayerData;

/// A chunk in the order of eviction: the oldest is the least. Of chunks that were last used at the
/// same time the later ones of a layer go first, because a start reads the first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: u32,
    from_end: u32,
    layer: usize,
    bytes: u64,
}

/// Returns chunks of at least `bytes` bytes if there are as many, by the index of their layer, each
/// layer's in order.
pub(super) fn oldest(layers: &[Arc<LayerData>], bytes: u64) -> BTreeMap<usize, Vec<u32>> {
    // The youngest of the chosen is on top. It goes when there are enough without it.
    let mut chosen: BinaryHeap<Candidate> = BinaryHeap::new();
    let mut sum = 0;
    for (layer, data) in layers.iter().enumerate() {
        for (number, used) in data.held_with_use() {
            let is_younger = |top: &Candidate| top.used < used;
            if sum >= bytes && chosen.peek().is_some_and(is_younger) {
                continue;
            }
            let (size, from_end) = (data.chunk_size(number), u32::MAX - number);
            chosen.push(Candidate {
                used,
                from_end,
                layer,
                bytes: size,
            });
            sum += size;
            while chosen.peek().is_some_and(|top| sum - top.bytes >= bytes) {
                sum -= chosen.pop().map_or(0, |top| top.bytes);
            }
        }
    }
    let mut by_layer: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for Candidate {
        layer, from_end, ..
    } in chosen
    {
        by_layer.entry(layer).or_default().push(u32::MAX - from_end);
    }
    by_layer
        .values_mut()
        .for_each(|numbers| numbers.sort_unstable());
    by_layer
}
