//! Limits the memory for chunks in transit. Readers come first.
//!
//! ```text
//! prefetch ▶ half of all ─┐
//! reads ──────────────────┴▶ a registry's share ▶ all
//! ```
//! Weights are taken in this order and released together, so there is no deadlock.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Reason;
use crate::budget::{Budget, Full, Weight};

/// Memory of a run besides its chunks: HTTP's buffer for a body that is read piece by piece
/// (hyper's buffer grows to 408 KiB), and the state of the run itself.
const RUN: u64 = 512 << 10;
/// Registries whose shares are remembered before the idle ones are forgotten.
const MAX_SHARES: usize = 64;

/// The memory for chunks in transit.
#[derive(Debug)]
pub(super) struct Memory {
    all: Budget,
    /// For prefetching: readers always find the other half.
    prefetch: Budget,
    /// By the name of the registry. A slow or hostile registry leaves a quarter to all others.
    shares: Mutex<HashMap<String, Budget>>,
}

/// The memory of one run, released on drop.
#[derive(Debug)]
pub(super) struct Taken {
    _prefetch: Option<Weight>,
    _share: Weight,
    _all: Weight,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let prefetch = Budget::new("fetch ahead", bytes / 2);
        Self {
            all: Budget::new("fetch", bytes),
            prefetch,
            shares: Mutex::default(),
        }
    }

    /// Reserves memory for fetching chunks one after the other, the largest of which takes `bytes`.
    /// Callers wait in order. A chunk that is larger than all of the memory gets all of it.
    pub(super) async fn take(
        &self,
        registry: &str,
        bytes: u64,
        reason: Reason,
    ) -> Result<Taken, Full> {
        let bytes = bytes.saturating_add(RUN);
        let prefetch = if reason == Reason::Read {
            None
        } else {
            Some(take(&self.prefetch, bytes).await?)
        };
        let share = take(&self.share(registry), bytes).await?;
        Ok(Taken {
            _prefetch: prefetch,
            _share: share,
            _all: take(&self.all, bytes).await?,
        })
    }

    fn share(&self, registry: &str) -> Budget {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(registry) {
            return share.clone();
        }
        if shares.len() >= MAX_SHARES {
            shares.retain(|_, share| share.free() < share.bytes());
        }
        let share = Budget::new("fetch from a registry", self.all.bytes() / 4 * 3);
        shares.insert(registry.to_owned(), share.clone());
        share
    }

    /// Returns the free bytes.
    #[cfg(test)]
    pub(super) fn free(&self) -> u64 {
        self.all.free()
    }
}

async fn take(budget: &Budget, bytes: u64) -> Result<Weight, Full> {
    budget.take(bytes.min(budget.bytes())).await
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const ALL: u64 = 16 << 20;

    #[tokio::test]
    async fn reads_find_room_while_everything_else_waits() {
        let memory = Memory::new(ALL);
        let prefetch = memory.take("a", ALL / 2, Reason::Background).await.unwrap();
        assert!(
            memory
                .take("b", 1, Reason::Profile)
                .now_or_never()
                .is_none()
        );
        let read = memory
            .take("b", ALL / 4, Reason::Read)
            .now_or_never()
            .unwrap()
            .unwrap();
        drop(prefetch);
        assert!(
            memory
                .take("b", 1, Reason::Profile)
                .now_or_never()
                .is_some()
        );
        drop(read);
        assert_eq!(memory.free(), ALL);
    }

    #[tokio::test]
    async fn one_registry_leaves_room_for_others() {
        let memory = Memory::new(ALL);
        let slow = memory
            .take("slow", ALL / 4 * 3 - RUN, Reason::Read)
            .await
            .unwrap();
        assert!(
            memory
                .take("slow", 1, Reason::Read)
                .now_or_never()
                .is_none()
        );
        assert!(
            memory
                .take("other", 1, Reason::Read)
                .now_or_never()
                .unwrap()
                .is_ok()
        );
        drop(slow);
    }

    #[tokio::test]
    async fn a_chunk_larger_than_the_memory_is_fetched_alone() {
        let memory = Memory::new(ALL);
        let taken = memory.take("a", u64::MAX, Reason::Read).await.unwrap();
        assert!(memory.take("a", 1, Reason::Read).now_or_never().is_none());
        drop(taken);
        assert!(memory.take("a", 1, Reason::Read).now_or_never().is_some());
    }

    #[tokio::test]
    async fn shares_of_idle_registries_are_forgotten() {
        let memory = Memory::new(ALL);
        let held = memory.take("held", 1, Reason::Read).await.unwrap();
        for number in 0..2 * MAX_SHARES {
            drop(
                memory
                    .take(&number.to_string(), 1, Reason::Read)
                    .await
                    .unwrap(),
            );
        }
        let shares = memory.shares.lock();
        assert!(shares.len() <= MAX_SHARES && shares.contains_key("held"));
        drop(held);
    }
}
