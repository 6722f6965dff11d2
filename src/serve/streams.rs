//! A clock for each stream: an answer that its client does not read is cancelled.
//!
//! The watch on the socket detects a client that reads nothing at all. Over HTTP/2 a client can
//! stop one stream and continue with others, or with pings, for ever. hyper then never polls that
//! answer's body again, so the body cannot notice. Each stream therefore runs in a task that knows
//! when its body was last polled. When that is too long ago the task ends, which resets the stream
//! and frees its resources. Over HTTP/1 the stream is the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::telemetry::metrics;

tokio::task_local! {
    /// The clock of the stream that this task serves.
    static CLOCK: Arc<Clock>;
}

/// The time since which a stream's client has not shown that it reads the answer.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    owing: Mutex<Option<Instant>>,
}

impl Clock {
    /// The clock of the stream that this task serves.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CLOCK.try_with(Arc::clone).ok()
    }

    /// Called when a piece of the body is passed on. hyper polls for the next one after the client
    /// has read it.
    pub(crate) fn start(&self) {
        self.set(Some(Instant::now()));
    }

    /// Called when the body is polled again, or has ended.
    pub(crate) fn stop(&self) {
        self.set(None);
    }

    fn set(&self, owing: Option<Instant>) {
        *self.owing.lock() = owing;
    }

    fn owing(&self) -> Option<Instant> {
        *self.owing.lock()
    }
}

/// Spawns hyper's tasks for the streams of a connection, each with its own clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Executor {
    pub(super) limit: Duration,
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Timed::new(stream, self.limit));
    }
}

/// A future under a clock. It ends without an output when the clock has run for too long.
pub(super) struct Timed<F> {
    inner: Pin<Box<F>>,
    clock: Arc<Clock>,
    limit: Duration,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Timed<F> {
    pub(super) fn new(inner: F, limit: Duration) -> Self {
        Self {
            inner: Box::pin(inner),
            clock: Arc::default(),
            limit,
            patience: None,
        }
    }

    /// The future itself.
    pub(super) fn inner(&mut self) -> Pin<&mut F> {
        self.inner.as_mut()
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if CLOCK
            .sync_scope(Arc::clone(&this.clock), || {
                this.inner.as_mut().poll(context)
            })
            .is_ready()
        {
            return Poll::Ready(());
        }
        let Some(owing) = this.clock.owing() else {
            return Poll::Pending;
        };
        let deadline = owing + this.limit;
        let patience = this
            .patience
            .get_or_insert_with(|| Box::pin(sleep(this.limit)));
        if patience.deadline() != deadline {
            patience.as_mut().reset(deadline);
        }
        ready!(patience.as_mut().poll(context));
        metrics().streams_stalled.inc();
        tracing::info!(limit = ?this.limit, "breaking off: the client took nothing of an answer for too long");
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts and stops its stream's clock at each step, and never ends.
    async fn answering(mut steps: tokio::sync::mpsc::Receiver<bool>) {
        let clock = Clock::current().unwrap();
        while let Some(is_owing) = steps.recv().await {
            if is_owing {
                clock.start()
            } else {
                clock.stop()
            }
        }
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_client_reads_nothing_for_too_long() {
        let limit = Duration::from_millis(30);
        let start = || {
            let (steps, received) = tokio::sync::mpsc::channel(1);
            let stream = tokio::spawn(Timed::new(answering(received), limit));
            (steps, stream)
        };
        let (steps, stream) = start();
        for is_owing in [true, false, true, false] {
            steps.send(is_owing).await.unwrap();
        }
        let (later_steps, later) = start();
        later_steps.send(true).await.unwrap();
        later.await.unwrap();
        assert!(
            !stream.is_finished(),
            "waiting for the upstream does not count against the client"
        );
        steps.send(true).await.unwrap();
        stream.await.unwrap();
    }
}
