//! Parses and hashes data from clients and registries off the runtime's threads, if that may take
//! long.
//!
//! Parsing a document of some MiB takes tens of milliseconds. During that time a thread of the
//! runtime answers nobody else. As many of these documents as there are threads would stop all
//! answers. Short data is processed at once, because the handover to another thread costs more than
//! the work.

use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Bytes that are parsed or hashed in a fraction of a millisecond.
const MOMENT: usize = 64 << 10;
/// The number of concurrent jobs for each processor. More would only slow down those that run.
const FOR_EACH_PROCESSOR: usize = 2;

static SLOTS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(available_parallelism().map_or(1, usize::from) * FOR_EACH_PROCESSOR)
});

/// Runs `work`, which processes `bytes` bytes of untrusted data. Small work runs at once, large
/// work on a blocking thread in the order of the calls.
///
/// Large work continues if the caller stops waiting. A panic in `work` is raised in the caller.
pub async fn aside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= MOMENT {
        return work();
    }
    // The semaphore is never closed.
    let slot = SLOTS.acquire().await;
    let done = spawn_blocking(move || {
        let done = work();
        drop(slot);
        done
    });
    match done.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_ended) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn large_work_runs_on_another_thread_and_small_work_at_once() {
        let here = current().id();
        assert_eq!(aside(MOMENT, || current().id()).await, here);
        assert_ne!(aside(MOMENT + 1, || current().id()).await, here);
    }

    #[tokio::test]
    async fn a_panic_reaches_the_caller() {
        let broken = tokio::spawn(aside(MOMENT + 1, || -> () { panic!("broken") })).await;
        assert!(broken.unwrap_err().is_panic());
    }
}
