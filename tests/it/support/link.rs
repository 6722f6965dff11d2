//! A slow network on this machine: a TCP proxy that delays data and limits its rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The number of bytes that are sent as one piece: ten Ethernet frames.
const PIECE: usize = 15_000;
/// The number of pieces in flight in one direction of a connection, like a switch's buffer.
const QUEUE: usize = 64;

/// A link to one server; dropping it ends the link.
#[derive(Debug)]
pub(crate) struct Link {
    /// The address that clients use instead of the server's.
    pub(crate) address: SocketAddr,
    carried: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

/// One direction of the link, shared by all connections.
#[derive(Debug)]
struct Direction {
    bytes_per_second: u64,
    delay: Duration,
    free_at: Mutex<Instant>,
    carried: Arc<AtomicU64>,
}

impl Link {
    /// Starts a link to `server` with this rate in both directions. Each direction has half the
    /// round-trip time.
    pub(crate) fn start(
        server: SocketAddr,
        megabits_per_second: u64,
        round_trip: Duration,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let carried = Arc::new(AtomicU64::new(0));
        let _in = runtime.enter();
        let direction = |carried| {
            let bytes_per_second = megabits_per_second * 1_000_000 / 8;
            Arc::new(Direction {
                bytes_per_second,
                delay: round_trip / 2,
                free_at: Mutex::new(Instant::now()),
                carried,
            })
        };
        let (up, down) = (direction(Arc::default()), direction(Arc::clone(&carried)));
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (up, down) = (Arc::clone(&up), Arc::clone(&down));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(
                        up.carry(from_client, to_server),
                        down.carry(from_server, to_client)
                    );
                });
            }
        });
        drop(_in);
        Self {
            address,
            carried,
            _runtime: runtime,
        }
    }

    /// Returns the number of bytes that the server has sent so far.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Direction {
    async fn carry(
        &self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
    ) {
        let (queue, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
        let reading = async move {
            let mut piece = vec![0; PIECE];
            while let Ok(length @ 1..) = from.read(&mut piece).await {
                self.carried.fetch_add(length as u64, Ordering::Relaxed);
                if queue
                    .send((self.arrival(length as u64), piece[..length].to_vec()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        let writing = async move {
            while let Some((at, piece)) = arriving.recv().await {
                tokio::time::sleep_until(at).await;
                if to.write_all(&piece).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(reading, writing);
    }

    /// Returns the time at which `length` bytes that are sent now reach the other end.
    fn arrival(&self, length: u64) -> Instant {
        let mut free_at = self.free_at.lock();
        *free_at = (*free_at).max(Instant::now())
            + Duration::from_nanos(length * 1_000_000_000 / self.bytes_per_second);
        *free_at + self.delay
    }
}
