//! Worker threads that compress members, shared by every layer being written, under one byte
//! budget.
//!
//! ```text
//! write ─ Batch ▶ queue ▶ worker: digest each chunk, compress each member ▶ Ticket ─ write, in order
//! ```
//! A batch reserves its bytes before it is filled and returns them when its members are written. A
//! layer blocks for bytes only if it holds none, so layers that share the budget cannot wait for
//! each other.

mod batch;
mod encoder;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

pub(crate) use batch::{Batch, Compressed, Reservation};
use encoder::Encoders;
pub(crate) use encoder::{Encoder, Failed};

use crate::write::Compression;

/// The share of the budget for unused buffers: enough for the batches of one layer.
const SPARE_SHARE: usize = 4;

/// Worker threads and the bytes that they may hold. Dropping it waits for the members being
/// compressed.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    has_work: Condvar,
    budget: Budget,
    spare: Mutex<Spare>,
    threads: usize,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

/// Buffers for the next batches. New ones would cost a page fault for every page of every batch.
#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

#[derive(Debug)]
struct Budget {
    limit: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

#[derive(Debug)]
struct Job {
    batch: Batch,
    compression: Compression,
    slot: Arc<Slot>,
}

/// The result of one batch, once there is one.
#[derive(Debug, Default)]
struct Slot {
    result: Mutex<Option<Result<Compressed, Failed>>>,
    arrived: Condvar,
}

/// The right to the result of a batch. Dropping it makes the workers skip the batch.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Slot>);

impl Pool {
    /// Starts `threads` workers that together hold at most about `budget` bytes of members, and a
    /// quarter of that in unused buffers.
    ///
    /// A batch larger than the budget is compressed too, while no other is.
    pub fn new(threads: NonZeroUsize, budget: usize) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            has_work: Condvar::new(),
            budget: Budget {
                limit: budget,
                free: Mutex::new(budget),
                freed: Condvar::new(),
            },
            spare: Mutex::default(),
            threads: threads.get(),
        });
        let start = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        };
        let workers = (0..threads.get()).map(start).collect();
        Self { shared, workers }
    }

    /// Returns a batch for `bytes` bytes if the budget has them now.
    pub(crate) fn try_open(&self, bytes: usize) -> Option<Batch> {
        let reservation = Reservation::try_take(&self.shared, bytes)?;
        Some(self.batch(bytes, reservation))
    }

    /// Waits until the budget has `bytes` bytes and returns a batch for them. The caller must hold
    /// no other.
    pub(crate) fn open(&self, bytes: usize) -> Batch {
        let reservation = Reservation::take(&self.shared, bytes);
        self.batch(bytes, reservation)
    }

    fn batch(&self, bytes: usize, reservation: Reservation) -> Batch {
        Batch::new(self.shared.buffer(), bytes, reservation)
    }

    /// Returns how many batches of one layer keep every worker busy. More would only hold memory.
    pub(crate) fn enough_batches(&self) -> usize {
        2 * self.shared.threads + 2
    }

    /// Adds a batch to the queue.
    pub(crate) fn submit(&self, batch: Batch, compression: Compression) -> Ticket {
        let slot = Arc::new(Slot::default());
        let ticket = Ticket(Arc::clone(&slot));
        let job = Job {
            batch,
            compression,
            slot,
        };
        if cfg!(fuzzing) {
            // A switch to another thread takes longer than most inputs of libFuzzer.
            self.shared.run(job, &mut Encoders::default());
        } else {
            self.shared.queue.lock().jobs.push_back(job);
            self.shared.has_work.notify_one();
        }
        ticket
    }

    /// Returns the memory of a written batch.
    pub(crate) fn recycle(&self, compressed: Compressed) {
        self.shared.recycle(compressed.into_buffer());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.has_work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics of its jobs, so the result of its thread says nothing.
            drop(worker.join());
        }
    }
}

