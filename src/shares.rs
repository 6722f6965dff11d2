//! A limited resource, shared fairly between upstreams, and between requesters of one upstream.
//!
//! Each upstream has its own queue, free units go to the queues in turn, and one upstream never
//! holds more than its part. An upstream whose work does not end delays only its own work. Within a
//! queue each requester has a lane, and the lanes take turns: somebody who asks for one thing waits
//! for one thing of each other requester, not for all that they asked for before.
//!
//! Slots are granted first to work that somebody waits for. Work that was requested ahead gets the
//! slots that are left, and at most half of them, until somebody waits for it too.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

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

/// Whether work is awaited, or was requested ahead. Clones share it, so that somebody who needs
/// work that is under way can make it awaited.
#[derive(Debug, Clone, Default)]
pub struct Urgency(Option<Arc<watch::Sender<bool>>>);

/// Work that is awaited from its beginning.
static AWAITED: Urgency = Urgency(None);

impl Urgency {
    /// Work that nobody waits for yet.
    pub(crate) fn ahead() -> Self {
        Self(Some(Arc::new(watch::Sender::new(false))))
    }

    pub(crate) fn is_ahead(&self) -> bool {
        self.0.as_ref().is_some_and(|awaited| !*awaited.borrow())
    }

    /// Makes the work awaited, for good.
    pub(crate) fn promote(&self) {
        if let Some(awaited) = &self.0 {
            awaited.send_replace(true);
        }
    }

    /// Returns when the work is promoted; never if it is awaited from its beginning. Cancel safe.
    async fn promoted(&self) {
        if let Some(awaited) = &self.0
            && awaited
                .subscribe()
                .wait_for(|awaited| *awaited)
                .await
                .is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// The place of work in the queues.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) upstream: &'a str,
    pub(crate) requester: &'a str,
    pub(crate) urgency: &'a Urgency,
}

impl<'a> Turn<'a> {
    /// The turn of this program's own work for an upstream.
    pub(crate) fn of(upstream: &'a str) -> Self {
        Self {
            upstream,
            requester: "",
            urgency: &AWAITED,
        }
    }
}

/// Units that an upstream holds. They are returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    inner: Arc<Inner>,
    upstream: Arc<str>,
    units: u64,
    /// Whether the units were granted to work that nobody waited for.
    is_ahead: bool,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    total: u64,
    /// The most units that one upstream may hold.
    most: u64,
    /// The most units for work that nobody waits for; `None` if it is not distinguished.
    most_ahead: Option<u64>,
    slow: moka::sync::Cache<Arc<str>, ()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u64,
    held: HashMap<Arc<str>, u64>,
    held_ahead: u64,
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
    urgency: Urgency,
    since: Instant,
    granted: oneshot::Sender<Share>,
}

impl Shares {
    /// Creates shares of `bytes` bytes. One upstream may hold half of them.
    pub(crate) fn of_bytes(name: &'static str, bytes: u64) -> Self {
        Self::new(name, bytes, bytes.div_ceil(2), None)
    }

    /// Creates `slots` slots. If there are more than two, one is reserved for another upstream. Work
    /// that nobody waits for has at most half of them, and at least one.
    pub(crate) fn of_slots(name: &'static str, slots: usize) -> Self {
        let slots = slots as u64;
        let most = if slots > 2 { slots - 1 } else { slots };
        Self::new(name, slots, most, Some((slots / 2).max(1)))
    }

    fn new(name: &'static str, total: u64, most: u64, most_ahead: Option<u64>) -> Self {
        let slow = moka::sync::Cache::builder()
            .max_capacity(SLOW_UPSTREAMS)
            .time_to_live(SLOW_FOR)
            .build();
        let state = State {
            free: total,
            held: HashMap::new(),
            held_ahead: 0,
            queues: VecDeque::new(),
        };
        Self {
            inner: Arc::new(Inner {
                name,
                total,
                most,
                most_ahead,
                slow,
                state: Mutex::new(state),
            }),
        }
    }

