//! Connections of spare processes: known, and not yet of any instance.
//!
//! A node signs what each of its spares shows ([`dormouse_proto::standby`]); its key stands in its row and is
//! remembered here. One connection holds the place of one spare: if the same one connects again, the older
//! connection is given up. So whoever got hold of what a spare shows holds one idle connection with it, which
//! counts as one of that tenant's.
//!
//! It lets nobody do anything: a spare becomes an instance's process by that attempt's token alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_proto::instance as wire;
use dormouse_proto::standby::SpareKey;
use tokio_util::sync::CancellationToken;

use super::request::Error;
use crate::domain::id::{NodeId, Tenant};
use crate::store::Store;

/// The spares that are connected to this core, and the keys of their nodes.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// As last read: which lease, and its key. Only of nodes that exist.
    keys: Mutex<HashMap<NodeId, (u64, SpareKey)>>,
    held: Mutex<HashMap<Which, CancellationToken>>,
}

/// One spare of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Which {
    node: NodeId,
    epoch: u64,
    number: u64,
}

/// A spare's connection. Dropped when the spare is an instance's process, or has gone.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) tenant: Tenant,
    spares: Arc<Spares>,
    which: Which,
    replaced: CancellationToken,
}

impl Spares {
    /// Looks at what a spare shows.
    pub(super) async fn admit(
        self: &Arc<Self>,
        store: &Store,
        shown: &wire::Standby,
    ) -> Result<Spare, Error> {
        let node = NodeId::parse(&shown.node)?;
        let tenant = Tenant::parse(&shown.tenant)?;
        if !self.vouches(&node, shown) {
            // Not known yet, or of a lease before: read once more, at the expense of one request.
            let Some(key) = store.spare_key(&node).await? else { return Err(Error::NotASpare) };
            lock(&self.keys).insert(node.clone(), key);
            if !self.vouches(&node, shown) {
                return Err(Error::NotASpare);
            }
        }
        Ok(self.enter(Which { node, epoch: shown.epoch, number: shown.number }, tenant))
    }

    fn vouches(&self, node: &NodeId, shown: &wire::Standby) -> bool {
        let key = lock(&self.keys).get(node).copied();
        key.is_some_and(|(epoch, key)| epoch == shown.epoch && key.verifies(shown))
    }

    fn enter(self: &Arc<Self>, which: Which, tenant: Tenant) -> Spare {
        let replaced = CancellationToken::new();
        let mut held = lock(&self.held);
        if let Some(older) = held.insert(which.clone(), replaced.clone()) {
            older.cancel();
        }
        drop(held);
        Spare { tenant, spares: Arc::clone(self), which, replaced }
    }
}

impl Spare {
    /// Waits until the same spare has connected again.
    pub(super) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let mut held = lock(&self.spares.held);
        // Cancelled, under this lock: the place is that of the newer connection.
        if !self.replaced.is_cancelled() {
            held.remove(&self.which);
        }
    }
}

/// Each change is one insertion or removal: nothing is ever half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which(number: u64) -> Which {
        Which { node: NodeId::parse("n").expect("an id"), epoch: 1, number }
    }

    #[test]
    fn one_connection_holds_the_place_of_a_spare() {
        let (spares, tenant) = (Arc::new(Spares::default()), Tenant::default_tenant());
        let first = spares.enter(which(1), tenant.clone());
        let other = spares.enter(which(2), tenant.clone());
        let again = spares.enter(which(1), tenant);
        assert!(first.replaced.is_cancelled() && !again.replaced.is_cancelled());
        drop(first);
        assert_eq!(lock(&spares.held).len(), 2, "the older one took the newer one's place along");
        drop((other, again));
        assert!(lock(&spares.held).is_empty());
    }
}
