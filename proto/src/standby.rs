//! What a spare process proves itself by: it belongs to no instance yet, so it has no attempt's token.
//!
//! A node has a key, which stands in its row and nowhere else outside of its own memory and that of core. With
//! it the node signs a [`Standby`] for each spare, and core checks it without a row for each spare: an idle
//! machine writes nothing. Whoever gets hold of one may hold one idle connection of that tenant, as long as
//! the node's lease lasts; it proves no right to any instance.

use std::fmt;

use ring::hmac;

use crate::instance::Standby;

/// Length of a [`SpareKey`], in bytes.
pub const SPARE_KEY_BYTES: usize = 32;

/// A node's key. Its `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpareKey(pub [u8; SPARE_KEY_BYTES]);

impl fmt::Debug for SpareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpareKey(hidden)")
    }
}

impl SpareKey {
    /// From bytes as they are stored; `None` if their length is another.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The proof for one spare of the node that has this key.
    #[must_use]
    pub fn sign(&self, node: &str, epoch: u64, tenant: &str, number: u64) -> Standby {
        let mut standby =
            Standby { node: node.to_owned(), epoch, tenant: tenant.to_owned(), number, proof: Vec::new() };
        standby.proof = hmac::sign(&self.hmac(), &signed(&standby)).as_ref().to_vec();
        standby
    }

    /// Whether the proof is of this key. In constant time.
    #[must_use]
    pub fn verifies(&self, standby: &Standby) -> bool {
        hmac::verify(&self.hmac(), &signed(standby), &standby.proof).is_ok()
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

/// Each text behind its length, so that no two spares have the same bytes.
fn signed(standby: &Standby) -> Vec<u8> {
    let Standby { node, epoch, tenant, number, proof: _ } = standby;
    let mut bytes = b"dormouse: a spare".to_vec();
    for text in [node, tenant] {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.extend(epoch.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_key_and_one_spare() {
        let key = SpareKey([7; 32]);
        let good = key.sign("node", 3, "acme", 9);
        assert!(key.verifies(&good));
        assert!(!SpareKey([8; 32]).verifies(&good), "another key");
        for changed in [
            Standby { node: "nod".to_owned(), ..good.clone() },
            Standby { epoch: 4, ..good.clone() },
            Standby { tenant: "acm".to_owned(), ..good.clone() },
            Standby { number: 10, ..good.clone() },
            Standby { proof: Vec::new(), ..good.clone() },
            Standby { node: "nodea".to_owned(), tenant: "cme".to_owned(), ..good.clone() },
        ] {
            assert!(!key.verifies(&changed), "{changed:?}");
        }
        assert!(!format!("{key:?} {good:?}").contains("7, 7"));
    }
}
