//! Worker threads that deflate members, shared by every layer being written, under one byte budget.

use std::num::NonZeroUsize;

/// Threads and the bytes they may hold in flight.
#[derive(Debug)]
pub struct Pool {}

impl Pool {
    /// Starts `threads` workers that together hold at most about `budget` bytes of members.
    pub fn new(_threads: NonZeroUsize, _budget: usize) -> Self {
        unimplemented!()
    }
}
