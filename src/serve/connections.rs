//! The connections of the process: how many there are, how many of each client, and which one is
//! closed for a new one.
//!
//! A connection costs a descriptor even without a request. At the limit, the connection that has
//! been idle for longest is closed for the new one. If none is idle, the new one is refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;

use super::flush::Flushes;
use super::places::Client;

/// How long a connection may be idle between two requests. Go's clients keep idle connections for
/// 90 s.
const IDLE_LIMIT: Duration = Duration::from_secs(100);

/// All connections of the process.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    share: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    all: HashMap<u64, Arc<Connection>>,
    by_client: HashMap<Client, usize>,
}

/// A connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// `None` for a proxy, which has connections for many clients.
    client: Option<Client>,
    state: Mutex<State>,
    /// Cancelled when another connection replaces it.
    pub(super) given_up: CancellationToken,
    /// Apart, because what waits for a flush keeps the connection.
    pub(super) flushes: Arc<Flushes>,
}

#[derive(Debug)]
struct State {
    running: usize,
    has_asked: bool,
    idle_since: Instant,
}

/// A request that keeps its connection from being idle.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connection>);

/// A connection's entry in the table. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Admitted {
    connections: Arc<Connections>,
    id: u64,
    pub(super) connection: Arc<Connection>,
}

impl Connection {
    fn new(client: Option<Client>) -> Self {
        let state = State {
            running: 0,
            has_asked: false,
            idle_since: Instant::now(),
        };
        Self {
            client,
            state: Mutex::new(state),
            given_up: CancellationToken::new(),
            flushes: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.running == 0).then_some(state.idle_since)
    }

    /// Returns when the connection has been idle for too long. `first` is the limit until the first
    /// request, which is the time for its headers.
    pub(super) async fn idle_for_too_long(&self, first: Duration) {
        loop {
            let limit = if self.state().has_asked {
                IDLE_LIMIT
            } else {
                first
            };
            match self.idle_since().map(|since| since + limit) {
                None => sleep(limit).await,
                Some(end) if end <= Instant::now() => return,
                Some(end) => sleep_until(end).await,
            }
        }
    }
}

impl Busy {
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        let mut state = connection.state();
        state.running += 1;
        state.has_asked = true;
        drop(state);
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running -= 1;
        state.idle_since = Instant::now();
    }
}

impl Connections {
    pub(super) fn new(limit: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            share: share.max(1),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Admits a connection, or returns `None` if there is no room and no connection is idle. A
    /// `client` gets at most its share.
    pub(super) fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Admitted> {
        let client = client.map(Client::from);
        let mut table = self.table();
        let has_share = client.is_some_and(|client| {
            table
                .by_client
                .get(&client)
                .is_some_and(|&n| n >= self.share)
        });
        if has_share && !table.give_up(|connection| connection.client == client) {
            return None;
        }
        if table.all.len() >= self.limit && !table.give_up(|_| true) {
            return None;
        }
        let connection = Arc::new(Connection::new(client));
        let id = table.insert(Arc::clone(&connection));
        drop(table);
        metrics().connections.inc();
        Some(Admitted {
            connections: Arc::clone(self),
            id,
            connection,
        })
    }

    /// Closes the connection that has been idle for longest, because descriptors are short.
    pub(super) fn give_one_up(&self) {
        self.table().give_up(|_| true);
    }
}

impl Table {
    fn insert(&mut self, connection: Arc<Connection>) -> u64 {
        self.next += 1;
        if let Some(client) = connection.client {
            *self.by_client.entry(client).or_default() += 1;
        }
        self.all.insert(self.next, connection);
        self.next
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Connection>> {
        let connection = self.all.remove(&id)?;
        if let Some(client) = connection.client
            && let Some(count) = self.by_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
        Some(connection)
    }

    /// Closes the longest idle of the connections that fit. Returns whether there was one.
    fn give_up(&mut self, fits: impl Fn(&Connection) -> bool) -> bool {
        let idle = self.all.iter().filter(|(_, connection)| fits(connection));
        let idle = idle.filter_map(|(id, connection)| Some((connection.idle_since()?, *id)));
        let Some((_, id)) = idle.min() else {
            return false;
        };
        if let Some(connection) = self.remove(id) {
            connection.given_up.cancel();
        }
        true
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connections.table().remove(self.id);
        metrics().connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the clock advance, so that no two moments are equal.
    async fn later() {
        sleep(Duration::from_millis(2)).await;
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[tokio::test]
    async fn the_longest_idle_connection_gives_way() {
        let connections = Connections::new(3, 3);
        let busy = connections.admit(address(1)).unwrap();
        let request = Busy::new(&busy.connection);
        later().await;
        let old = connections.admit(address(2)).unwrap();
        later().await;
        let young = connections.admit(address(3)).unwrap();
        let new = connections.admit(address(4)).unwrap();
        assert!(old.connection.given_up.is_cancelled());
        let requests = [Busy::new(&young.connection), Busy::new(&new.connection)];
        assert!(connections.admit(address(5)).is_none(), "none is idle");
        drop(request);
        later().await;
        drop((old, requests));
        assert!(connections.admit(address(5)).is_some());
        assert!(
            !young.connection.given_up.is_cancelled() && busy.connection.given_up.is_cancelled()
        );
    }

    #[test]
    fn one_client_has_its_share_and_a_proxy_all() {
        let connections = Connections::new(100, 2);
        let held: Vec<_> = (0..2)
            .map(|_| connections.admit(address(1)).unwrap())
            .collect();
        let requests: Vec<_> = held
            .iter()
            .map(|admitted| Busy::new(&admitted.connection))
            .collect();
        assert!(connections.admit(address(1)).is_none());
        assert!(connections.admit(address(2)).is_some());
        let proxied: Vec<_> = (0..50).map(|_| connections.admit(None).unwrap()).collect();
        drop((requests, proxied));
        assert!(connections.admit(address(1)).is_some());
        drop(held);
        assert!(connections.table().by_client.is_empty() && connections.table().all.is_empty());
    }

    #[tokio::test]
    async fn a_connection_without_a_request_ends_and_a_busy_one_does_not() {
        let first = Duration::from_millis(10);
        let connections = Connections::new(2, 2);
        let asking = connections.admit(None).unwrap();
        let request = Busy::new(&asking.connection);
        let silent = connections.admit(None).unwrap();
        tokio::select! {
            biased;
            () = asking.connection.idle_for_too_long(first) => {
                panic!("a connection with a running answer is not idle")
            }
            () = silent.connection.idle_for_too_long(first) => {}
        }
        drop(request);
        assert!(asking.connection.idle_since().is_some());
    }
}
