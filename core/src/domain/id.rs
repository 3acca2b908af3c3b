//! Names of things. Each is parsed once, at the edge; who holds one holds a valid one.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not what it should be. Names the field, the value's fault and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing was given.
    #[error("{field} is empty; give it 1 to {max} bytes")]
    Empty {
        /// Which field.
        field: &'static str,
        /// Longest value that passes.
        max: usize,
    },
    /// Too long for the tables and for people.
    #[error("{field} has {len} bytes, at most {max} are allowed; shorten it")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
        /// Longest value that passes.
        max: usize,
    },
    /// A character that this field does not take.
    #[error("{field} contains {character:?} at byte {at}; {allowed}")]
    Character {
        /// Which field.
        field: &'static str,
        /// What stands there.
        character: char,
        /// Where.
        at: usize,
        /// What may stand there, as a half sentence.
        allowed: &'static str,
    },
    /// Not 64 hexadecimal digits.
    #[error("{field} is not a SHA-256 digest; give 64 hexadecimal digits")]
    Digest {
        /// Which field.
        field: &'static str,
    },
}

fn length(field: &'static str, text: &str, max: usize) -> Result<(), ParseError> {
    match text.len() {
        0 => Err(ParseError::Empty { field, max }),
        len if len > max => Err(ParseError::TooLong { field, len, max }),
        _ => Ok(()),
    }
}

fn characters(
    field: &'static str,
    text: &str,
    allowed: &'static str,
    pass: impl Fn(char) -> bool,
) -> Result<(), ParseError> {
    match text.char_indices().find(|(_, c)| !pass(*c)) {
        Some((at, character)) => Err(ParseError::Character { field, character, at, allowed }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id! {
    /// An instance's public name, unique in its tenant: 1–128 of `A–Z a–z 0–9 . _ : -`.
    InstanceId
}

impl InstanceId {
    /// Longest id in bytes.
    pub const MAX: usize = 128;

    /// Checks length and alphabet.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        length("instance.id", text, Self::MAX)?;
        characters("instance.id", text, "use only A–Z a–z 0–9 . _ : -", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')
        })?;
        if text.starts_with(['.', '-']) {
            let character = text.chars().next().unwrap_or('.');
            let allowed = "begin with a letter, a digit, _ or :";
            return Err(ParseError::Character { field: "instance.id", character, at: 0, allowed });
        }
        Ok(Self(text.into()))
    }

    /// An id of 16 characters of base 32 out of 80 random bits: short prefixes are unique.
    pub fn from_random(bits: [u8; 10]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let mut text = String::with_capacity(16);
        let all = bits.iter().fold(0u128, |sum, byte| (sum << 8) | u128::from(*byte));
        for place in (0..16).rev() {
            let five_bits = usize::try_from((all >> (place * 5)) & 31).unwrap_or(0);
            text.push(char::from(ALPHABET[five_bits]));
        }
        Self(text.into())
    }
}

text_id! {
    /// The boundary that no read and no write crosses: 1–64 of `a–z 0–9 - _ .`.
    Tenant
}

impl Tenant {
    /// Checks length and alphabet.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        label("tenant.name", text)?;
        Ok(Self(text.into()))
    }

    /// The tenant of everybody who has no other credentials.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

/// Longest name of a tenant or a token, in bytes.
const LABEL: usize = 64;

/// The rules of tenants' and tokens' names; `field` is named in the error.
pub(super) fn label(field: &'static str, text: &str) -> Result<(), ParseError> {
    length(field, text, LABEL)?;
    characters(field, text, "use only a–z 0–9 - _ .", |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
    })?;
    match text.chars().next() {
        Some(character @ ('.' | '-')) => {
            let allowed = "begin with a letter, a digit or _";
            Err(ParseError::Character { field, character, at: 0, allowed })
        }
        _ => Ok(()),
    }
}

text_id! {
    /// One running environment service; chosen once for a data directory.
    NodeId
}

impl NodeId {
    /// Checks it like a name.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Name::parse("node.id", text).map(|name| Self(name.0))
    }
}

