//! The states of a layer's chunks in memory: five bytes for each.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::map::State;

/// Set in a state: the content was compared with its digest since this process began.
const CHECKED: u8 = 1 << 2;
const STATE: u8 = CHECKED - 1;

/// The states of all chunks. Holes are always absent.
#[derive(Debug)]
pub(super) struct Chunks {
    states: Box<[AtomicU8]>,
    /// The time of the last use, on the clock of all data files.
    used: Box<[AtomicU32]>,
    held: AtomicU64,
    held_bytes: AtomicU64,
    doubtful: AtomicU64,
}

/// The state of a chunk, and whether its content was compared with its digest since this process
/// began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Presence {
    pub(super) state: State,
    pub(super) is_checked: bool,
}

impl Chunks {
    pub(super) fn absent(count: u32) -> Self {
        Self {
            states: (0..count).map(|_| AtomicU8::default()).collect(),
            used: (0..count).map(|_| AtomicU32::default()).collect(),
            held: AtomicU64::default(),
            held_bytes: AtomicU64::default(),
            doubtful: AtomicU64::default(),
        }
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, number: u32) -> Presence {
        let byte = self.states.get(number as usize);
        byte.map_or(Presence::ABSENT, |byte| {
            Presence::of(byte.load(Ordering::SeqCst))
        })
    }

    pub(super) fn holds(&self, number: u32) -> bool {
        self.get(number).state != State::Absent
    }

    /// Sets the state of a chunk with `bytes` of content. Returns the state before.
    pub(super) fn set(&self, number: u32, presence: Presence, bytes: u64) -> State {
        let Some(byte) = self.states.get(number as usize) else {
            return State::Absent;
        };
        let before = Presence::of(byte.swap(presence.byte(), Ordering::SeqCst)).state;
        let is_held = |state| state != State::Absent;
        count(&self.held, is_held(before), is_held(presence.state), 1);
        count(
            &self.held_bytes,
            is_held(before),
            is_held(presence.state),
            bytes,
        );
        let is_doubtful = |state| state == State::Doubtful;
        count(
            &self.doubtful,
            is_doubtful(before),
            is_doubtful(presence.state),
            1,
        );
        before
    }

    /// Notes that the content was compared with its digest. Does nothing if the chunk is in another
    /// state than `state`.
    pub(super) fn set_checked(&self, number: u32, state: State) {
        if let Some(byte) = self.states.get(number as usize) {
            let (plain, checked) = (state as u8, state as u8 | CHECKED);
            // It lost a race with an eviction or with another reader.
            let _other = byte.compare_exchange(plain, checked, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Has every chunk compared with its digest again.
    pub(super) fn forget_checks(&self) {
        for byte in &self.states {
            byte.fetch_and(STATE, Ordering::SeqCst);
        }
    }

    pub(super) fn touch(&self, number: u32, now: u32) {
        if let Some(used) = self.used.get(number as usize) {
            used.store(now, Ordering::Relaxed);
        }
    }

    /// Returns the numbers of the chunks that are held, each with the time of its last use.
    pub(super) fn held_with_use(&self) -> impl Iterator<Item = (u32, u32)> {
        let held = (0..self.len()).filter(|number| self.holds(*number));
        held.map(|number| (number, self.used[number as usize].load(Ordering::Relaxed)))
    }

    pub(super) fn with_state(&self, state: State) -> Vec<u32> {
        (0..self.len())
            .filter(|number| self.get(*number).state == state)
            .collect()
    }

    /// Returns the number of chunks that are held.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns the bytes of content of the chunks that are held.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of chunks whose content may be torn.
    pub(super) fn doubtful(&self) -> u64 {
        self.doubtful.load(Ordering::Relaxed)
    }
}

impl Presence {
    pub(super) const ABSENT: Self = Self::unchecked(State::Absent);

    pub(super) const fn checked(state: State) -> Self {
        Self {
            state,
            is_checked: true,
        }
    }

    pub(super) const fn unchecked(state: State) -> Self {
        Self {
            state,
            is_checked: false,
        }
    }

    fn of(byte: u8) -> Self {
        let state = match byte & STATE {
            1 => State::Doubtful,
            2 => State::Written,
            3 => State::Durable,
            _ => State::Absent,
        };
        Self {
            state,
            is_checked: byte & CHECKED != 0,
        }
    }

    fn byte(self) -> u8 {
        self.state as u8 | if self.is_checked { CHECKED } else { 0 }
    }
}

fn count(counter: &AtomicU64, before: bool, after: bool, weight: u64) {
    match (before, after) {
        (false, true) => counter.fetch_add(weight, Ordering::Relaxed),
        (true, false) => counter.fetch_sub(weight, Ordering::Relaxed),
        (true, true) | (false, false) => 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_states() {
        let chunks = Chunks::absent(3);
        let set = |number, state| chunks.set(number, Presence::unchecked(state), 10);
        assert_eq!(set(0, State::Written), State::Absent);
        assert_eq!(set(1, State::Doubtful), State::Absent);
        assert_eq!(set(0, State::Durable), State::Written);
        assert_eq!(
            (chunks.held(), chunks.held_bytes(), chunks.doubtful()),
            (2, 20, 1)
        );
        assert_eq!(set(1, State::Absent), State::Doubtful);
        assert_eq!(
            (chunks.held(), chunks.held_bytes(), chunks.doubtful()),
            (1, 10, 0)
        );
        assert_eq!(
            set(9, State::Written),
            State::Absent,
            "there is no such chunk"
        );
        assert_eq!(chunks.held(), 1);
    }

    #[test]
    fn a_check_does_not_outlive_the_content_that_was_checked() {
        let chunks = Chunks::absent(1);
        chunks.set(0, Presence::unchecked(State::Written), 1);
        chunks.set_checked(0, State::Written);
        assert_eq!(chunks.get(0), Presence::checked(State::Written));
        chunks.set(0, Presence::ABSENT, 1);
        chunks.set_checked(0, State::Written);
        assert_eq!(chunks.get(0), Presence::ABSENT);
    }
}
