//! The budget of one prediction. Every loop and every copy takes from it.
//!
//! An image's programs are untrusted input: a few lines of them can cause endless work. When the
//! fuel has ended, every loop ends and nothing more is found or read; the files named until then
//! are the prediction. Counts decide, not the clock, so the same image gives the same result on
//! every machine. The clock only ends work that no count foresaw.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Most steps: characters of scripts, names looked up, items of lists. A Python program with half
/// of the standard library takes less than half of them, as a test asserts.
const STEPS: u64 = 25_000_000;
/// Most bytes of texts, paths, words and lists that are created, whether or not they are kept.
const MADE: u64 = 256 << 20;
/// Most bytes inflated from layers, including texts and the headers of libraries.
const READ: u64 = 1 << 30;
/// Most files whose content is read to find further files, including libraries.
const FILES: u64 = 4096;
/// The longest duration: a backstop, far beyond the time that the counts take on a slow machine.
const TIME: Duration = Duration::from_secs(90);
/// Steps between two checks of the clock.
const STEPS_BETWEEN_LOOKS: u64 = 4096;
/// Bytes that are copied or scanned in the time of one step.
const BYTES_OF_STEP: u64 = 32;
/// Bytes of a list element besides its text.
const ELEMENT: usize = 32;

/// The reason why a prediction ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    Steps,
    Made,
    Read,
    Files,
    /// The list of files is full.
    Named,
    /// The clock decided: another run may have another result.
    Time,
    /// Bytes of the image were missing or wrong.
    Broken,
}

impl End {
    /// Whether the same image ends in the same place on every run.
    pub(crate) fn is_the_same_everywhere(self) -> bool {
        !matches!(self, Self::Time | Self::Broken)
    }
}

/// The rest of the budget for one image. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Fuel {
    left: Rc<Left>,
}

#[derive(Debug)]
struct Left {
    steps: Cell<u64>,
    made: Cell<u64>,
    read: Cell<u64>,
    files: Cell<u64>,
    look: Cell<u64>,
    until: Instant,
    ended: Cell<Option<End>>,
}

impl Fuel {
    /// Returns the budget for one image.
    pub(super) fn new() -> Self {
        Self::with(STEPS, MADE, READ, FILES, TIME)
    }

    fn with(steps: u64, made: u64, read: u64, files: u64, time: Duration) -> Self {
        let left = Left {
            steps: Cell::new(steps),
            made: Cell::new(made),
            read: Cell::new(read),
            files: Cell::new(files),
            look: Cell::new(STEPS_BETWEEN_LOOKS),
            until: Instant::now() + time,
            ended: Cell::new(None),
        };
        Self {
            left: Rc::new(left),
        }
    }

    /// Ends it, unless it has ended.
    pub(super) fn end(&self, why: End) {
        if self.left.ended.get().is_none() {
            self.left.ended.set(Some(why));
        }
    }

    /// Returns why it has ended.
    pub(super) fn ended(&self) -> Option<End> {
        self.left.ended.get()
    }

    pub(super) fn lasts(&self) -> bool {
        self.ended().is_none()
    }

    /// Whether this many steps may be taken. If so, they are counted.
    pub(super) fn burn(&self, steps: u64) -> bool {
        let look = self.left.look.get().saturating_sub(steps);
        self.left.look.set(look);
        if look == 0 {
            self.left.look.set(STEPS_BETWEEN_LOOKS);
            if Instant::now() >= self.left.until {
                self.end(End::Time);
            }
        }
        self.take(&self.left.steps, steps, End::Steps)
    }

    /// Whether this many bytes may be created. If so, they are counted, and the steps that they
    /// take.
    pub(super) fn make(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.burn(1 + bytes / BYTES_OF_STEP) && self.take(&self.left.made, bytes, End::Made)
    }

    /// Whether this many bytes may be scanned.
    pub(super) fn look_through(&self, bytes: usize) -> bool {
        self.burn(1 + bytes as u64 / BYTES_OF_STEP)
    }

    /// Whether one more file may be read.
    pub(super) fn open(&self) -> bool {
        self.take(&self.left.files, 1, End::Files)
    }

    /// Whether this many bytes may be inflated.
    pub(super) fn inflate(&self, bytes: u64) -> bool {
        self.burn(1 + bytes / BYTES_OF_STEP / 4) && self.take(&self.left.read, bytes, End::Read)
    }

    /// Returns the items until the fuel ends. Each takes one step.
    pub(super) fn each<I: IntoIterator>(&self, items: I) -> impl Iterator<Item = I::Item> + use<I> {
        let fuel = self.clone();
        items.into_iter().take_while(move |_| fuel.burn(1))
    }

    /// Copies a text for a list. The copy is empty once the fuel has ended.
    pub(super) fn copy(&self, text: &str) -> String {
        if self.make(text.len() + ELEMENT) {
            text.to_owned()
        } else {
            String::new()
        }
    }

    /// Copies texts until the fuel ends.
    pub(super) fn copies<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Vec<String> {
        let texts = self.each(texts).map(|text| self.copy(text));
        texts.take_while(|_| self.lasts()).collect()
    }

    fn take(&self, from: &Cell<u64>, amount: u64, end: End) -> bool {
        match from.get().checked_sub(amount) {
            Some(left) if self.lasts() => from.set(left),
            Some(_) => {}
            None => self.end(end),
        }
        self.lasts()
    }

    /// The whole budget and a hundred times the duration, for tests on busy machines.
    #[cfg(test)]
    pub(super) fn unhurried() -> Self {
        Self::with(STEPS, MADE, READ, FILES, 100 * TIME)
    }

    /// A tenth of the steps and a quarter of the bytes, for tests of many images.
    #[cfg(test)]
    pub(super) fn small() -> Self {
        Self::with(STEPS / 10, MADE / 4, READ, FILES, 100 * TIME)
    }

    /// Returns the steps and bytes that are left.
    #[cfg(test)]
    pub(super) fn left(&self) -> (u64, u64) {
        (self.left.steps.get(), self.left.made.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_exhausted_count_is_the_reason_and_stops_all_others() {
        let fuel = Fuel::with(10, 5, 5, 1, TIME);
        assert!(fuel.burn(3) && fuel.make(5) && fuel.open());
        assert!(!fuel.make(1));
        assert_eq!(fuel.ended(), Some(End::Made));
        assert!(!fuel.burn(1) && !fuel.open() && !fuel.inflate(1) && !fuel.look_through(0));
        assert_eq!(fuel.ended(), Some(End::Made));
        assert_eq!(fuel.each(0..9).count(), 0);
    }

    #[test]
    fn a_loop_ends_with_the_steps_and_a_list_with_the_bytes() {
        let fuel = Fuel::with(10, 1000, 0, 0, TIME);
        assert_eq!(
            (fuel.each(0..).count(), fuel.ended()),
            (10, Some(End::Steps))
        );
        let fuel = Fuel::with(1000, 100, 0, 0, TIME);
        assert_eq!(
            (fuel.copies(std::iter::repeat("abc")).len(), fuel.ended()),
            (2, Some(End::Made))
        );
    }

    #[test]
    fn only_counts_end_the_same_everywhere() {
        for end in [End::Steps, End::Made, End::Read, End::Files, End::Named] {
            assert!(end.is_the_same_everywhere(), "{end:?}");
        }
        assert!(!End::Time.is_the_same_everywhere() && !End::Broken.is_the_same_everywhere());
    }
}
