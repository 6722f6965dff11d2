//! One address in front of the replicas: each connection goes to the next replica that takes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};

/// A running front; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Front {
    /// Listens on `address`, whose port may be 0.
    pub(crate) async fn start(
        address: SocketAddr,
        replicas: Vec<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (replicas, next) = (Arc::new(replicas), AtomicUsize::new(0));
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                let first = next.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(forward(client, Arc::clone(&replicas), first));
            }
        });
        Ok(Self { address, accepting })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries bytes both ways until one side ends. A replica that is down refuses the connection, and
/// the next one gets it.
async fn forward(mut client: TcpStream, replicas: Arc<Vec<SocketAddr>>, first: usize) {
    for step in 0..replicas.len() {
        let replica = replicas[(first + step) % replicas.len()];
        if let Ok(mut server) = TcpStream::connect(replica).await {
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}
