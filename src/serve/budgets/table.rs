//! The use of the budgets of one kind: a bounded table with a line for each client that is active.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::serve::places::Client;

use super::config::BudgetConfig;
use super::rate::Rate;

/// The lines of a table: some 100 bytes each.
const MAX_LINES: usize = 50_000;
/// How often a full table is searched for lines that are not needed any more.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// When a client over a limit of concurrent work may ask again. It is admitted as soon as some of
/// its work has ended.
const SOON: Duration = Duration::from_secs(1);

/// The owner of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Identity(Arc<str>),
    Address(Client),
    Upstream(Arc<str>),
    /// All that do not fit the table share one line.
    Others,
}

/// A part of a budget that is taken and given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    Stream,
    Conversion,
    Bytes(u64),
}

/// Why a budget refuses, and when it may not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) budget: &'static str,
    pub(super) retry_after: Duration,
}

/// The use of one budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// The time up to which requests have used the rate.
    paid: Option<Instant>,
    pub(super) streams: usize,
    pub(super) conversions: usize,
    pub(super) bytes_under_way: u64,
}

/// The budgets of all owners of one kind.
#[derive(Debug)]
pub(super) struct Table {
    limits: BudgetConfig,
    rate: Option<Rate>,
    max_lines: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Owner, Usage>,
    tidied: Option<Instant>,
}

/// A taken amount, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    table: Arc<Table>,
    owner: Owner,
    amount: Amount,
}

impl Owner {
    /// Without secrets, for the status, the queues and the names in the store.
    pub(crate) fn name(&self) -> Arc<str> {
        match self {
            Self::Identity(name) | Self::Upstream(name) => Arc::clone(name),
            Self::Address(client) => client.to_string().into(),
            Self::Others => "all others".into(),
        }
    }
}

impl Usage {
    /// Whether the line means the same as no line.
    fn is_spare(&self, now: Instant) -> bool {
        let is_paid = self.paid.is_none_or(|paid| paid <= now);
        is_paid && self.streams == 0 && self.conversions == 0 && self.bytes_under_way == 0
    }
}

impl Table {
    pub(super) fn new(limits: &BudgetConfig) -> Arc<Self> {
        Self::with_lines(limits, MAX_LINES)
    }

    fn with_lines(limits: &BudgetConfig, max_lines: usize) -> Arc<Self> {
        Arc::new(Self {
            rate: limits.requests.map(|rate| Rate::new(rate, limits.burst)),
            limits: limits.clone(),
            max_lines,
            state: Mutex::default(),
        })
    }

    pub(super) fn limits(&self) -> &BudgetConfig {
        &self.limits
    }

    /// Admits a request, which holds a stream until it is answered. A refused one uses nothing.
    pub(super) fn enter(self: &Arc<Self>, owner: Owner) -> Result<Held, Exceeded> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let owner = state.line_for(owner, now, self.max_lines);
        let usage = state.lines.entry(owner.clone()).or_default();
        if self
            .limits
            .streams
            .is_some_and(|most| usage.streams >= most.get())
        {
            return Err(Exceeded {
                budget: "streams",
                retry_after: SOON,
            });
        }
        if let Some(rate) = self.rate {
            let paid = rate.admit(usage.paid, now);
            let exceeded = |retry_after| Exceeded {
                budget: "requests",
                retry_after,
            };
            usage.paid = Some(paid.map_err(exceeded)?);
        }
        usage.streams += 1;
        drop(state);
        Ok(self.held(owner, Amount::Stream))
    }

    /// Takes a conversion.
    pub(super) fn convert(self: &Arc<Self>, owner: Owner) -> Result<Held, Exceeded> {
        let most = self.limits.conversions;
        self.take(owner, Amount::Conversion, |usage| {
            if most.is_some_and(|most| usage.conversions >= most.get()) {
                return false;
            }
            usage.conversions += 1;
            true
        })
    }

    /// Takes the bytes of an answer. One answer may have more than the limit, if it is the only
    /// one.
    pub(super) fn send(self: &Arc<Self>, owner: Owner, bytes: u64) -> Result<Held, Exceeded> {
        let most = self.limits.bytes_under_way.map(|most| most.as_u64());
        self.take(owner, Amount::Bytes(bytes), |usage| {
            let sum = usage.bytes_under_way.saturating_add(bytes);
            let is_alone = usage.bytes_under_way == 0;
            if !is_alone && most.is_some_and(|most| sum > most) {
                return false;
            }
            usage.bytes_under_way = sum;
            true
        })
    }

    fn take(
        self: &Arc<Self>,
        owner: Owner,
        amount: Amount,
        take: impl FnOnce(&mut Usage) -> bool,
    ) -> Result<Held, Exceeded> {
        let mut state = self.state.lock();
        let owner = state.line_for(owner, Instant::now(), self.max_lines);
        if take(state.lines.entry(owner.clone()).or_default()) {
            drop(state);
            return Ok(self.held(owner, amount));
        }
        Err(Exceeded {
            budget: amount.name(),
            retry_after: SOON,
        })
    }

    fn held(self: &Arc<Self>, owner: Owner, amount: Amount) -> Held {
        Held {
            table: Arc::clone(self),
            owner,
            amount,
        }
    }

    /// The lines in use, the busiest first, at most `most`.
    pub(super) fn busiest(&self, most: usize) -> Vec<(Owner, Usage)> {
        let now = Instant::now();
        let state = self.state.lock();
        let in_use = state.lines.iter().filter(|(_, usage)| !usage.is_spare(now));
        let mut lines: Vec<_> = in_use
            .map(|(owner, usage)| (owner.clone(), *usage))
            .collect();
        drop(state);
        lines.sort_by_key(|(_, usage)| {
            std::cmp::Reverse((usage.streams, usage.conversions, usage.bytes_under_way))
        });
        lines.truncate(most);
        lines
    }
}

