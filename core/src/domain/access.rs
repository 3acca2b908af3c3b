//! Who may ask for what: roles, the names and secrets of tokens, and the quotas of a tenant.

use std::{fmt, time::Duration};

use sha2::{Digest as _, Sha256};

use super::{
    id::{ParseError, TokenHash, label},
    time::Micros,
};

/// How much a client may do, least first: who holds a role may do all that the roles below may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks at everything of its tenant, changes nothing.
    Reader,
    /// Also starts, steers and deletes the tenant's instances and images.
    Operator,
    /// Also makes and revokes the tenant's tokens and prunes what has ended.
    Admin,
    /// The cluster's administrator, proved by a certificate and never by a token: also tenants,
    /// quotas, nodes and the tokens of any tenant.
    Cluster,
}

impl Role {
    /// Every role, least first.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Operator, Self::Admin, Self::Cluster];

    /// The word on the wire and in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Cluster => "cluster",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token's name, unique in its tenant: 1–64 of `a–z 0–9 - _ .`, as a tenant's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenName(Box<str>);

impl TokenName {
    /// Checks length and alphabet.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        label("token.name", text)?;
        Ok(Self(text.into()))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For who gave none: "token-" and eight random characters.
    pub fn from_random(bits: [u8; 5]) -> Self {
        Self(format!("token-{}", base32(&bits)).into())
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The secret of a token: `dmt_` and 32 random bytes in base 32. Shown once, to who made it; it
/// has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret(Box<str>);

impl TokenSecret {
    /// What every secret begins with, so that people and scanners recognise one.
    pub const PREFIX: &str = "dmt_";
    /// Characters of every secret: 256 bits, five in each.
    pub const LEN: usize = Self::PREFIX.len() + 52;

    /// Of bytes from the kernel's generator.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, base32(&bytes)).into())
    }

    /// Whether it can be a secret at all: what is none costs no look-up.
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix(Self::PREFIX)?;
        let fits = text.len() == Self::LEN && body.bytes().all(|byte| ALPHABET.contains(&byte));
        fits.then(|| Self(text.into()))
    }

    /// What the tables keep instead. A plain SHA-256 will do: there are 256 random bits in it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The secret itself, for the one answer that carries it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(hidden)")
    }
}

/// Without the characters that people mistake for others.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Five bits a character; the last one is filled up with zeros.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(letter(held >> bits));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(letter(held << (5 - bits)));
    }
    text
}

fn letter(bits: u32) -> char {
    char::from(ALPHABET[usize::try_from(bits & 31).unwrap_or(0)])
}

/// How much a tenant may have. What is `None` has no quota; a quota is at least 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Instances that run or are being launched, in the whole cluster at once.
    pub running: Option<u64>,
    /// Instances that are stored, ended ones included.
    pub stored: Option<u64>,
    /// Starts in one second; a burst of as many is let through at once.
    pub starts_per_second: Option<u64>,
}

impl Quotas {
    /// No quota at all.
    pub const NONE: Self = Self { running: None, stored: None, starts_per_second: None };
    /// The largest quota.
    pub const MAX: u64 = 1_000_000_000;
}

/// The starts that a tenant may still make now, for its quota of starts per second: fills up
/// steadily, holds one second's worth, and so lets a burst of that size through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// In millionths of a start.
    pub credit: u64,
    /// When it held that.
    pub at: Micros,
}

impl Bucket {
    /// What one start costs.
    const START: u64 = 1_000_000;
    /// What fills it up whatever was in it.
    const FULL_AFTER: Duration = Duration::from_secs(1);

    /// Full, for `rate` starts per second.
    pub fn full(rate: u64, at: Micros) -> Self {
        Self { credit: rate.saturating_mul(Self::START), at }
    }

    /// Takes one start out; refused with how long to wait for the next.
    pub fn take(self, rate: u64, now: Micros) -> Result<Self, Duration> {
        let full = Self::full(rate, now);
        // A clock that was set back must not lock anybody out for as long.
        let elapsed = if now < self.at { Self::FULL_AFTER } else { now.since(self.at) };
        let filled = u64::try_from(elapsed.min(Self::FULL_AFTER).as_micros()).unwrap_or(0);
        let credit = self.credit.saturating_add(filled.saturating_mul(rate)).min(full.credit);
        match credit.checked_sub(Self::START) {
            Some(credit) => Ok(Self { credit, at: now }),
            None => Err(Duration::from_micros((Self::START - credit).div_ceil(rate.max(1)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_read_what_they_print() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("root"), None);
    }

    #[test]
    fn secrets_are_recognised_and_hidden() {
        let secret = TokenSecret::from_random([0xab; 32]);
        assert_eq!(secret.reveal().len(), TokenSecret::LEN);
        assert_eq!(TokenSecret::parse(secret.reveal()), Some(secret.clone()));
        assert_eq!(format!("{secret:?}"), "TokenSecret(hidden)");
        assert_ne!(secret.hash(), TokenSecret::from_random([0xac; 32]).hash());
        for bad in ["", "dmt_", &secret.reveal()[1..], &format!("{}a", secret.reveal()), &"d".repeat(56)] {
            assert_eq!(TokenSecret::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn base_32_uses_every_bit() {
        assert_eq!(base32(&[0; 5]), "aaaaaaaa");
        assert_eq!(base32(&[0xff; 5]), "99999999");
        assert_eq!(base32(&[0, 0, 0, 0, 1]), "aaaaaaab");
        assert_eq!(base32(&[0xff]), "96");
        assert_eq!(TokenName::from_random([0; 5]).as_str(), "token-aaaaaaaa");
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_fills_steadily() {
        let start = Micros::seconds(1_000);
        let mut bucket = Bucket::full(2, start);
        for _ in 0..2 {
            bucket = bucket.take(2, start).expect("a burst of one second's worth");
        }
        assert_eq!(bucket.take(2, start), Err(Duration::from_millis(500)));
        let almost = start + Duration::from_micros(499_999);
        assert_eq!(bucket.take(2, almost), Err(Duration::from_micros(1)));
        bucket = bucket.take(2, start + Duration::from_millis(500)).expect("half a second is one start");
        assert_eq!(bucket.credit, 0);
        let later = bucket.take(2, start + Duration::from_hours(1)).expect("full again");
        assert_eq!(later.credit, Bucket::START, "no more than one second's worth is kept");
        assert!(later.take(2, Micros::seconds(1)).is_ok(), "a clock that was set back");
    }

    #[test]
    fn token_names_take_only_their_alphabet() {
        for good in ["a", "ci-2026.11_x", &"x".repeat(64)] {
            assert_eq!(TokenName::parse(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "A", "a b", "ä", "a/b", "..", "-rf", &"x".repeat(65)] {
            assert!(TokenName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
