//! The bytes that the store keeps for an owner.

use std::time::Duration;

use crate::store::{self, Holder, Store};

use super::{Budgets, Kind, OverBudget, Owner, over};

/// When a client whose bytes in the store are used up may ask again: after a sweep may have freed
/// some, which is counted within this time.
const RECOUNTED: Duration = Duration::from_secs(60);

impl Budgets {
    /// The name under which layers are stored for the owner, if they are counted.
    pub(crate) fn account(&self, kind: Kind, owner: &Owner) -> Option<String> {
        let is_counted = self.table(kind).limits().stored.is_some();
        is_counted.then(|| format!("{} {}", kind.name(), owner.name()))
    }

    /// Checks that the store keeps less than the owner's limit.
    ///
    /// # Errors
    /// Inside, if the owner has used up the budget.
    pub(crate) async fn check_stored(
        &self,
        kind: Kind,
        owner: &Owner,
        store: &Store,
    ) -> Result<Result<(), OverBudget>, store::Error> {
        let limit = self.table(kind).limits().stored;
        let (Some(limit), Some(account)) = (limit, self.account(kind, owner)) else {
            return Ok(Ok(()));
        };
        let stored = store.bytes_kept_for(&Holder::account(&account)).await?;
        if stored < limit.as_u64() {
            return Ok(Ok(()));
        }
        Ok(Err(over(kind, "stored", RECOUNTED)))
    }
}
