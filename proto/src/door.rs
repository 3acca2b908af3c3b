//! Who may come in: counts the connections of one service before anything is spent on them.
//!
//! Three limits, each with its reason: connections in all (each costs tens of KiB), connections of one address
//! (one machine must not take every place), and strangers. A stranger is a connection that has not proved yet
//! that it may be here: it costs a place and some time, so strangers have places of their own and never take
//! those of whoever has proved it. From a certain number of strangers on, a client must first prove that it is
//! where it says (one round trip, no memory here), so that forged addresses fill nobody's places.
//!
//! It holds no socket and decides nothing about what a peer may ask.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Incoming;
use tracing::warn;

/// How many may come in. Configuration of a service.
#[derive(Clone, Debug)]
pub struct Places {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time of one IPv4 address, or of one IPv6 network of 64 bits: whoever has one of its
    /// addresses has all.
    pub of_one_address: usize,
    /// Connections at a time that have not proved themselves.
    pub strangers: usize,
    /// The same, of one address.
    pub strangers_of_one_address: usize,
    /// Strangers from which on a client must first prove its address. Below the number for one address, so that
    /// forged ones cannot use it up.
    pub crowd: usize,
}

/// The door of one service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Places,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    strangers: usize,
    of_address: HashMap<IpAddr, OfAddress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfAddress {
    connections: usize,
    strangers: usize,
}

/// A connection's place, given back when it is dropped. It begins as a stranger's.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
    known: bool,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    Connections,
    OfOneAddress,
    Strangers,
    StrangersOfOneAddress,
}

impl Full {
    /// What is full, and the option that says how many there are.
    fn what(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::OfOneAddress => "connections of one address",
            Self::Strangers => "connections that have not proved themselves",
            Self::StrangersOfOneAddress => "connections of one address that have not proved themselves",
        }
    }
}

impl Door {
    /// With all places free.
    pub fn new(places: Places) -> Self {
        Self { shared: Arc::new(Shared { places, taken: Mutex::default() }) }
    }

    /// Lets a connection in, or refuses it, or asks it to prove its address: then it comes again.
    pub fn admit(&self, incoming: Incoming) -> Option<(Incoming, Place)> {
        let remote = incoming.remote_address();
        let is_proven = incoming.remote_address_validated() || !incoming.may_retry();
        if !is_proven && self.shared.lock().strangers >= self.shared.places.crowd {
            // Costs its sender a round trip, and nothing here.
            if let Err(error) = incoming.retry() {
                warn!(%error, %remote, "a client was not asked to prove its address");
            }
            return None;
        }
        match self.take(remote.ip()) {
            Ok(place) => Some((incoming, place)),
            Err(full) => {
                warn!(%remote, what = full.what(), "a connection was refused, all places are taken");
                // It hears that at once instead of a time-out.
                incoming.refuse();
                None
            }
        }
    }

    fn take(&self, address: IpAddr) -> Result<Place, Full> {
        let address = network(address);
        let places = &self.shared.places;
        let mut taken = self.shared.lock();
        let of_address = taken.of_address.get(&address).copied().unwrap_or_default();
        for (full, used, max) in [
            (Full::Connections, taken.connections, places.connections),
            (Full::OfOneAddress, of_address.connections, places.of_one_address),
            (Full::Strangers, taken.strangers, places.strangers),
            (Full::StrangersOfOneAddress, of_address.strangers, places.strangers_of_one_address),
        ] {
            if used >= max {
                return Err(full);
            }
        }
        taken.connections += 1;
        taken.strangers += 1;
        let of_address = taken.of_address.entry(address).or_default();
        of_address.connections += 1;
        of_address.strangers += 1;
        Ok(Place { shared: Arc::clone(&self.shared), address, known: false })
    }

    /// Connections that are in.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }
}

impl Place {
    /// The connection has proved that it may be here.
    pub fn known(&mut self) {
        if !std::mem::replace(&mut self.known, true) {
            self.shared.lock().no_stranger(self.address);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shared.lock();
        if !self.known {
            taken.no_stranger(self.address);
        }
        taken.connections -= 1;
        if let Some(of_address) = taken.of_address.get_mut(&self.address) {
            of_address.connections -= 1;
            if of_address.connections == 0 {
                taken.of_address.remove(&self.address);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Numbers that are changed together, without anything between them that could panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn no_stranger(&mut self, address: IpAddr) {
        self.strangers -= 1;
        if let Some(of_address) = self.of_address.get_mut(&address) {
            of_address.strangers -= 1;
        }
    }
}

/// Whom an address belongs to: an IPv6 client has a network of 64 bits, and an IPv4 one may come written as IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door::new(Places {
            connections: 6,
            of_one_address: 4,
            strangers: 5,
            strangers_of_one_address: 3,
            crowd: 2,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_limit_is_met_and_given_back() {
        let (door, one, other) = (door(), address("10.0.0.1"), address("10.0.0.2"));
        let mut mine: Vec<Place> = (0..3).map(|_| door.take(one).expect("a place")).collect();
        assert_eq!(door.take(one).expect_err("full"), Full::StrangersOfOneAddress);
        mine[0].known();
        mine[0].known();
        mine.push(door.take(one).expect("a stranger less"));
        assert_eq!(door.take(one).expect_err("full"), Full::OfOneAddress);

        let theirs: Vec<Place> = (0..2).map(|_| door.take(other).expect("a place")).collect();
        assert_eq!(door.take(address("10.0.0.3")).expect_err("full"), Full::Connections);
        drop(mine);
        assert_eq!(door.connections(), 2);
        drop(theirs);
        assert!(door.shared.lock().of_address.is_empty(), "an address is remembered for nothing");
    }

    #[test]
    fn strangers_do_not_take_the_places_of_others() {
        let door = door();
        let strangers: Vec<Place> =
            (0..5).map(|i| door.take(IpAddr::from([10, 0, 0, i])).expect("a place")).collect();
        assert_eq!(door.take(address("10.0.1.1")).expect_err("full"), Full::Strangers);
        assert!(door.connections() < door.shared.places.connections);
        drop(strangers);
        door.take(address("10.0.1.1")).expect("a place");
    }

    #[test]
    fn a_network_is_one_client() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::ffff:1")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
    }
}
