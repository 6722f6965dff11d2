//! A limited resource, shared fairly between upstreams, and between requesters of one upstream.
//!
//! Each upstream has its own queue, free units go to the queues in turn, and one upstream never
//! holds more than its part. An upstream whose work does not end delays only its own work. Within a
//! queue each requester has a lane, and the lanes take turns: somebody who asks for one thing waits
//! for one thing of each other requester, not for all that they asked for before.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::budget::Full;

/// How long an upstream that was slow is limited to one unit at a time.
pub(crate) const SLOW_FOR: Duration = Duration::from_secs(300);
/// The number of upstreams that are remembered as slow.
const SLOW_UPSTREAMS: u64 = 10_000;

/// A named number of units: slots or bytes. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    inner: Arc<Inner>,
}

/// The place of work in the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn<'a> {
    pub(crate) upstream: &'a str,
    pub(crate) requester: &'a str,
}

impl<'a> Turn<'a> {
    /// The turn of this program's own work for an upstream.
    pub(crate) fn of(upstream: &'a str) -> Self {
        Self {
            upstream,
            requester: "",
        }
    }
}

/// Units that an upstream holds. They are returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    inner: Arc<Inner>,
    upstream: Arc<str>,
    units: u64,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    total: u64,
    /// The most units that one upstream may hold.
    most: u64,
    slow: moka::sync::Cache<Arc<str>, ()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u64,
    held: HashMap<Arc<str>, u64>,
    /// In the order of their turns. No queue is empty.
    queues: VecDeque<Queue>,
}

#[derive(Debug)]
struct Queue {
    upstream: Arc<str>,
    /// In the order of their turns. No lane is empty.
    lanes: VecDeque<Lane>,
}

#[derive(Debug)]
struct Lane {
    requester: Box<str>,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    units: u64,
    since: Instant,
    granted: oneshot::Sender<Share>,
}

impl Shares {
    /// Creates shares of `bytes` bytes. One upstream may hold half of them.
    pub(crate) fn of_bytes(name: &'static str, bytes: u64) -> Self {
        Self::new(name, bytes, bytes.div_ceil(2))
    }

    /// Creates `slots` slots. If there are more than two, one is reserved for another upstream.
    pub(crate) fn of_slots(name: &'static str, slots: usize) -> Self {
        let slots = slots as u64;
        Self::new(name, slots, if slots > 2 { slots - 1 } else { slots })
    }

    fn new(name: &'static str, total: u64, most: u64) -> Self {
        let slow = moka::sync::Cache::builder()
            .max_capacity(SLOW_UPSTREAMS)
            .time_to_live(SLOW_FOR)
            .build();
        let state = State {
            free: total,
            held: HashMap::new(),
            queues: VecDeque::new(),
        };
        Self {
            inner: Arc::new(Inner {
                name,
                total,
                most,
                slow,
                state: Mutex::new(state),
            }),
        }
    }

    /// Takes `units` in this turn, waiting for it no longer than `patience`. Cancel safe.
    ///
    /// # Errors
    /// [`Full`] when the units were not free in time, or are more than one upstream may ever hold.
    pub(crate) async fn take(
        &self,
        turn: Turn<'_>,
        units: u64,
        patience: Duration,
    ) -> Result<Share, Full> {
        let full = || Full {
            name: self.inner.name,
            wanted: units,
            bytes: self.inner.total,
        };
        if units > self.inner.most {
            return Err(full());
        }
        let (granted, share) = oneshot::channel();
        let since = Instant::now();
        let waiter = Waiter {
            units,
            since,
            granted,
        };
        self.inner.enqueue(turn, waiter);
        Inner::grant(&self.inner);
        // The sender stays in the queue until the share is granted.
        tokio::time::timeout(patience, share)
            .await
            .map_err(|_elapsed| full())?
            .map_err(|_gone| full())
    }

    /// Limits `upstream` to one unit at a time for a while.
    pub(crate) fn slow_down(&self, upstream: &str) {
        self.inner.slow.insert(upstream.into(), ());
    }

    /// Returns how many wait, and how long the longest of them has waited.
    pub(crate) fn queue(&self) -> (usize, Duration) {
        let state = self.inner.state.lock();
        let lanes = state.queues.iter().flat_map(|queue| &queue.lanes);
        let waiters = lanes.flat_map(|lane| &lane.waiters);
        let waiting = waiters.filter(|waiter| !waiter.granted.is_closed());
        waiting.fold((0, Duration::ZERO), |(count, longest), waiter| {
            (count + 1, longest.max(waiter.since.elapsed()))
        })
    }

