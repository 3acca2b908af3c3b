//! Inputs, outputs and payloads of signals: bytes and what they are.

use dormouse_proto::management as wire;
use serde::{Serialize, de::DeserializeOwned};

use crate::Error;

/// How a payload's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One JSON value.
    Json,
    /// Bytes that only the workflow understands.
    Raw,
}

/// Bytes, how they are encoded, and for JSON the author's name of the type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The bytes; at most 4 MiB.
    pub data: Vec<u8>,
    /// How to read them.
    pub encoding: Encoding,
    /// The author's type, for messages; may be empty.
    pub type_name: String,
}

impl Payload {
    /// A value as JSON.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self, Error> {
        let data = serde_json::to_vec(value)
            .map_err(|source| Error::Json { what: "the value to send".to_owned(), source })?;
        Ok(Self { data, encoding: Encoding::Json, type_name: String::new() })
    }

    /// Text that is checked to be one JSON value and is sent as it is.
    pub fn json_text(text: &str, what: &str) -> Result<Self, Error> {
        let _: &serde_json::value::RawValue =
            serde_json::from_str(text).map_err(|source| Error::Json { what: what.to_owned(), source })?;
        Ok(Self { data: text.as_bytes().to_vec(), encoding: Encoding::Json, type_name: String::new() })
    }

    /// Bytes that are no JSON.
    #[must_use]
    pub fn raw(data: Vec<u8>) -> Self {
        Self { data, encoding: Encoding::Raw, type_name: String::new() }
    }

    /// Decodes a JSON payload.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.data).map_err(|source| Error::Json {
            what: if self.type_name.is_empty() { "the payload".to_owned() } else { self.type_name.clone() },
            source,
        })
    }

    pub(crate) fn into_wire(self) -> wire::Payload {
        let encoding = match self.encoding {
            Encoding::Json => "json",
            Encoding::Raw => "raw",
        };
        wire::Payload { data: self.data.into(), encoding: encoding.to_owned(), type_name: self.type_name }
    }

    pub(crate) fn from_wire(payload: wire::Payload) -> Self {
        // An encoding that this release does not know is bytes to it.
        let encoding = if payload.encoding == "json" { Encoding::Json } else { Encoding::Raw };
        Self { data: payload.data.into(), encoding, type_name: payload.type_name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_sent_as_it_was_written() {
        let payload = Payload::json_text("{ \"n\": 1.50 }", "--input").expect("this is JSON");
        assert_eq!(payload.data, b"{ \"n\": 1.50 }");
    }

    #[test]
    fn text_that_is_no_json_names_where_it_came_from() {
        let error = Payload::json_text("{n:1}", "--input").expect_err("this is no JSON");
        assert!(error.to_string().starts_with("--input is not"), "{error}");
    }
}