impl State {
    /// The owner whose line counts: its own if there is room for it.
    fn line_for(&mut self, owner: Owner, now: Instant, max_lines: usize) -> Owner {
        if self.lines.len() < max_lines || self.lines.contains_key(&owner) {
            return owner;
        }
        let is_due = self
            .tidied
            .is_none_or(|tidied| now.duration_since(tidied) >= TIDY_EVERY);
        if is_due {
            self.tidied = Some(now);
            self.lines.retain(|_, usage| !usage.is_spare(now));
        }
        if self.lines.len() < max_lines {
            owner
        } else {
            Owner::Others
        }
    }
}

impl Amount {
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "streams",
            Self::Conversion => "conversions",
            Self::Bytes(_) => "bytes-under-way",
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.table.state.lock();
        let Some(usage) = state.lines.get_mut(&self.owner) else {
            return;
        };
        match self.amount {
            Amount::Stream => usage.streams -= 1,
            Amount::Conversion => usage.conversions -= 1,
            Amount::Bytes(bytes) => usage.bytes_under_way -= bytes,
        }
        if usage.is_spare(now) {
            state.lines.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::num::{NonZeroU32, NonZeroUsize};

    use bytesize::ByteSize;

    use super::*;

    fn user(name: &str) -> Owner {
        Owner::Identity(name.into())
    }

    fn address(number: u32) -> Owner {
        Owner::Address(IpAddr::from(Ipv4Addr::from(number)).into())
    }

    fn limits() -> BudgetConfig {
        BudgetConfig {
            streams: NonZeroUsize::new(2),
            conversions: NonZeroUsize::new(1),
            bytes_under_way: Some(ByteSize::b(100)),
            ..BudgetConfig::default()
        }
    }

    #[test]
    fn concurrent_work_is_limited_for_each_owner_and_given_back() {
        let table = Table::new(&limits());
        let held = [
            table.enter(user("a")).unwrap(),
            table.enter(user("a")).unwrap(),
        ];
        assert_eq!(table.enter(user("a")).unwrap_err().budget, "streams");
        let other = table.enter(user("b")).unwrap();
        let conversion = table.convert(user("a")).unwrap();
        assert_eq!(table.convert(user("a")).unwrap_err().budget, "conversions");
        assert_eq!(table.busiest(1)[0].0, user("a"));
        drop((held, other, conversion));
        assert!(
            table.state.lock().lines.is_empty(),
            "only active owners have a line"
        );
    }

    #[test]
    fn one_answer_may_be_larger_than_the_limit_and_two_may_not() {
        let table = Table::new(&limits());
        let large = table.send(user("a"), 1000).unwrap();
        assert_eq!(
            table.send(user("a"), 1).unwrap_err().budget,
            "bytes-under-way"
        );
        drop(large);
        let _half = table.send(user("a"), 60).unwrap();
        let _rest = table.send(user("a"), 40).unwrap();
        assert!(table.send(user("a"), 1).is_err());
    }

    #[test]
    fn a_refused_request_uses_nothing() {
        let limits = BudgetConfig {
            requests: NonZeroU32::new(1),
            burst: NonZeroU32::new(1),
            ..limits()
        };
        let table = Table::new(&limits);
        drop(table.enter(user("a")).unwrap());
        let first = table.enter(user("a")).unwrap_err();
        let second = table.enter(user("a")).unwrap_err();
        assert_eq!((first.budget, second.budget), ("requests", "requests"));
        assert!(second.retry_after <= first.retry_after);
        assert_eq!(table.busiest(9)[0].1.streams, 0);
    }

    #[test]
    fn a_million_addresses_take_the_memory_of_the_table() {
        let limits = BudgetConfig {
            requests: NonZeroU32::new(1),
            burst: NonZeroU32::new(1),
            ..BudgetConfig::default()
        };
        let table = Table::with_lines(&limits, 1000);
        let known = table.enter(user("known")).unwrap();
        let mut refused = 0;
        for number in 0..1_000_000 {
            refused += usize::from(table.enter(address(number)).is_err());
        }
        let lines = table.state.lock().lines.len();
        assert!(lines <= 1001, "{lines}");
        assert!(
            refused > 900_000,
            "those without a line share one: {refused}"
        );
        let held = table.state.lock().lines[&user("known")].streams;
        assert_eq!(held, 1, "who is active keeps the line");
        drop(known);
    }
}
