//! Bytes that belong to an author, and the little that is known about them.

use prost::bytes::Bytes;

/// Bytes and what they are. The services never look inside. Cheap to clone: a part of the frame
/// that they came in, which lives as long as they do.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// At most `Limits::payload_bytes`.
    pub data: Bytes,
    /// How to read them.
    pub encoding: Encoding,
    /// The author's type, for the message when decoding fails; may be empty.
    pub type_name: String,
}

/// How a payload's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    /// A JSON value.
    #[default]
    Json,
    /// Only the author knows.
    Raw,
}

impl Encoding {
    /// The word on the wire and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Raw => "raw",
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "json" => Some(Self::Json),
            "raw" => Some(Self::Raw),
            _ => None,
        }
    }
}

impl Payload {
    /// A JSON text.
    pub fn json(text: impl Into<Vec<u8>>) -> Self {
        Self { data: Bytes::from(text.into()), encoding: Encoding::Json, type_name: String::new() }
    }
}

impl std::fmt::Debug for Payload {
    // Contents never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes of {} {})", self.data.len(), self.encoding.as_str(), self.type_name)
    }
}
