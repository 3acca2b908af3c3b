//! What was stored before this launch, as it came: bytes, a piece of memory for each page, found by a digest of their
//! names and decoded when they are asked for.
//!
//! So a launch with very many checkpoints holds them once, costs a little for each and begins before the last of them
//! is here. An operation waits only for what it must know: its own result, or that there is none, which nobody can
//! say before all are here. It would else run again what has been done (invariant 1).

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use dormouse_proto::instance;
use prost::{
    Message as _,
    bytes::{Bytes, BytesMut},
};

use crate::operation::{DUE, Operation, RESULT, Stored};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    digests: RandomState,
    by_digest: HashMap<u64, Bytes>,
    /// Those whose digest another one has: with a million of them one launch in ten million has any.
    beside: Vec<Bytes>,
    complete: bool,
}

/// The part of a stored checkpoint that finds it.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    operation: Option<Texts>,
}

/// `OperationName` without memory of its own: its texts are slices of the checkpoint's bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Texts {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(uint32, tag = "3")]
    slot: u32,
}

impl Shelf {
    /// A page. `last`: there are no more. May come again after a lost connection.
    pub(super) fn put(&mut self, page: Vec<Bytes>, last: bool) -> Result<(), prost::DecodeError> {
        self.by_digest.reserve(page.len());
        // Into memory of its own, exactly as large: what a frame grew in may be twice that.
        let mut own = BytesMut::with_capacity(page.iter().map(Bytes::len).sum());
        for came in page {
            own.extend_from_slice(&came);
            let stored = own.split().freeze();
            let Some(name) = Head::decode(stored.clone())?.operation else { continue };
            let digest = self.digest(&name.name, &name.key, name.slot);
            match self.by_digest.get(&digest) {
                None => drop(self.by_digest.insert(digest, stored)),
                // Come again.
                Some(same) if *same == stored => {}
                Some(_) => self.beside.push(stored),
            }
        }
        self.complete |= last;
        Ok(())
    }

    /// Whether everything is here.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn has(&self, operation: &Operation, slot: u32) -> bool {
        self.look(operation, slot).is_some()
    }

    /// What is stored there, left where it is.
    pub(super) fn look(&self, operation: &Operation, slot: u32) -> Option<Stored> {
        let digest = self.digest(operation.name.as_bytes(), operation.key.as_bytes(), slot);
        let first = self.by_digest.get(&digest)?;
        [first].into_iter().chain(&self.beside).find_map(|bytes| read(bytes, operation, slot))
    }

    /// What is stored there; it is read once.
    pub(super) fn take(&mut self, operation: &Operation, slot: u32) -> Option<Stored> {
        let digest = self.digest(operation.name.as_bytes(), operation.key.as_bytes(), slot);
        if let Some(stored) = read(self.by_digest.get(&digest)?, operation, slot) {
            self.remove(digest);
            return Some(stored);
        }
        let at = self.beside.iter().position(|bytes| read(bytes, operation, slot).is_some())?;
        read(&self.beside.swap_remove(at), operation, slot)
    }

    /// What is stored for the operation is not needed any more.
    pub(super) fn forget(&mut self, operation: &Operation) {
        self.take(operation, RESULT);
        self.take(operation, DUE);
        // The pauses of a step have no gaps.
        for slot in DUE + 1.. {
            if self.take(operation, slot).is_none() {
                return;
            }
        }
    }

    /// Whoever has the same digest takes the place.
    fn remove(&mut self, digest: u64) {
        self.by_digest.remove(&digest);
        let same = |bytes: &Bytes| {
            let name = Head::decode(bytes.clone()).ok().and_then(|head| head.operation);
            name.is_some_and(|name| self.digest(&name.name, &name.key, name.slot) == digest)
        };
        if let Some(at) = self.beside.iter().position(same) {
            let next = self.beside.swap_remove(at);
            self.by_digest.insert(digest, next);
        }
    }

    fn digest(&self, name: &[u8], key: &[u8], slot: u32) -> u64 {
        self.digests.hash_one((name, key, slot))
    }
}

/// What these bytes hold, if they are of that name. What a newer release stored and this one does not know counts as
/// not stored.
fn read(bytes: &Bytes, operation: &Operation, slot: u32) -> Option<Stored> {
    // Their head was decoded before; the rest comes from the same core over the same verified connection.
    let stored = instance::StoredCheckpoint::decode(bytes.clone()).ok()?;
    let (name, stored) = Stored::of_wire(stored)?;
    (name.slot == slot && *name.name == *operation.name && *name.key == *operation.key).then_some(stored)
}

#[cfg(test)]
mod tests {
    use dormouse_proto::instance::{OperationName, StoredCheckpoint, stored_checkpoint};

    use super::*;

    fn due(name: &str, key: &str, slot: u32, at: i64) -> Bytes {
        let name = OperationName { name: name.to_owned(), key: key.to_owned(), slot };
        let value = Some(stored_checkpoint::Value::DueAt(at));
        StoredCheckpoint { operation: Some(name), value, ..StoredCheckpoint::default() }
            .encode_to_vec()
            .into()
    }

    fn operation(name: &str, key: &str) -> Operation {
        Operation::parse(name, key).unwrap()
    }

    fn at(stored: Option<Stored>) -> Option<i64> {
        match stored?.value {
            crate::operation::Value::Due(at) => Some(at),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_checkpoint_is_found_by_name_key_and_slot_and_read_once() {
        let mut shelf = Shelf::default();
        shelf.put(vec![due("a", "k", 0, 1), due("a", "k", 1, 2), due("a", "", 0, 3)], false).unwrap();
        assert!(!shelf.is_complete());
        shelf.put(vec![due("b", "", 1, 4), due("b", "", 2, 5), due("a", "k", 0, 1)], true).unwrap();
        assert!(shelf.is_complete() && shelf.beside.is_empty(), "what came twice is kept once");
        assert_eq!(at(shelf.look(&operation("a", ""), 0)), Some(3));
        assert_eq!(at(shelf.take(&operation("a", "k"), 0)), Some(1));
        assert_eq!(at(shelf.take(&operation("a", "k"), 0)), None);
        assert_eq!(at(shelf.take(&operation("a", "k"), 1)), Some(2));
        shelf.forget(&operation("b", ""));
        assert_eq!(shelf.by_digest.len(), 1);
    }

    #[test]
    fn two_with_one_digest_are_told_apart() {
        let mut shelf = Shelf::default();
        let (one, other) = (operation("one", ""), operation("other", ""));
        shelf.put(vec![due("other", "", 0, 2)], true).unwrap();
        // No two short names have one digest in practice: both get that of the first.
        let digest = shelf.digest(b"one", b"", 0);
        let bytes = shelf.by_digest.drain().map(|(_, bytes)| bytes).collect();
        shelf.by_digest.insert(digest, due("one", "", 0, 1));
        shelf.beside = bytes;
        assert_eq!(at(shelf.take(&one, 0)), Some(1));
        assert_eq!(at(shelf.look(&other, 0)), None, "its digest is another one here");
        assert_eq!(at(shelf.look(&one, 0)), None);
    }

    #[test]
    fn what_is_no_checkpoint_is_an_error() {
        assert!(Shelf::default().put(vec![Bytes::from_static(b"\xff")], true).is_err());
    }
}