    /// Takes `units` in this turn, waiting for it no longer than `patience`, or for as long as it
    /// takes while nobody waits for the work. Cancel safe.
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
        let (granted, mut share) = oneshot::channel();
        // Judged before the waiter is in the queue, so that no promotion is overlooked.
        let is_ahead = turn.urgency.is_ahead();
        let urgency = turn.urgency.clone();
        let since = Instant::now();
        let waiter = Waiter {
            units,
            urgency,
            since,
            granted,
        };
        self.inner.enqueue(turn, waiter);
        Inner::grant(&self.inner);
        if is_ahead {
            tokio::select! {
                biased;
                share = &mut share => return share.map_err(|_gone| full()),
                () = turn.urgency.promoted() => {}
            }
            // Units that were kept for awaited work may be free.
            Inner::grant(&self.inner);
        }
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

    /// Whether an upstream other than that of `turn` waits for units that others hold. Work that
    /// nobody waits for does not count against work that somebody waits for.
    pub(crate) fn is_wanted_by_another(&self, turn: Turn<'_>) -> bool {
        let state = self.inner.state.lock();
        let upstream = turn.upstream;
        let counts = |waiter: &Waiter| {
            !waiter.granted.is_closed() && (turn.urgency.is_ahead() || !waiter.urgency.is_ahead())
        };
        let waits = |queue: &Queue| {
            let mut waiters = queue.lanes.iter().flat_map(|lane| &lane.waiters);
            let head = waiters.find(|waiter| counts(waiter));
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
        self.inner.give_back(&self.upstream, surplus, self.is_ahead);
        Inner::grant(&self.inner);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner
            .give_back(&self.upstream, self.units, self.is_ahead);
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

    fn give_back(&self, upstream: &Arc<str>, units: u64, is_ahead: bool) {
        let mut state = self.state.lock();
        state.free += units;
        if is_ahead {
            state.held_ahead = state.held_ahead.saturating_sub(units);
        }
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
        while let Some((upstream, waiter, is_ahead)) = this.next() {
            let share = Share {
                inner: Arc::clone(this),
                upstream,
                units: waiter.units,
                is_ahead,
            };
            let _returned = waiter.granted.send(share);
        }
    }

    /// Returns the next waiter in turn, after taking its units, and whether nobody waits for it.
    fn next(&self) -> Option<(Arc<str>, Waiter, bool)> {
        let mut state = self.state.lock();
        let Some(most_ahead) = self.most_ahead else {
            let found = self.next_of(&mut state, &|_| true).found();
            return found.map(|(upstream, waiter)| (upstream, waiter, false));
        };
        match self.next_of(&mut state, &|waiter| !waiter.urgency.is_ahead()) {
            Next::Found(upstream, waiter) => return Some((upstream, waiter, false)),
            // Somebody waits for the next free units.
            Next::TooFew => return None,
            Next::None => {}
        }
        if state.held_ahead >= most_ahead {
            return None;
        }
        let (upstream, waiter) = self
            .next_of(&mut state, &|waiter| waiter.urgency.is_ahead())
            .found()?;
        state.held_ahead += waiter.units;
        Some((upstream, waiter, true))
    }

    /// Returns the next waiter in turn of those that `counts`, after taking its units.
    fn next_of(&self, state: &mut State, counts: &dyn Fn(&Waiter) -> bool) -> Next {
        for _ in 0..state.queues.len() {
            let Some(mut queue) = state.queues.pop_front() else {
                break;
            };
            if queue.is_empty() {
                continue;
            }
            let Some(units) = queue.next_units(counts) else {
                state.queues.push_back(queue);
                continue;
            };
            if state.held_by(&queue.upstream) + units > self.most_of(&queue.upstream) {
                state.queues.push_back(queue);
                continue;
            }
            if units > state.free {
                // The waiter keeps its turn. Otherwise smaller ones would overtake it for ever.
                state.queues.push_front(queue);
                return Next::TooFew;
            }
            let Some(waiter) = queue.pop(counts) else {
                continue;
            };
            let upstream = Arc::clone(&queue.upstream);
            state.free -= units;
            *state.held.entry(Arc::clone(&upstream)).or_default() += units;
            if !queue.lanes.is_empty() {
                state.queues.push_back(queue);
            }
            return Next::Found(upstream, waiter);
        }
        Next::None
    }
}

/// The outcome of a search for the next waiter.
enum Next {
    Found(Arc<str>, Waiter),
    /// A waiter is next for which too few units are free.
    TooFew,
    None,
}

impl Next {
    fn found(self) -> Option<(Arc<str>, Waiter)> {
        match self {
            Self::Found(upstream, waiter) => Some((upstream, waiter)),
            Self::TooFew | Self::None => None,
        }
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

    /// Drops the waiters that have left. Whether nobody is left.
    fn is_empty(&mut self) -> bool {
        for lane in &mut self.lanes {
            lane.waiters.retain(|waiter| !waiter.granted.is_closed());
        }
        self.lanes.retain(|lane| !lane.waiters.is_empty());
        self.lanes.is_empty()
    }

    /// The units of the next waiter in turn of those that `counts`.
    fn next_units(&self, counts: &dyn Fn(&Waiter) -> bool) -> Option<u64> {
        let mut waiters = self.lanes.iter().flat_map(|lane| &lane.waiters);
        Some(waiters.find(|waiter| counts(waiter))?.units)
    }

    /// Takes that waiter out. Its lane has had its turn.
    fn pop(&mut self, counts: &dyn Fn(&Waiter) -> bool) -> Option<Waiter> {
        let place = self
            .lanes
            .iter()
            .enumerate()
            .find_map(|(at, lane)| Some((at, lane.waiters.iter().position(counts)?)));
        let (at, number) = place?;
        let mut lane = self.lanes.remove(at)?;
        let waiter = lane.waiters.remove(number);
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

    fn turn<'a>(upstream: &'a str, urgency: &'a Urgency) -> Turn<'a> {
        Turn {
            urgency,
            ..Turn::of(upstream)
        }
    }

    #[tokio::test]
    async fn slots_go_to_awaited_work_before_work_that_was_requested_ahead() {
        let slots = Shares::of_slots("test", 1);
        let held = take_now(&slots, "c", 1).unwrap();
        let ahead = Urgency::ahead();
        let mut early = Box::pin(slots.take(turn("a", &ahead), 1, LONG));
        assert!((&mut early).now_or_never().is_none());
        assert!(!slots.is_wanted_by_another(Turn::of("c")));
        let mut late = Box::pin(slots.take(Turn::of("b"), 1, LONG));
        assert!((&mut late).now_or_never().is_none());
        assert!(slots.is_wanted_by_another(Turn::of("c")));
        drop(held);
        assert!((&mut early).now_or_never().is_none());
        let late = late.await.unwrap();
        assert!(
            !slots.is_wanted_by_another(Turn::of("b")),
            "only work ahead waits"
        );
        assert!(slots.is_wanted_by_another(turn("b", &ahead)));
        drop(late);
        drop(early.await.unwrap());
        assert_eq!(slots.inner.state.lock().held_ahead, 0);
    }

    #[tokio::test]
    async fn work_ahead_holds_half_of_the_slots_until_somebody_waits_for_it() {
        let slots = Shares::of_slots("test", 4);
        let works = [(); 3].map(|()| Urgency::ahead());
        let _first = slots.take(turn("a", &works[0]), 1, LONG).await.unwrap();
        let _second = slots.take(turn("b", &works[1]), 1, LONG).await.unwrap();
        let mut third = Box::pin(slots.take(turn("b", &works[2]), 1, LONG));
        assert!((&mut third).now_or_never().is_none(), "two slots are free");
        let live = take_now(&slots, "a", 1).unwrap();
        works[2].promote();
        let _third = third.await.unwrap();
        assert_eq!(slots.inner.state.lock().held_ahead, 2);
        assert!(take_now(&slots, "c", 1).is_none());
        drop(live);
        assert!(take_now(&slots, "c", 1).is_some());
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
        assert!(slots.is_wanted_by_another(Turn::of("a")));
        assert!(
            !slots.is_wanted_by_another(Turn::of("b")),
            "a waits for itself"
        );
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
        assert!(!slots.is_wanted_by_another(Turn::of("a")));
    }

    #[tokio::test]
    async fn one_requester_with_a_hundred_conversions_does_not_delay_another_with_one() {
        let slots = Shares::of_slots("test", 1);
        let turn = |requester| Turn {
            upstream: "a",
            requester,
            urgency: &AWAITED,
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
