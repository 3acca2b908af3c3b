//! The three columns of a payload, in every table that has one.

use prost::bytes::Bytes;

use super::{error::Result, sql::Row};
use crate::domain::payload::{Encoding, Payload};

/// `data, encoding, type_name` as arguments; all none without a payload.
pub(super) fn columns(payload: Option<&Payload>) -> (Option<&[u8]>, Option<&'static str>, Option<&str>) {
    match payload {
        Some(payload) => {
            (Some(&payload.data), Some(payload.encoding.as_str()), Some(payload.type_name.as_str()))
        }
        None => (None, None, None),
    }
}

/// Reads `data, encoding, type_name`.
pub(super) fn read(row: &Row) -> Result<Option<Payload>> {
    read_from(row, "data")
}

/// Reads `encoding, type_name` and the bytes in a column of another name.
pub(super) fn read_from(row: &Row, data: &'static str) -> Result<Option<Payload>> {
    let Some(data) = row.opt_blob(data)? else { return Ok(None) };
    Ok(Some(Payload {
        data: data.into(),
        encoding: row.parsed("encoding", Encoding::parse)?,
        type_name: row.text("type_name")?,
    }))
}

/// Cuts a text for people to at most `max` bytes, between characters.
pub(super) fn cut(text: &mut String, max: usize) {
    text.truncate(text.floor_char_boundary(max));
}

/// Bytes of our own that are no JSON.
pub(super) fn raw(data: &[u8], type_name: &str) -> Payload {
    Payload { data: Bytes::copy_from_slice(data), encoding: Encoding::Raw, type_name: type_name.to_owned() }
}
