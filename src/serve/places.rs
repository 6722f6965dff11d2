//! Places: how many requests are answered at the same time, and how many of one client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A client, as limits count it: an address, or the 64-bit network that one IPv6 host has for
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

/// `percent` of `all`, but at least one.
pub(crate) fn share(all: usize, percent: u8) -> usize {
    (all.saturating_mul(usize::from(percent)) / 100).max(1)
}

/// A number of places, and the share of one client.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    share: usize,
    taken: Mutex<HashMap<Client, usize>>,
}

/// A place, freed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: Option<Client>,
    _permit: OwnedSemaphorePermit,
}

/// The reason why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    AllTaken,
    /// The client has used its share.
    ClientHasShare,
}

impl NoPlace {
    /// The reason's label in the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::AllTaken => "all",
            Self::ClientHasShare => "client",
        }
    }
}

impl Places {
    pub(crate) fn new(all: usize, percent: u8) -> Arc<Self> {
        let all = all.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(all)),
            share: share(all, percent),
            taken: Mutex::default(),
        })
    }

    /// Takes a place for a client. A client without a known address is only limited by the number
    /// of places.
    pub(crate) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, NoPlace> {
        let permit = Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_all_taken| NoPlace::AllTaken)?;
        let client = address.map(Client::from);
        if let Some(client) = client {
            let mut taken = self.taken.lock();
            let count = taken.entry(client).or_default();
            if *count >= self.share {
                return Err(NoPlace::ClientHasShare);
            }
            *count += 1;
        }
        Ok(Place {
            places: Arc::clone(self),
            client,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut taken = self.places.taken.lock();
        if let Some(count) = taken.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn no_client_gets_all_places() {
        let places = Places::new(8, 25);
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let held = [places.take(a).unwrap(), places.take(a).unwrap()];
        assert_eq!(places.take(a).unwrap_err(), NoPlace::ClientHasShare);
        assert_eq!(
            places.take(address("::ffff:10.0.0.1")).unwrap_err(),
            NoPlace::ClientHasShare,
            "the same address"
        );
        let other = places.take(b).unwrap();
        drop(held);
        let _again = places.take(a).unwrap();
        let unknown: Vec<_> = (0..6).map(|_| places.take(None).unwrap()).collect();
        assert_eq!(places.take(b).unwrap_err(), NoPlace::AllTaken);
        drop((other, unknown));
        assert_eq!(places.free.available_permits(), 7);
        assert_eq!(
            places.taken.lock().len(),
            1,
            "only clients with a place are in the table"
        );
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let places = Places::new(4, 25);
        let _held = places.take(address("2001:db8::1")).unwrap();
        assert_eq!(
            places.take(address("2001:db8::2:3")).unwrap_err(),
            NoPlace::ClientHasShare
        );
        places.take(address("2001:db8:0:1::1")).unwrap();
    }

    #[test]
    fn a_share_is_at_least_one_place() {
        assert_eq!([share(1, 25), share(8, 25), share(8, 100)], [1, 2, 8]);
    }
}
