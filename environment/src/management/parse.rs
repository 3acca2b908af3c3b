//! Wire to typed values, once: after this nobody checks again. Every error names the field, what
//! it holds and what would pass.

use std::time::Duration;

use dormouse_core::domain::{
    id::{Digest, InstanceId, Name, ParseError},
    instance::Status,
    payload::{Encoding, Payload},
    wake::WaitingFor,
};
use dormouse_proto::{call::Refusal, code::Code, limits::PAYLOAD_MAX_BYTES, management as wire};

use crate::{attempts::Stream, limits::TYPE_NAME_BYTES};

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidArgument, message)
}

fn unparsed(error: &ParseError) -> Refusal {
    invalid(error.to_string())
}

/// An id, or the beginning of one.
pub(super) fn id(text: &str) -> Result<InstanceId, Refusal> {
    InstanceId::parse(text).map_err(|error| unparsed(&error))
}

pub(super) fn name(field: &'static str, text: &str) -> Result<Name, Refusal> {
    Name::parse(field, text).map_err(|error| unparsed(&error))
}

/// Empty stands for none.
pub(super) fn optional_name(field: &'static str, text: &str) -> Result<Option<Name>, Refusal> {
    if text.is_empty() { Ok(None) } else { name(field, text).map(Some) }
}

/// A version is written after a colon, a name before one.
pub(super) fn image_name(field: &'static str, text: &str) -> Result<Name, Refusal> {
    if text.contains(':') {
        return Err(invalid(format!(
            "{field} is {text:?}; a colon separates name and version, choose another name"
        )));
    }
    name(field, text)
}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Refusal> {
    <[u8; 32]>::try_from(bytes)
        .map(Digest)
        .map_err(|_| invalid(format!("image.digest has {} bytes; a SHA-256 has 32", bytes.len())))
}

/// Empty stands for all.
pub(super) fn status(text: &str) -> Result<Option<Status>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    Status::parse(text).map(Some).ok_or_else(|| {
        invalid(format!(
            "list.status is {text:?}; it must be PENDING, RUNNING, SUSPENDED, COMPLETED, FAILED or CANCELLED"
        ))
    })
}

/// Empty stands for all.
pub(super) fn waiting_for(text: &str) -> Result<Option<WaitingFor>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    WaitingFor::parse(text).map(Some).ok_or_else(|| {
        invalid(format!(
            "list.waiting_for is {text:?}; it must be sleep, signal, signal:NAME, resume or retry"
        ))
    })
}

pub(super) fn stream(text: &str) -> Result<Stream, Refusal> {
    Stream::parse(text)
        .ok_or_else(|| invalid(format!("logs.stream is {text:?}; it must be stdout or stderr")))
}

/// A missing payload is JSON `null`.
pub(super) fn payload(field: &'static str, payload: Option<wire::Payload>) -> Result<Payload, Refusal> {
    let Some(payload) = payload else { return Ok(Payload::json("null")) };
    if payload.data.len() > PAYLOAD_MAX_BYTES {
        return Err(invalid(format!(
            "{field} has {} bytes, at most {PAYLOAD_MAX_BYTES} are allowed; store it elsewhere and pass its address",
            payload.data.len()
        )));
    }
    let encoding = Encoding::parse(&payload.encoding).ok_or_else(|| {
        invalid(format!("{field}.encoding is {:?}; it must be json or raw", payload.encoding))
    })?;
    if payload.type_name.len() > TYPE_NAME_BYTES || payload.type_name.contains('\0') {
        return Err(invalid(format!(
            "{field}.type_name has {} bytes; at most {TYPE_NAME_BYTES} without NUL are allowed",
            payload.type_name.len()
        )));
    }
    if encoding == Encoding::Json
        && let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&payload.data)
    {
        return Err(invalid(format!("{field} is not JSON ({error}); correct it, or send it as raw bytes")));
    }
    Ok(Payload { data: payload.data, encoding, type_name: payload.type_name })
}

/// A span that is not negative; longer than `most` is `most`.
pub(super) fn at_most(micros: i64, most: Duration) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(most)
}

/// 0: none.
pub(super) fn limit(micros: i64) -> Result<Option<Duration>, Refusal> {
    match u64::try_from(micros) {
        Ok(0) => Ok(None),
        Ok(micros) => Ok(Some(Duration::from_micros(micros))),
        Err(_) => Err(invalid(format!("start.limit is {micros} µs; it must be positive, or 0 for none"))),
    }
}

/// What a page holds when nothing, or too much, was asked for.
pub(super) fn page(asked: u32, most: u32) -> u32 {
    if asked == 0 { most } else { asked.min(most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_checked_as_a_whole() {
        let wire = |data: &[u8], encoding: &str| {
            Some(wire::Payload {
                data: data.to_vec().into(),
                encoding: encoding.into(),
                type_name: String::new(),
            })
        };
        assert_eq!(payload("start.input", None).expect("null").data.as_ref(), b"null");
        assert!(payload("start.input", wire(b"{\"a\":[1]}", "json")).is_ok());
        assert!(payload("start.input", wire(b"\xff", "raw")).is_ok());
        for (data, encoding, words) in [
            (&b"{"[..], "json", "start.input is not JSON"),
            (b"1", "xml", "start.input.encoding"),
            (b"1 2", "json", "JSON"),
        ] {
            let refusal = payload("start.input", wire(data, encoding)).expect_err(words);
            assert_eq!(refusal.code, Code::InvalidArgument);
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
    }

    #[test]
    fn spans_and_pages_have_bounds() {
        assert_eq!(at_most(-5, Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(at_most(i64::MAX, Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(page(0, 500), 500);
        assert_eq!(page(9_999, 500), 500);
        assert!(limit(-1).is_err());
        assert_eq!(limit(0).expect("none"), None);
    }

    #[test]
    fn an_image_name_has_no_colon() {
        assert!(image_name("image.name", "a:b").is_err());
        assert!(image_name("image.name", "a/b").is_ok());
    }
}