impl Ticket {
    pub(crate) fn is_ready(&self) -> bool {
        self.0.result.lock().is_some()
    }

    /// Waits for the batch.
    pub(crate) fn wait(self) -> Result<Compressed, Failed> {
        let mut result = self.0.result.lock();
        loop {
            match result.take() {
                Some(result) => return result,
                None => {
                    self.0.arrived.wait(&mut result);
                }
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut encoders = Encoders::default();
        while let Some(job) = self.next_job() {
            self.run(job, &mut encoders);
        }
    }

    fn run(&self, job: Job, encoders: &mut Encoders) {
        let is_abandoned = Arc::strong_count(&job.slot) == 1;
        if is_abandoned {
            return;
        }
        let Job {
            batch,
            compression,
            slot,
        } = job;
        let out = self.buffer();
        let work = AssertUnwindSafe(|| batch.compress(encoders.get(compression)?, out));
        let result = catch_unwind(work).unwrap_or_else(|_panic| {
            *encoders = Encoders::default();
            Err(Failed)
        });
        let result = result.map(|(compressed, data)| {
            self.recycle(data);
            compressed
        });
        *slot.result.lock() = Some(result);
        slot.arrived.notify_all();
    }

    fn next_job(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            match queue.jobs.pop_front() {
                Some(job) => return Some(job),
                None => {
                    self.has_work.wait(&mut queue);
                }
            }
        }
    }

    fn buffer(&self) -> Vec<u8> {
        let mut spare = self.spare.lock();
        let buffer = spare.buffers.pop().unwrap_or_default();
        spare.bytes -= buffer.capacity();
        buffer
    }

    fn recycle(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock();
        if spare.bytes + buffer.capacity() <= self.budget.limit / SPARE_SHARE {
            spare.bytes += buffer.capacity();
            spare.buffers.push(buffer);
        }
    }
}

impl Budget {
    fn try_take(&self, bytes: usize) -> bool {
        let mut free = self.free.lock();
        let fits = *free >= bytes;
        if fits {
            *free -= bytes;
        }
        fits
    }

    fn take(&self, bytes: usize) {
        let mut free = self.free.lock();
        while *free < bytes {
            self.freed.wait(&mut free);
        }
        *free -= bytes;
    }

    fn give_back(&self, bytes: usize) {
        *self.free.lock() += bytes;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 1 << 20;

    fn pool() -> Pool {
        Pool::new(NonZeroUsize::MIN, BUDGET)
    }

    #[test]
    fn a_worker_goes_on_after_a_failed_batch() {
        let pool = pool();
        let failed = pool.submit(pool.open(10), Compression::Gzip(99));
        assert_eq!(failed.wait().map(drop), Err(Failed));
        let mut batch = pool.open(10);
        batch.push(b"content");
        batch.add_chunk(7);
        let compressed = pool.submit(batch, Compression::Gzip(6)).wait().unwrap();
        assert_eq!(compressed.digest(0), Some(crate::Digest::of(b"content")));
    }

    #[test]
    fn the_budget_is_held_until_a_batch_is_written() {
        let pool = pool();
        let compressed = pool
            .submit(pool.open(BUDGET), Compression::Gzip(1))
            .wait()
            .unwrap();
        assert!(pool.try_open(1).is_none());
        pool.recycle(compressed);
        assert!(pool.try_open(1).is_some());
    }

    #[test]
    fn dropping_a_ticket_frees_the_bytes_of_its_batch() {
        let pool = pool();
        drop(pool.submit(pool.open(BUDGET), Compression::Gzip(1)));
        drop(pool.open(10 * BUDGET));
    }

    #[test]
    fn a_pool_ends_with_batches_still_queued() {
        let pool = pool();
        let tickets: Vec<Ticket> = (0..100)
            .map(|_| pool.submit(pool.open(100), Compression::Zstd(19)))
            .collect();
        drop(pool);
        drop(tickets);
    }
}
