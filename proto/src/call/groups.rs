//! Connections that belong together, such as those of one tenant: how many there may be, and what they may have in
//! flight together. So one of them cannot take all that a service has.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::{Allowance, InFlight};

/// All groups of one service, by what their members have in common. A group once seen is remembered: keys are to
/// be few, and none that a stranger chooses.
#[derive(Debug)]
pub struct Groups<K> {
    members: usize,
    in_flight: InFlight,
    known: Mutex<HashMap<K, Group>>,
}

#[derive(Clone, Debug)]
struct Group {
    places: Arc<Semaphore>,
    allowance: Allowance,
}

/// A place in a group, given back when it is dropped.
#[derive(Debug)]
pub struct Member {
    allowance: Allowance,
    _place: OwnedSemaphorePermit,
}

impl<K: Clone + Eq + Hash> Groups<K> {
    /// Each group has so many members, which have so much in flight together.
    pub fn new(members: usize, in_flight: InFlight) -> Self {
        Self { members, in_flight, known: Mutex::default() }
    }

    /// Joins the group of `key`; `None`: it is full.
    pub fn join(&self, key: &K) -> Option<Member> {
        let group = {
            // Inserting is all that happens under this lock.
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Group {
                places: Arc::new(Semaphore::new(self.members)),
                allowance: Allowance::new(self.in_flight),
            };
            known.entry(key.clone()).or_insert_with(fresh).clone()
        };
        let place = group.places.try_acquire_owned().ok()?;
        Some(Member { allowance: group.allowance, _place: place })
    }

    /// How many members a group has at most.
    pub fn members(&self) -> usize {
        self.members
    }
}

impl Member {
    /// What the group may have in flight together.
    pub fn allowance(&self) -> Allowance {
        self.allowance.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_group_leaves_the_others_alone() {
        let groups = Groups::new(2, InFlight { requests: 1, bytes: 1, turns: 1 });
        let mut mine: Vec<Member> = (0..2).map(|_| groups.join(&"mine").expect("a place")).collect();
        assert!(groups.join(&"mine").is_none());
        assert!(groups.join(&"theirs").is_some());
        mine.pop();
        assert!(groups.join(&"mine").is_some());
    }
}
