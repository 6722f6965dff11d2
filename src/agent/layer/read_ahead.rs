//! How many bytes around a missed chunk are fetched along with it.
//!
//! ```text
//! a new reader          ├─ 128 KiB ─┤ chunk ├─ 128 KiB ─┤
//! a sequential reader               │ chunk ├─ twice as much as the last time ─┤
//! jumps within a file   ├─ more after each ─┤ chunk ├─ the same ─┤
//! a large file          ├─ 2 MiB ─┤ chunk ├─ 2 MiB ─┤
//! ```
//!
//! Most files of a start are small and read once, so a new reader gets little. A large executable
//! is different: its pages are read here and there for as long as the start takes, each miss costs a
//! round trip, and most of it is read in the end. If the profile says which parts of files are read,
//! a miss is an exception, and what lies around it is fetched already if it is needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use estargz::toc::NodeId;
use parking_lot::Mutex;

/// Bytes for a new reader, after its chunk and before it. Together they are as much as 100 Mbit/s
/// carry in a round trip of 20 ms, so another request would take as long. A program jumps back and
/// forth among the files of a directory, which lie side by side.
const FIRST_WINDOW: u64 = 128 << 10;
/// The window of a file in which readers jump.
const UNFORESEEN: Growth = Growth {
    jumps: 1,
    most: 2 << 20,
};
/// Bytes of the smallest file that gets the whole window at its first miss.
const LARGE: u64 = 16 << 20;
/// The same if the parts that a start reads are known. With more, a start fetches half as much
/// again, since it misses a few parts that the profile is about to bring.
const FORESEEN: Growth = Growth {
    jumps: 2,
    most: 512 << 10,
};
/// Readers whose position is remembered: more than read one layer sequentially at the same time.
const MAX_READERS: usize = 8;
/// Files whose jumps are counted: more than a start reads at the same time.
const MAX_FILES: usize = 16;
/// Most chunks that a reader may skip and still count as sequential.
const MAX_SKIP: u32 = 8;

/// The readers of one layer.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    is_foreseen: AtomicBool,
    state: Mutex<State>,
}

/// How the window of a file grows with the jumps in it.
#[derive(Debug, Clone, Copy)]
struct Growth {
    /// Jumps after which it doubles.
    jumps: u32,
    /// Most bytes on either side.
    most: u64,
}

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

/// The file that a missed chunk belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missed {
    pub(super) file: NodeId,
    /// Its bytes.
    pub(super) size: u64,
}

/// The bytes to fetch around a missed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: u64,
    pub(super) after: u64,
}

impl Growth {
    /// Returns the window after so many jumps.
    fn window(self, jumps: u32) -> u64 {
        self.most
            .min(FIRST_WINDOW << (jumps / self.jumps).min(u64::BITS / 4))
    }
}

impl ReadAhead {
    /// From now on, the parts of files that are read are known, and prefetched.
    pub(super) fn foresee(&self) {
        self.is_foreseen.store(true, Ordering::Relaxed);
    }

    /// Returns how much to fetch around the missed chunk `first` of a file. A sequential reader gets
    /// at most `most` bytes.
    pub(super) fn around(&self, first: u32, missed: Option<Missed>, most: u64) -> Around {
        let mut state = self.state.lock();
        if let Some(reader) = state.take_reader(first) {
            return Around {
                before: 0,
                after: (reader.window * 2).min(most),
            };
        }
        let jumps = missed.map_or(0, |missed| state.jump(missed.file));
        let is_large = missed.is_some_and(|missed| missed.size >= LARGE);
        let window = if self.is_foreseen.load(Ordering::Relaxed) {
            FORESEEN.window(jumps)
        } else if is_large {
            UNFORESEEN.most
        } else {
            UNFORESEEN.window(jumps)
        };
        Around {
            before: window,
            after: window,
        }
    }

    /// Remembers a reader that will read the chunk `next`, for which `window` bytes were fetched.
    pub(super) fn expect(&self, next: u32, window: u64) {
        let mut state = self.state.lock();
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

    #[expect(clippy::unnecessary_wraps, reason = "as the caller has it")]
    fn missed(file: u32) -> Option<Missed> {
        let file = NodeId(file);
        Some(Missed {
            file,
            size: 1 << 20,
        })
    }

    fn both(window: u64) -> Around {
        Around {
            before: window,
            after: window,
        }
    }

    #[test]
    fn a_sequential_reader_gets_twice_as_much_each_time() {
        let ahead = ReadAhead::default();
        let file = missed(1);
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
        for growth in [UNFORESEEN, FORESEEN] {
            let ahead = ReadAhead::default();
            if growth.most == FORESEEN.most {
                ahead.foresee();
            }
            let mut expected = FIRST_WINDOW;
            for jump in 0..40 {
                let around = ahead.around(1000 * jump, missed(7), MOST);
                assert_eq!(around, both(expected), "{jump}");
                if jump % growth.jumps == growth.jumps - 1 {
                    expected = (expected * 2).min(growth.most);
                }
                let other = ahead.around(1000 * jump + 500, missed(jump + 100), MOST);
                assert_eq!(other, both(FIRST_WINDOW), "another file");
            }
        }
    }

    #[test]
    fn a_large_file_gets_much_at_once_unless_its_reads_are_known() {
        let ahead = ReadAhead::default();
        let large = |file| {
            let file = NodeId(file);
            Some(Missed { file, size: LARGE })
        };
        assert_eq!(ahead.around(10, large(1), MOST), both(UNFORESEEN.most));
        ahead.foresee();
        assert_eq!(ahead.around(1000, large(2), MOST), both(FIRST_WINDOW));
    }

    #[test]
    fn little_is_remembered() {
        let ahead = ReadAhead::default();
        for number in 0..1000 {
            ahead.around(1_000_000 + 100 * number, missed(number), MOST);
            ahead.expect(100 * number, FIRST_WINDOW);
        }
        let state = ahead.state.lock();
        assert_eq!(
            (state.readers.len(), state.jumps.len()),
            (MAX_READERS, MAX_FILES)
        );
    }
}
