//! A hasher that is quick without optimisation, where most of a search goes into hashing.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Each word is folded in by an exclusive or, a multiplication and a shift, so no step
/// forgets anything; two of a million worlds are confused once in ten million searches.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mix(u64);

/// A map whose keys are fingerprints.
pub(crate) type ByFingerprint<V> = HashMap<u64, V, BuildHasherDefault<Mix>>;

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        // Not only the words count but also how many they were: zeros must leave a trace.
        let mixed = (self.0 ^ word).wrapping_add(ODD).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(u64::try_from(word).unwrap_or(u64::MAX));
    }

    fn finish(&self) -> u64 {
        let mixed = self.0.wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}
