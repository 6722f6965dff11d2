//! The steps of a write at which tests end the writer, as `kill -9` would.

/// Marks the moment before a change of a file.
#[cfg(not(test))]
pub(in crate::agent) const fn step() {}

#[cfg(test)]
pub(in crate::agent) use steps::step;

#[cfg(test)]
pub(in crate::agent) mod steps {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    struct Killed;

    pub(in crate::agent) fn step() {
        match LEFT.get() {
            Some(0) => resume_unwind(Box::new(Killed)),
            Some(left) => LEFT.set(Some(left - 1)),
            None => {}
        }
    }

    /// Runs `work` and ends it after `steps` steps. Returns whether it was ended.
    pub(in crate::agent) fn is_killed_after(steps: u32, work: impl FnOnce()) -> bool {
        LEFT.set(Some(steps));
        let outcome = catch_unwind(AssertUnwindSafe(work));
        LEFT.set(None);
        match outcome {
            Ok(()) => false,
            Err(payload) if payload.is::<Killed>() => true,
            Err(payload) => resume_unwind(payload),
        }
    }
}