text_id! {
    /// One running core service; chosen once for a data directory.
    ReplicaId
}

impl ReplicaId {
    /// Checks it like a name.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Name::parse("core.id", text).map(|name| Self(name.0))
    }

    /// An id out of 80 random bits.
    pub fn from_random(bits: [u8; 10]) -> Self {
        Self(InstanceId::from_random(bits).0)
    }
}

text_id! {
    /// A name that an author or operator chose (workflow, step, signal, image, version):
    /// 1–200 bytes of UTF-8 without control characters.
    Name
}

impl Name {
    /// Longest name in bytes.
    pub const MAX: usize = 200;

    /// Checks length and characters; `field` is named in the error.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, ParseError> {
        length(field, text, Self::MAX)?;
        characters(field, text, "control characters are not allowed", |c| !c.is_control())?;
        Ok(Self(text.into()))
    }
}

text_id! {
    /// Tells operations of one name apart: any text without NUL, empty for none, at most
    /// 1024 bytes (an index entry of PostgreSQL ends at 2,700).
    Key
}

impl Key {
    /// Longest key in bytes.
    pub const MAX: usize = 1024;

    /// Checks length and the absence of NUL.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if !text.is_empty() {
            length("operation.key", text, Self::MAX)?;
            characters("operation.key", text, "NUL cannot be stored", |c| c != '\0')?;
        }
        Ok(Self(text.into()))
    }

    /// The key of an operation whose name does not repeat.
    pub fn none() -> Self {
        Self("".into())
    }
}

/// The small internal key of an instance in the tables. Never shown, never on the wire;
/// grows with each start, so it is also the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceKey(pub i64);

/// One launch of an instance's process: 1, 2, 3 …; 0 before the first claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Attempt {
    /// Before the first claim.
    pub const NONE: Self = Self(0);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One registration of an attempt; each reconnect opens the next. 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session(pub u32);

impl Session {
    /// Before the first registration of the attempt.
    pub const NONE: Self = Self(0);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The SHA-256 of an image's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let refused = ParseError::Digest { field: "image.digest" };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(refused);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [Some(high), Some(low)] = [pair[0], pair[1]].map(|d| char::from(d).to_digit(16)) else {
                return Err(refused);
            };
            *byte = u8::try_from(high * 16 + low).map_err(|_| refused.clone())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The secret of one attempt. Shown in no log: it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct AttemptToken(pub [u8; 32]);

impl AttemptToken {
    /// What the tables keep instead of the token.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptToken(hidden)")
    }
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_ids_take_only_their_alphabet() {
        for good in ["a", "Order-17:2026.11_x", "_", &"x".repeat(128)] {
            assert_eq!(InstanceId::parse(good).map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "ä", "a/b", "..", "-rf", "a\n", &"x".repeat(129)] {
            assert!(InstanceId::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn random_ids_are_sixteen_characters_and_use_all_bits() {
        let low = InstanceId::from_random([0; 10]);
        let high = InstanceId::from_random([255; 10]);
        assert_eq!(low.as_str(), "aaaaaaaaaaaaaaaa");
        assert_eq!(high.as_str(), "9999999999999999");
        let one = InstanceId::from_random([0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(one.as_str(), "aaaaaaaaaaaaaaab");
    }

    #[test]
    fn names_refuse_control_characters_and_say_where() {
        let error = Name::parse("signal.name", "a\u{7}b").unwrap_err();
        assert_eq!(
            error.to_string(),
            "signal.name contains '\\u{7}' at byte 1; control characters are not allowed"
        );
        assert!(Key::parse("a\nb").is_ok(), "keys are file names too");
        assert!(Key::parse("a\0b").is_err());
    }

    #[test]
    fn digests_read_what_they_print() {
        let digest = Digest([0xab; 32]);
        assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        assert!(Digest::parse("zz").is_err());
        assert!(Digest::parse(&"é".repeat(32)).is_err());
    }

    #[test]
    fn a_token_is_never_printed() {
        assert_eq!(format!("{:?}", AttemptToken([7; 32])), "AttemptToken(hidden)");
    }
}
