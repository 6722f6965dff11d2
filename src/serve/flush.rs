//! When the bytes of an answer over HTTP/1 have left this process.
//!
//! hyper drops a body as soon as its last piece is in the connection's buffer. If the client reads
//! nothing, the piece waits there, and the request must keep its place among the running ones:
//!
//! ```text
//! body ─ last piece ▶ hyper's buffer ─ write ▶ flush ▶ place free, access line
//!   └ dropped: `Flushes::wait`           └ connection ends ▶ place free, line says "cut"
//! ```

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Called once: with `true` when all bytes are written, with `false` when the connection has ended
/// before.
type Settle = Box<dyn FnOnce(bool) + Send>;

/// The flushes of one connection.
#[derive(Default)]
pub(crate) struct Flushes(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    /// At most one, except for clients that send requests before they have read the last answer.
    waiting: Vec<Settle>,
}

impl Flushes {
    /// The number of flushes so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.lock().count
    }

    /// Calls `settle` at the end of the next flush, or at once if there was one since `count`.
    pub(crate) fn wait(&self, count: u64, settle: impl FnOnce(bool) + Send + 'static) {
        let mut state = self.0.lock();
        if state.count == count {
            state.waiting.push(Box::new(settle));
        } else {
            drop(state);
            settle(true);
        }
    }

    fn settle(&self, is_flushed: bool) {
        let waiting = {
            let mut state = self.0.lock();
            state.count += 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|settle| settle(is_flushed));
    }
}

impl fmt::Debug for Flushes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flushes").field(&self.count()).finish()
    }
}

/// A connection that reports its flushes, and its end.
#[derive(Debug)]
pub(super) struct Reported<S> {
    stream: S,
    flushes: Arc<Flushes>,
}

impl<S> Reported<S> {
    pub(super) fn new(stream: S, flushes: Arc<Flushes>) -> Self {
        Self { stream, flushes }
    }
}

impl<S> Drop for Reported<S> {
    fn drop(&mut self) {
        self.flushes.settle(false);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Reported<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            this.flushes.settle(true);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reported<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_settled_by_the_flush_after_it_or_by_the_end() {
        let flushes = Arc::<Flushes>::default();
        let (client, _server) = tokio::io::duplex(16);
        let mut stream = Reported::new(client, Arc::clone(&flushes));
        let (settled, seen) = mpsc::channel();
        let wait = |count| {
            let settled = settled.clone();
            flushes.wait(count, move |is_flushed| settled.send(is_flushed).unwrap());
        };
        wait(flushes.count());
        assert!(seen.try_recv().is_err(), "nothing was flushed yet");
        stream.flush().await.unwrap();
        assert_eq!(seen.try_recv(), Ok(true));
        let before = flushes.count();
        stream.flush().await.unwrap();
        wait(before);
        assert_eq!(seen.try_recv(), Ok(true), "flushed before it was dropped");
        wait(flushes.count());
        drop(stream);
        assert_eq!(seen.try_recv(), Ok(false));
    }
}
