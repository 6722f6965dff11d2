//! Work over others' data that may take more than a moment, done aside from the runtime's threads.
//!
//! A document of some MiB takes tens of milliseconds to parse, in which a thread of the runtime answers nobody else; as
//! many such documents as there are threads, and nothing is answered. Short ones are done at once: handing them over
//! costs more than they do.

use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Bytes that are parsed or hashed in a fraction of a millisecond.
const MOMENT: usize = 64 << 10;
/// How many such works run at once, for each processor. More would only take its time from those that run.
const FOR_EACH_PROCESSOR: usize = 2;

static SLOTS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(available_parallelism().map_or(1, usize::from) * FOR_EACH_PROCESSOR)
});

/// Does `work` over so many bytes of others' data: at once when they are few, aside in order of asking when not.
///
/// What is aside goes on when the caller stops waiting. A panic in it is the caller's.
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
    async fn much_is_done_on_another_thread_and_little_at_once() {
        let here = current().id();
        assert_eq!(aside(MOMENT, || current().id()).await, here);
        assert_ne!(aside(MOMENT + 1, || current().id()).await, here);
    }

    #[tokio::test]
    async fn a_panic_is_the_callers() {
        let broken = tokio::spawn(aside(MOMENT + 1, || -> () { panic!("broken") })).await;
        assert!(broken.unwrap_err().is_panic());
    }
}
