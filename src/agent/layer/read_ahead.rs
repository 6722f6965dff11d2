//! How many bytes around a missed chunk are fetched along with it.
//!
//! ```text
//! a new reader          ├─ 128 KiB ─┤ chunk ├─ 128 KiB ─┤
//! a sequential reader               │ chunk ├─ twice as much as the last time ─┤
//! jumps within a file   ├─ twice as much after every second ─┤ chunk ├─ the same ─┤
//! ```
//!
//! Most files of a start are small and read once, so a new reader gets little. A large executable
//! is different: its pages are read here and there for as long as the start takes, each miss costs a
//! round trip, and most of it is read in the end.

use std::collections::VecDeque;

use estargz::toc::NodeId;
use parking_lot::Mutex;

/// Bytes for a new reader, after its chunk and before it. Together they are as much as 100 Mbit/s
/// carry in a round trip of 20 ms, so another request would take as long. A program jumps back and
/// forth among the files of a directory, which lie side by side.
const FIRST_WINDOW: u64 = 128 << 10;
/// Bytes on either side for a file in which readers jump. With more, a start whose profile is known
/// fetches half as much again, since it misses a few parts that the profile is about to bring.
const MAX_JUMP_WINDOW: u64 = 512 << 10;
/// Jumps after which the window doubles.
const JUMPS_TO_GROW: u32 = 2;
/// Readers whose position is remembered: more than read one layer sequentially at the same time.
const MAX_READERS: usize = 8;
/// Files whose jumps are counted: more than a start reads at the same time.
const MAX_FILES: usize = 16;
/// Most chunks that a reader may skip and still count as sequential.
const MAX_SKIP: u32 = 8;

/// The readers of one layer.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    readers: VecDeque<Reader>,
    /// The files that were jumped in last, with the number of jumps.
    jumps: VecDeque<(NodeId, u32)>,
}

/// A sequential reader: the chunk that it will read next, and its read-ahead in bytes.
#[derive(Debug, Clone, Copy)]
struct Reader {
    next: u32,
    window: u64,
}

/// The bytes to fetch around a missed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: u64,
    pub(super) after: u64,
}

impl ReadAhead {
    /// Returns how much to fetch around the missed chunk `first` of `file`. A sequential reader gets
    /// at most `most` bytes.
    pub(super) fn around(&self, first: u32, file: Option<NodeId>, most: u64) -> Around {
        let mut state = self.0.lock();
        if let Some(reader) = state.take_reader(first) {
            return Around {
                before: 0,
                after: (reader.window * 2).min(most),
            };
        }
        let jumps = file.map_or(0, |file| state.jump(file));
        let window =
            MAX_JUMP_WINDOW.min(FIRST_WINDOW << (jumps / JUMPS_TO_GROW).min(u64::BITS / 4));
        Around {
            before: window,
            after: window,
        }
    }

    /// Remembers a reader that will read the chunk `next`, for which `window` bytes were fetched.
    pub(super) fn expect(&self, next: u32, window: u64) {
        let mut state = self.0.lock();
        state.readers.push_back(Reader { next, window });
        if state.readers.len() > MAX_READERS {
            state.readers.pop_front();
        }
    }
}

impl State {
    /// Removes and returns the reader that was expected to miss the chunk `first`.
    fn take_reader(&mut self, first: u32) -> Option<Reader> {
        let goes_on =
            |reader: &Reader| (reader.next..reader.next.saturating_add(MAX_SKIP)).contains(&first);
        let index = self.readers.iter().position(goes_on)?;
        self.readers.remove(index)
    }

    /// Counts a miss in a file that no reader was expected to have. Returns the number of those
    /// before.
    fn jump(&mut self, file: NodeId) -> u32 {
        let known = self.jumps.iter().position(|(known, _)| *known == file);
        let before = known.and_then(|index| self.jumps.remove(index));
        let count = before.map_or(0, |(_, count)| count);
        self.jumps.push_back((file, count.saturating_add(1)));
        if self.jumps.len() > MAX_FILES {
            self.jumps.pop_front();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;

    fn both(window: u64) -> Around {
        Around {
            before: window,
            after: window,
        }
    }

    #[test]
    fn a_sequential_reader_gets_twice_as_much_each_time() {
        let ahead = ReadAhead::default();
        let file = Some(NodeId(1));
        assert_eq!(ahead.around(10, file, MOST), both(FIRST_WINDOW));
        let mut window = FIRST_WINDOW;
        for step in 1..10 {
            ahead.expect(10 * step, window);
            let after = ahead.around(10 * step + MAX_SKIP - 1, file, MOST).after;
            assert_eq!(after, (window * 2).min(MOST));
            window = after;
        }
        ahead.expect(500, window);
        let skipped = ahead.around(500 + MAX_SKIP, None, MOST);
        assert_eq!(skipped, both(FIRST_WINDOW), "too far ahead");
    }

    #[test]
    fn a_file_that_is_jumped_in_gets_more_and_more() {
        let ahead = ReadAhead::default();
        let mut expected = FIRST_WINDOW;
        for jump in 0..40 {
            let around = ahead.around(1000 * jump, Some(NodeId(7)), MOST);
            assert_eq!(around, both(expected), "{jump}");
            if jump % JUMPS_TO_GROW == JUMPS_TO_GROW - 1 {
                expected = (expected * 2).min(MAX_JUMP_WINDOW);
            }
            let other = ahead.around(1000 * jump + 500, Some(NodeId(jump + 100)), MOST);
            assert_eq!(other, both(FIRST_WINDOW), "another file");
        }
    }

    #[test]
    fn little_is_remembered() {
        let ahead = ReadAhead::default();
        for number in 0..1000 {
            ahead.around(1_000_000 + 100 * number, Some(NodeId(number)), MOST);
            ahead.expect(100 * number, FIRST_WINDOW);
        }
        let state = ahead.0.lock();
        assert_eq!(
            (state.readers.len(), state.jumps.len()),
            (MAX_READERS, MAX_FILES)
        );
    }
}