    /// Whether an upstream other than `upstream` waits for units that others hold.
    pub(crate) fn is_wanted_by_another(&self, upstream: &str) -> bool {
        let state = self.inner.state.lock();
        let waits = |queue: &Queue| {
            let mut waiters = queue.lanes.iter().flat_map(|lane| &lane.waiters);
            let head = waiters.find(|waiter| !waiter.granted.is_closed());
            head.is_some_and(|head| {
                state.held_by(&queue.upstream) + head.units <= self.inner.most_of(&queue.upstream)
            })
        };
        state
            .queues
            .iter()
            .any(|queue| *queue.upstream != *upstream && waits(queue))
    }
}

impl Share {
    /// Returns all but `units`.
    pub(crate) fn shrink_to(&mut self, units: u64) {
        let surplus = self.units.saturating_sub(units);
        self.units -= surplus;
        self.inner.give_back(&self.upstream, surplus);
        Inner::grant(&self.inner);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner.give_back(&self.upstream, self.units);
        Inner::grant(&self.inner);
    }
}

impl Inner {
    fn most_of(&self, upstream: &Arc<str>) -> u64 {
        if self.slow.contains_key(upstream) {
            1
        } else {
            self.most
        }
    }

    fn enqueue(&self, turn: Turn<'_>, waiter: Waiter) {
        let mut state = self.state.lock();
        let is_own = |queue: &&mut Queue| *queue.upstream == *turn.upstream;
        match state.queues.iter_mut().find(is_own) {
            Some(queue) => queue.push(turn.requester, waiter),
            None => {
                let mut queue = Queue {
                    upstream: turn.upstream.into(),
                    lanes: VecDeque::new(),
                };
                queue.push(turn.requester, waiter);
                state.queues.push_back(queue);
            }
        }
    }

    fn give_back(&self, upstream: &Arc<str>, units: u64) {
        let mut state = self.state.lock();
        state.free += units;
        if let Some(held) = state.held.get_mut(upstream) {
            *held = held.saturating_sub(units);
            if *held == 0 {
                state.held.remove(upstream);
            }
        }
    }

    /// Grants the free units. A waiter that left meanwhile drops its share, whose units are granted
    /// again.
    fn grant(this: &Arc<Self>) {
        while let Some((upstream, waiter)) = this.next() {
            let share = Share {
                inner: Arc::clone(this),
                upstream,
                units: waiter.units,
            };
            let _returned = waiter.granted.send(share);
        }
    }

    /// Returns the next waiter in turn, after taking its units.
    fn next(&self) -> Option<(Arc<str>, Waiter)> {
        let mut state = self.state.lock();
        for _ in 0..state.queues.len() {
            let mut queue = state.queues.pop_front()?;
            let Some(units) = queue.next_units() else {
                continue;
            };
            if state.held_by(&queue.upstream) + units > self.most_of(&queue.upstream) {
                state.queues.push_back(queue);
                continue;
            }
            if units > state.free {
                // The waiter keeps its turn. Otherwise smaller ones would overtake it for ever.
                state.queues.push_front(queue);
                return None;
            }
            let waiter = queue.pop()?;
            let upstream = Arc::clone(&queue.upstream);
            state.free -= units;
            *state.held.entry(Arc::clone(&upstream)).or_default() += units;
            if !queue.lanes.is_empty() {
                state.queues.push_back(queue);
            }
            return Some((upstream, waiter));
        }
        None
    }
}

impl Queue {
    fn push(&mut self, requester: &str, waiter: Waiter) {
        let is_own = |lane: &&mut Lane| *lane.requester == *requester;
        match self.lanes.iter_mut().find(is_own) {
            Some(lane) => lane.waiters.push_back(waiter),
            None => self.lanes.push_back(Lane {
                requester: requester.into(),
                waiters: VecDeque::from([waiter]),
            }),
        }
    }

    /// The units of the next waiter in turn; `None` if all have left.
    fn next_units(&mut self) -> Option<u64> {
        while let Some(lane) = self.lanes.front_mut() {
            let has_left = |waiter: &Waiter| waiter.granted.is_closed();
            while lane.waiters.front().is_some_and(has_left) {
                lane.waiters.pop_front();
            }
            if let Some(waiter) = lane.waiters.front() {
                return Some(waiter.units);
            }
            self.lanes.pop_front();
        }
        None
    }

