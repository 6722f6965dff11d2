//! Closes the connections of clients that read nothing of their answers, because they would hold
//! their request's place indefinitely.
//!
//! The watch is on the socket, below TLS. Over HTTP/2 a client may stop one stream and continue
//! with others: see `streams`. A client that reads nothing at all does not answer the server's
//! pings either.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::telemetry::metrics;

/// A watched connection.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    client: SocketAddr,
    limit: Duration,
    /// Runs while a write waits for the client.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Watches a connection, which fails once nothing could be written for `limit`. Small writes are not
/// delayed.
pub(super) fn watch(stream: TcpStream, limit: Duration) -> io::Result<Watched> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    Ok(Watched {
        stream,
        client,
        limit,
        patience: None,
    })
}

impl Watched {
    /// Returns the outcome of a write, or an error if the client has used up its time.
    fn settle<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let limit = self.limit;
        ready!(
            self.patience
                .get_or_insert_with(|| Box::pin(sleep(limit)))
                .as_mut()
                .poll(context)
        );
        metrics().clients_stalled.inc();
        tracing::info!(client = %self.client, ?limit, "hanging up: the client took nothing for too long");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.settle(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.settle(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}
