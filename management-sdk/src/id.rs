//! Ids that are chosen here, before anything is sent, so that a repeat is recognised.

use crate::Error;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A fresh id of an instance: 16 random characters of base 32, so that short prefixes are
/// unique. Fails only where the system has no random numbers.
pub fn new_instance_id() -> Result<String, Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Local(error.into()))?;
    // 256 is a multiple of 32: each character is equally likely.
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sixteen_characters_of_base_32_and_differ() {
        let (a, b) = (new_instance_id().expect("random"), new_instance_id().expect("random"));
        assert_ne!(a, b);
        assert_eq!(a.len(), 16);
        assert!(a.bytes().all(|byte| ALPHABET.contains(&byte)), "{a}");
    }
}
