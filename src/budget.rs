//! Limits the memory that input from outside may take. The memory is reserved before it is used.
//!
//! A budget is a named number of bytes shared by everything of one kind: waiting documents, pending
//! chunks, parsed JSON. A task that is about to hold memory because of somebody else's input takes
//! its weight first and returns it by dropping it. When the budget is full, tasks wait in the order
//! in which they came. The caller chooses how long they wait. After that the request is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Weights are counted in units of this many bytes, so that a budget of many GiB fits the
/// semaphore's `u32`.
const UNIT: u64 = 1024;

/// A named number of bytes. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    name: &'static str,
    bytes: u64,
    units: u32,
    free: Arc<Semaphore>,
}

/// Bytes taken from a budget, returned when dropped.
#[derive(Debug)]
pub struct Weight {
    permit: OwnedSemaphorePermit,
}

/// The budget had no room, now or within the time the caller allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{name} budget is full: {wanted} of {bytes} bytes wanted")]
pub struct Full {
    pub name: &'static str,
    pub wanted: u64,
    pub bytes: u64,
}

impl Budget {
    /// A budget of `bytes`, rounded up to whole KiB and at least one.
    pub fn new(name: &'static str, bytes: u64) -> Self {
        let units = units(bytes);
        Self {
            name,
            bytes,
            units,
            free: Arc::new(Semaphore::new(
                usize::try_from(units).unwrap_or(usize::MAX >> 4),
            )),
        }
    }

    /// Takes `bytes`, waiting in order until they are free. Cancel safe.
    ///
    /// # Errors
    /// [`Full`] at once if the whole budget is smaller than `bytes`.
    pub async fn take(&self, bytes: u64) -> Result<Weight, Full> {
        let wanted = self.checked(bytes)?;
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free)
            .acquire_many_owned(wanted)
            .await
            .map_err(|_closed| self.full(bytes))?;
        Ok(Weight { permit })
    }

    /// Takes `bytes`, waiting in order for no longer than `patience`. Cancel safe.
    ///
    /// # Errors
    /// [`Full`] if the bytes were not free in time, or if the whole budget is smaller.
    pub async fn take_within(&self, bytes: u64, patience: Duration) -> Result<Weight, Full> {
        tokio::time::timeout(patience, self.take(bytes))
            .await
            .map_err(|_elapsed| self.full(bytes))?
    }

    /// Takes `bytes` if they are free now and no other task waits.
    ///
    /// # Errors
    /// [`Full`] if they are not free.
    pub fn try_take(&self, bytes: u64) -> Result<Weight, Full> {
        let wanted = self.checked(bytes)?;
        let permit = Arc::clone(&self.free)
            .try_acquire_many_owned(wanted)
            .map_err(|_full| self.full(bytes))?;
        Ok(Weight { permit })
    }

    /// The number of free bytes, in whole KiB.
    pub fn free(&self) -> u64 {
        self.free.available_permits() as u64 * UNIT
    }

    /// The size of the whole budget in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn checked(&self, bytes: u64) -> Result<u32, Full> {
        let wanted = units(bytes);
        if wanted > self.units {
            Err(self.full(bytes))
        } else {
            Ok(wanted)
        }
    }

    fn full(&self, wanted: u64) -> Full {
        Full {
            name: self.name,
            wanted,
            bytes: self.bytes,
        }
    }
}

impl Weight {
    /// Adds a weight of the same budget.
    pub fn add(&mut self, more: Self) {
        self.permit.merge(more.permit);
    }

    /// Returns all but `bytes` to the budget, once the real size replaces a guess.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(units(bytes)).unwrap_or(usize::MAX);
        let surplus = self.permit.num_permits().saturating_sub(keep);
        drop(self.permit.split(surplus));
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_taken_and_returned() {
        let budget = Budget::new("test", 10 * UNIT);
        let mut a = budget.take(6 * UNIT).await.unwrap();
        assert_eq!(budget.free(), 4 * UNIT);
        assert_eq!(
            budget.try_take(5 * UNIT).unwrap_err(),
            Full {
                name: "test",
                wanted: 5 * UNIT,
                bytes: 10 * UNIT
            }
        );
        a.shrink_to(2 * UNIT);
        let b = budget.try_take(8 * UNIT).unwrap();
        assert_eq!(budget.free(), 0);
        drop((a, b));
        assert_eq!(budget.free(), 10 * UNIT);
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_is_refused_at_once() {
        let budget = Budget::new("test", UNIT);
        assert!(budget.take(UNIT + 1).await.is_err());
    }

    #[tokio::test]
    async fn tasks_wait_in_order_and_no_longer_than_their_patience() {
        let budget = Budget::new("test", 4 * UNIT);
        let held = budget.take(3 * UNIT).await.unwrap();
        assert!(
            budget
                .take_within(2 * UNIT, Duration::from_millis(10))
                .await
                .is_err()
        );
        let large = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(4 * UNIT).await.map(drop) }
        });
        tokio::task::yield_now().await;
        // One KiB is free, but another task waits.
        assert!(budget.try_take(UNIT).is_err());
        drop(held);
        large.await.unwrap().unwrap();
        assert_eq!(budget.free(), 4 * UNIT);
    }
}
