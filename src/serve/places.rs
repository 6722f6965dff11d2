//! Places: how many requests are answered at the same time, and how many of one client.
//!
//! A request counts for its address until its sender is known by name, then for the name: several
//! teams may share an address, and one team may have many. An address has a fixed share. A name may
//! hold three times as many places as are free, so that a single busy one gets most of them, several
//! share equally, and the next one always finds some.

use std::collections::HashMap;
use std::fmt;
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

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// How many times the free places one name may hold.
const TIMES_FREE: usize = 3;

/// `percent` of `all`, but at least one.
pub(crate) fn share(all: usize, percent: u8) -> usize {
    (all.saturating_mul(usize::from(percent)) / 100).max(1)
}

/// A number of places, and the share of one client.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    share: usize,
    taken: Mutex<HashMap<Holder, usize>>,
}

/// The one that a place counts for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    Address(Client),
    Name(Arc<str>),
}

/// A place, freed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    holder: Option<Holder>,
    _permit: OwnedSemaphorePermit,
}

/// The reason why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    AllTaken,
    /// The client has used its share.
    ClientHasShare,
    /// The name holds most places already, and few are free.
    NameHasShare,
}

impl NoPlace {
    /// The reason's label in the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::AllTaken => "all",
            Self::ClientHasShare => "client",
            Self::NameHasShare => "identity",
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
        let holder = address.map(|address| Holder::Address(address.into()));
        if let Some(holder) = &holder {
            let mut taken = self.taken.lock();
            let count = taken.entry(holder.clone()).or_default();
            if *count >= self.share {
                return Err(NoPlace::ClientHasShare);
            }
            *count += 1;
        }
        Ok(Place {
            places: Arc::clone(self),
            holder,
            _permit: permit,
        })
    }

    fn give_back(&self, holder: &Holder) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(holder);
            }
        }
    }
}

impl Place {
    /// Makes the place count for a name, and no more for the address.
    ///
    /// # Errors
    /// If the name holds too many already.
    pub(crate) fn belongs_to(&mut self, name: &Arc<str>) -> Result<(), NoPlace> {
        let holder = Holder::Name(Arc::clone(name));
        let mut taken = self.places.taken.lock();
        let held = taken.get(&holder).copied().unwrap_or_default();
        // This place is as good as free.
        let free = self.places.free.available_permits() + 1;
        if held >= free.saturating_mul(TIMES_FREE) {
            return Err(NoPlace::NameHasShare);
        }
        taken.insert(holder.clone(), held + 1);
        drop(taken);
        if let Some(before) = self.holder.replace(holder) {
            self.places.give_back(&before);
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.places.give_back(&holder);
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
    fn names_at_one_address_share_its_places_and_a_busy_one_leaves_some_to_the_next() {
        let places = Places::new(32, 100);
        let take = |name: &str| {
            let mut place = places.take(address("10.0.0.1"))?;
            place.belongs_to(&Arc::from(name)).map(|()| place)
        };
        let mut busy = Vec::new();
        while let Ok(place) = take("busy") {
            busy.push(place);
        }
        assert_eq!(busy.len(), 24);
        let mut second = vec![take("second").unwrap()];
        busy.truncate(14);
        while let Ok(place) = take("second") {
            second.push(place);
        }
        assert_eq!(second.len(), busy.len());
        assert_eq!(take("busy").unwrap_err(), NoPlace::NameHasShare);
        let _third = take("third").unwrap();
        drop((busy, second));
        assert_eq!(places.taken.lock().len(), 1);
    }

    #[test]
    fn named_requests_take_nothing_of_the_share_of_their_address() {
        let places = Places::new(8, 25);
        let mut named = Vec::new();
        for name in ["a", "b", "c"] {
            let mut place = places.take(address("10.0.0.1")).unwrap();
            place.belongs_to(&Arc::from(name)).unwrap();
            named.push(place);
        }
        let unnamed = [(); 2].map(|()| places.take(address("10.0.0.1")).unwrap());
        assert!(places.take(address("10.0.0.1")).is_err());
        drop((named, unnamed));
        let only = Places::new(1, 25);
        let mut place = only.take(None).unwrap();
        place.belongs_to(&Arc::from("a")).unwrap();
    }

    #[test]
    fn a_share_is_at_least_one_place() {
        assert_eq!([share(1, 25), share(8, 25), share(8, 100)], [1, 2, 8]);
    }
}
