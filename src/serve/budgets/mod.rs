//! Budgets of identities, addresses and upstreams: how much each may use at a time and in all, so
//! that no team takes the server from the others.
//!
//! ```text
//! request ▶ budget of the address ▶ access ▶ budgets of identity and upstream ▶ handler
//!           conversion ▶ conversions under way, bytes stored for it
//!           answer ▶ bytes under way
//! ```
//! A budget that is used up refuses with 429 and the time after which asking again is worth it.

mod config;
mod rate;
mod stored;
mod table;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::telemetry::metrics;

use super::places::NoPlace;

pub use config::{BudgetConfig, BudgetsConfig};
use table::{Exceeded, Table};
pub(crate) use table::{Held, Kind, Owner};

/// The owners of each kind that the status shows.
const SHOWN: usize = 32;

/// A budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverBudget {
    /// `identity`, `address` or `upstream`.
    pub(crate) of: &'static str,
    /// The key of the budget, with hyphens.
    pub(crate) budget: &'static str,
    /// When the request may be repeated. For requests a second it is then admitted.
    pub(crate) retry_after: Duration,
}

/// Why a request is not admitted, though its sender may do what it asks for.
#[derive(Debug)]
pub(crate) enum NotNow {
    NoPlace(NoPlace),
    OverBudget(OverBudget),
}

impl From<NoPlace> for NotNow {
    fn from(none: NoPlace) -> Self {
        Self::NoPlace(none)
    }
}

impl From<OverBudget> for NotNow {
    fn from(over: OverBudget) -> Self {
        Self::OverBudget(over)
    }
}

/// A line of the status.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    streams: usize,
    conversions: usize,
    bytes_under_way: u64,
}

/// All budgets.
#[derive(Debug)]
pub(crate) struct Budgets {
    identity: Arc<Table>,
    address: Arc<Table>,
    upstream: Arc<Table>,
}

impl Budgets {
    pub(crate) fn new(config: &BudgetsConfig) -> Self {
        Self {
            identity: Table::new(Kind::Identity, &config.identity),
            address: Table::new(Kind::Address, &config.address),
            upstream: Table::new(Kind::Upstream, &config.upstream),
        }
    }

    /// Admits a request into the budgets of `kind`. It is answered while the result is held.
    ///
    /// # Errors
    /// If the owner has used up a budget.
    pub(crate) fn enter(&self, kind: Kind, owner: &Owner) -> Result<Option<Held>, OverBudget> {
        self.take(kind, |table| table.enter(owner))
    }

    /// Takes a conversion, which runs or waits while the result is held.
    ///
    /// # Errors
    /// If the owner has used up the budget.
    pub(crate) fn convert(&self, kind: Kind, owner: &Owner) -> Result<Option<Held>, OverBudget> {
        self.take(kind, |table| table.convert(owner))
    }

    fn take(
        &self,
        kind: Kind,
        take: impl FnOnce(&Arc<Table>) -> Result<Held, Exceeded>,
    ) -> Result<Option<Held>, OverBudget> {
        let table = self.table(kind);
        if table.limits().is_unlimited() {
            return Ok(None);
        }
        let taken = take(table);
        taken
            .map(Some)
            .map_err(|exceeded| over(kind, exceeded.budget, exceeded.retry_after))
    }

    fn table(&self, kind: Kind) -> &Arc<Table> {
        match kind {
            Kind::Identity => &self.identity,
            Kind::Address => &self.address,
            Kind::Upstream => &self.upstream,
        }
    }

    /// Sets the metrics of the budgets that the configuration limits.
    pub(crate) fn measure(&self) {
        for kind in [Kind::Identity, Kind::Address, Kind::Upstream] {
            for (budget, part) in self.table(kind).highest_use() {
                metrics()
                    .budget_use
                    .get_or_create(&[("of", kind.name()), ("budget", budget)])
                    .set(part);
            }
        }
    }

    /// The use of the busiest owners, for operators.
    pub(crate) fn status(&self) -> Value {
        let lines = |table: &Table| -> Vec<Line> {
            let busiest = table.busiest(SHOWN).into_iter();
            busiest
                .map(|(owner, usage)| Line {
                    name: owner.name().to_string(),
                    streams: usage.streams,
                    conversions: usage.conversions,
                    bytes_under_way: usage.bytes_under_way,
                })
                .collect()
        };
        json!({
            "identity": lines(&self.identity),
            "address": lines(&self.address),
            "upstream": lines(&self.upstream),
        })
    }
}

impl Held {
    /// Takes the bytes of an answer too, which are under way while this is held.
    ///
    /// # Errors
    /// If the owner has used up the budget.
    pub(crate) fn send_bytes(&mut self, bytes: u64) -> Result<(), OverBudget> {
        let sent = self.send(bytes);
        sent.map_err(|exceeded| over(self.kind(), exceeded.budget, exceeded.retry_after))
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Address => "address",
            Self::Upstream => "upstream",
        }
    }
}

/// Counts a refusal.
fn over(kind: Kind, budget: &'static str, retry_after: Duration) -> OverBudget {
    let of = kind.name();
    metrics()
        .budget_refusals
        .get_or_create(&[("of", of), ("budget", budget)])
        .inc();
    OverBudget {
        of,
        budget,
        retry_after,
    }
}