    /// Takes the next waiter out. Its lane has had its turn.
    fn pop(&mut self) -> Option<Waiter> {
        let mut lane = self.lanes.pop_front()?;
        let waiter = lane.waiters.pop_front();
        if !lane.waiters.is_empty() {
            self.lanes.push_back(lane);
        }
        waiter
    }
}

impl State {
    fn held_by(&self, upstream: &Arc<str>) -> u64 {
        self.held.get(upstream).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn take_now(shares: &Shares, upstream: &str, units: u64) -> Option<Share> {
        shares
            .take(Turn::of(upstream), units, LONG)
            .now_or_never()
            .map(Result::unwrap)
    }

    #[tokio::test]
    async fn one_upstream_leaves_a_slot_to_others() {
        let slots = Shares::of_slots("test", 4);
        let held: Vec<_> = (0..3)
            .map(|_| take_now(&slots, "slow", 1).unwrap())
            .collect();
        assert!(take_now(&slots, "slow", 1).is_none());
        assert!(take_now(&slots, "other", 1).is_some());
        drop(held);
        assert!(take_now(&slots, "slow", 1).is_some());
    }

    #[tokio::test]
    async fn freed_units_go_to_upstreams_in_turn() {
        let slots = Shares::of_slots("test", 1);
        let held = take_now(&slots, "a", 1).unwrap();
        let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (upstream, number) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            let (slots, done) = (slots.clone(), done.clone());
            tokio::spawn(async move {
                let _slot = slots.take(Turn::of(upstream), 1, LONG).await.unwrap();
                done.send(number).unwrap();
            });
            tokio::task::yield_now().await;
        }
        assert!(slots.is_wanted_by_another("a"));
        assert!(!slots.is_wanted_by_another("b"), "a waits for itself");
        let (waiting, longest) = slots.queue();
        assert!(waiting == 4 && longest > Duration::ZERO, "{waiting}");
        drop(held);
        let mut got = Vec::new();
        for _ in 0..4 {
            got.push(order.recv().await.unwrap());
        }
        // The upstream that held the slot has had its turn.
        assert_eq!(got, [3, 1, 2, 4]);
        assert_eq!(slots.queue(), (0, Duration::ZERO));
        assert!(!slots.is_wanted_by_another("a"));
    }

    #[tokio::test]
    async fn one_requester_with_a_hundred_conversions_does_not_delay_another_with_one() {
        let slots = Shares::of_slots("test", 1);
        let turn = |requester| Turn {
            upstream: "a",
            requester,
        };
        let held = slots.take(turn("busy"), 1, LONG).await.unwrap();
        let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
        for requester in std::iter::repeat_n("busy", 100).chain(["modest", "third"]) {
            let (slots, done) = (slots.clone(), done.clone());
            tokio::spawn(async move {
                let _slot = slots.take(turn(requester), 1, LONG).await.unwrap();
                done.send(requester).unwrap();
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        let mut got = Vec::new();
        for _ in 0..4 {
            got.push(order.recv().await.unwrap());
        }
        assert_eq!(got, ["busy", "modest", "third", "busy"]);
    }

    #[tokio::test]
    async fn a_slow_upstream_gets_one_unit_at_a_time() {
        let slots = Shares::of_slots("test", 4);
        slots.slow_down("slow");
        let held = take_now(&slots, "slow", 1).unwrap();
        assert!(take_now(&slots, "slow", 1).is_none());
        drop(held);
        assert!(take_now(&slots, "slow", 1).is_some());
    }

    #[tokio::test]
    async fn waiters_that_left_take_nothing() {
        let bytes = Shares::of_bytes("test", 10);
        let mut held = take_now(&bytes, "a", 5).unwrap();
        assert!(bytes.take(Turn::of("a"), 5, Duration::ZERO).await.is_err());
        assert!(
            bytes.take(Turn::of("b"), 6, LONG).await.is_err(),
            "more than one upstream may hold"
        );
        held.shrink_to(2);
        assert!(take_now(&bytes, "a", 3).is_some());
        drop(held);
        let (a, b) = (take_now(&bytes, "a", 5), take_now(&bytes, "b", 5));
        assert!(a.is_some() && b.is_some(), "all of it is free");
    }
}
