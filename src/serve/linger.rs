//! Lets a client finish a body that nobody reads before its connection is closed.
//!
//! A request that is refused early – no room, too long, not admitted – is answered while its body
//! is still on the way. If the socket is closed then, the kernel resets the connection, and the
//! client loses the answer that it had not read yet (RFC 9112, section 9.6). So the server closes
//! its own side first, reads on for a bounded time, and throws away what comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::profile::MAX_OBSERVATION_BYTES;

/// The most bytes that are read and thrown away: twice the longest body that the server accepts.
const MAX_BYTES: usize = 2 * MAX_OBSERVATION_BYTES;
/// The most time for it. The connection counts as idle meanwhile, so it gives way to a new one.
const MAX_TIME: Duration = Duration::from_secs(2);
/// A piece that is read at once, on the stack.
const PIECE: usize = 8 << 10;

/// A connection that is shut down in two steps.
#[derive(Debug)]
pub(super) struct Lingering<S> {
    stream: S,
    time: Duration,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// Our side is closed, the client's is not.
    HalfClosed {
        left: usize,
        patience: Pin<Box<Sleep>>,
    },
}

impl<S> Lingering<S> {
    pub(super) fn new(stream: S) -> Self {
        Self::with_time(stream, MAX_TIME)
    }

    fn with_time(stream: S, time: Duration) -> Self {
        Self {
            stream,
            time,
            phase: Phase::Open,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
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
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.phase {
                Phase::Open => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                    this.phase = Phase::HalfClosed {
                        left: MAX_BYTES,
                        patience: Box::pin(sleep(this.time)),
                    };
                }
                Phase::HalfClosed { left, patience } => {
                    if patience.as_mut().poll(context).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    let mut piece = [0; PIECE];
                    let mut buffer = ReadBuf::new(&mut piece);
                    let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer));
                    let count = buffer.filled().len();
                    // At its end, or after an error, the client reads nothing more either.
                    if read.is_err() || count == 0 || count >= *left {
                        return Poll::Ready(Ok(()));
                    }
                    *left -= count;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        (client.unwrap(), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn an_answer_survives_a_body_that_is_still_on_the_way() {
        let (mut client, server) = pair().await;
        let server = tokio::spawn(async move {
            let mut server = Lingering::new(server);
            server.write_all(b"no room").await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut answer = Vec::new();
        client.peek(&mut [0]).await.unwrap();
        client
            .write_all(&vec![1; MAX_OBSERVATION_BYTES])
            .await
            .unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"no room");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_closes_is_left_behind() {
        let (_silent, server) = tokio::io::duplex(64);
        let mut server = Lingering::with_time(server, Duration::from_millis(1));
        server.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_stops_sending_is_left_behind() {
        const UNREAD: usize = 64 << 10;
        let (mut endless, server) = tokio::io::duplex(UNREAD);
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while let Ok(count) = endless.write(&[0; PIECE]).await {
                sent += count;
            }
            sent
        });
        let patient = Duration::from_secs(120);
        let mut server = Lingering::with_time(server, patient);
        server.shutdown().await.unwrap();
        drop(server);
        let sent = sending.await.unwrap();
        assert!((MAX_BYTES..=MAX_BYTES + UNREAD).contains(&sent), "{sent}");
    }
}
