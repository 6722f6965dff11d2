//! The use of the budgets of one kind: a bounded table with a line for each client that is active.

use std::collections::HashMap;
use std::num::NonZeroUsize;
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

/// The kind of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Identity,
    Address,
    Upstream,
}

/// The owner of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Identity(Arc<str>),
    Address(Client),
    Upstream(Arc<str>),
    /// All that do not fit the table share one line.
    Others,
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
    kind: Kind,
    limits: BudgetConfig,
    rate: Option<Rate>,
    max_lines: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Owner, Line>,
    tidied: Option<Instant>,
}

/// The line of an owner. Whoever holds a part of the budget holds it too, and needs no look-up.
type Line = Arc<Mutex<Usage>>;

/// Taken parts of one budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    table: Arc<Table>,
    line: Line,
    streams: usize,
    conversions: usize,
    bytes: u64,
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
    pub(super) fn new(kind: Kind, limits: &BudgetConfig) -> Arc<Self> {
        Self::with_lines(kind, limits, MAX_LINES)
    }

    fn with_lines(kind: Kind, limits: &BudgetConfig, max_lines: usize) -> Arc<Self> {
        Arc::new(Self {
            kind,
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
    pub(super) fn enter(self: &Arc<Self>, owner: &Owner) -> Result<Held, Exceeded> {
        let now = Instant::now();
        let mut held = self.nothing_of(owner, now);
        let mut usage = held.line.lock();
        let most = self.limits.streams;
        if most.is_some_and(|most| usage.streams >= most.get()) {
            return Err(Exceeded::soon("streams"));
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
        drop(usage);
        held.streams = 1;
        Ok(held)
    }

    /// Takes a conversion.
    pub(super) fn convert(self: &Arc<Self>, owner: &Owner) -> Result<Held, Exceeded> {
        let mut held = self.nothing_of(owner, Instant::now());
        let mut usage = held.line.lock();
        let most = self.limits.conversions;
        if most.is_some_and(|most| usage.conversions >= most.get()) {
            return Err(Exceeded::soon("conversions"));
        }
        usage.conversions += 1;
        drop(usage);
        held.conversions = 1;
        Ok(held)
    }

    fn nothing_of(self: &Arc<Self>, owner: &Owner, now: Instant) -> Held {
        Held {
            line: self.state.lock().line(owner, now, self.max_lines),
            table: Arc::clone(self),
            streams: 0,
            conversions: 0,
            bytes: 0,
        }
    }

    /// For each limit on concurrent work: the part of it that the busiest owner uses.
    pub(super) fn highest_use(&self) -> Vec<(&'static str, f64)> {
        let limits = [
            ("streams", self.limits.streams.map(count)),
            ("conversions", self.limits.conversions.map(count)),
            (
                "bytes-under-way",
                self.limits.bytes_under_way.map(|most| most.as_u64()),
            ),
        ];
        let mut most = [0_u64; 3];
        for usage in self.state.lock().lines.values() {
            let usage = usage.lock();
            let used = [
                usage.streams as u64,
                usage.conversions as u64,
                usage.bytes_under_way,
            ];
            for (most, used) in most.iter_mut().zip(used) {
                *most = used.max(*most);
            }
        }
        let limited = limits.into_iter().zip(most);
        let parts = limited.filter_map(|((budget, limit), used)| {
            let limit = limit.filter(|limit| *limit > 0)?;
            Some((budget, used as f64 / limit as f64))
        });
        parts.collect()
    }

    /// The owners in use, the busiest first, at most `most`.
    pub(super) fn busiest(&self, most: usize) -> Vec<(Owner, Usage)> {
        let now = Instant::now();
        let state = self.state.lock();
        let lines = state.lines.iter();
        let mut lines: Vec<_> = lines
            .map(|(owner, usage)| (owner.clone(), *usage.lock()))
            .filter(|(_, usage)| !usage.is_spare(now))
            .collect();
        drop(state);
        lines.sort_by_key(|(_, usage)| {
            std::cmp::Reverse((usage.streams, usage.conversions, usage.bytes_under_way))
        });
        lines.truncate(most);
        lines
    }
}

fn count(limit: NonZeroUsize) -> u64 {
    limit.get() as u64
}

impl Held {
    pub(super) fn kind(&self) -> Kind {
        self.table.kind
    }

    /// Takes the bytes of an answer too. One answer may have more than the limit, if it is the only
    /// one.
    pub(super) fn send(&mut self, bytes: u64) -> Result<(), Exceeded> {
        let Some(most) = self.table.limits.bytes_under_way else {
            return Ok(());
        };
        let mut usage = self.line.lock();
        let sum = usage.bytes_under_way.saturating_add(bytes);
        if usage.bytes_under_way > 0 && sum > most.as_u64() {
            return Err(Exceeded::soon("bytes-under-way"));
        }
        self.bytes += sum - usage.bytes_under_way;
        usage.bytes_under_way = sum;
        Ok(())
    }
}

impl Exceeded {
    fn soon(budget: &'static str) -> Self {
        Self {
            budget,
            retry_after: SOON,
        }
    }
}

impl State {
    /// The line of the owner, or the one of all others if there is no room for it.
    fn line(&mut self, owner: &Owner, now: Instant, max_lines: usize) -> Line {
        if let Some(line) = self.lines.get(owner) {
            return Arc::clone(line);
        }
        let is_due = self
            .tidied
            .is_none_or(|tidied| now.duration_since(tidied) >= TIDY_EVERY);
        if self.lines.len() >= max_lines && is_due {
            self.tidied = Some(now);
            let is_held = |line: &Line| Arc::strong_count(line) > 1;
            self.lines
                .retain(|_, line| is_held(line) || !line.lock().is_spare(now));
        }
        let owner = if self.lines.len() < max_lines {
            owner.clone()
        } else {
            Owner::Others
        };
        Arc::clone(self.lines.entry(owner).or_default())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut usage = self.line.lock();
        usage.streams -= self.streams;
        usage.conversions -= self.conversions;
        usage.bytes_under_way -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::num::NonZeroU32;

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
        let table = Table::new(Kind::Identity, &limits());
        let held = [
            table.enter(&user("a")).unwrap(),
            table.enter(&user("a")).unwrap(),
        ];
        assert_eq!(table.enter(&user("a")).unwrap_err().budget, "streams");
        let other = table.enter(&user("b")).unwrap();
        let conversion = table.convert(&user("a")).unwrap();
        assert_eq!(table.convert(&user("a")).unwrap_err().budget, "conversions");
        assert_eq!(table.busiest(1)[0].0, user("a"));
        let parts = [
            ("streams", 1.0),
            ("conversions", 1.0),
            ("bytes-under-way", 0.0),
        ];
        assert_eq!(table.highest_use(), parts);
        drop((held, other, conversion));
        assert!(table.busiest(9).is_empty(), "all is given back");
    }

    #[test]
    fn one_answer_may_be_larger_than_the_limit_and_two_may_not() {
        let limits = BudgetConfig {
            streams: None,
            ..limits()
        };
        let table = Table::new(Kind::Identity, &limits);
        let [mut large, mut other, mut third] = [(); 3].map(|()| table.enter(&user("a")).unwrap());
        large.send(1000).unwrap();
        assert_eq!(other.send(1).unwrap_err().budget, "bytes-under-way");
        drop(large);
        other.send(60).unwrap();
        third.send(40).unwrap();
        assert!(third.send(1).is_err());
    }

    #[test]
    fn a_refused_request_uses_nothing() {
        let limits = BudgetConfig {
            requests: NonZeroU32::new(1),
            burst: NonZeroU32::new(1),
            ..limits()
        };
        let table = Table::new(Kind::Identity, &limits);
        drop(table.enter(&user("a")).unwrap());
        let first = table.enter(&user("a")).unwrap_err();
        let second = table.enter(&user("a")).unwrap_err();
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
        let table = Table::with_lines(Kind::Address, &limits, 1000);
        let known = table.enter(&user("known")).unwrap();
        let mut refused = 0;
        for number in 0..1_000_000 {
            refused += usize::from(table.enter(&address(number)).is_err());
        }
        let lines = table.state.lock().lines.len();
        assert!(lines <= 1001, "{lines}");
        assert!(
            refused > 900_000,
            "those without a line share one: {refused}"
        );
        let held = table.state.lock().lines[&user("known")].lock().streams;
        assert_eq!(held, 1, "who is active keeps the line");
        drop(known);
    }
}
