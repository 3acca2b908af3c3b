//! Frames: a big-endian `u32` with the length of the message, then the message.
//!
//! A length is checked before memory is taken, and memory grows with the bytes that have arrived, so a peer
//! that promises a large frame and sends nothing costs nothing.

use std::io;

use prost::Message;
use prost::bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Memory grows by at least so much, so that many small frames take one read …
const READ_AT_LEAST: usize = 2 * 1024;
/// … and by at most so much, so that it stays close to what has arrived.
const READ_AT_MOST: usize = 64 * 1024;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than its stream allows.
    #[error("a frame of {bytes} bytes is refused, at most {max} are allowed here; send smaller payloads")]
    TooLarge {
        /// The frame's length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The frame holds more fields than a request may have.
    #[error("a frame has more than {max} fields; send less in one request")]
    TooManyFields {
        /// What is allowed.
        max: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The bytes are no message of this protocol.
    #[error("a frame is no message of this protocol")]
    Malformed(#[source] prost::DecodeError),
    /// The stream failed.
    #[error("the stream failed")]
    Read(#[source] io::Error),
}

/// The frame of `message`, with its length prefix.
///
/// Fails if the message is longer than [`limits::BULK_FRAME_MAX_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let bytes = message.encoded_len();
    let prefix = match u32::try_from(bytes) {
        Ok(prefix) if bytes <= limits::BULK_FRAME_MAX_BYTES => prefix,
        _ => return Err(FrameError::TooLarge { bytes, max: limits::BULK_FRAME_MAX_BYTES }),
    };
    let mut frame = Vec::with_capacity(PREFIX_BYTES + bytes);
    frame.extend_from_slice(&prefix.to_be_bytes());
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// The message in a frame's body.
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, FrameError> {
    M::decode(body).map_err(FrameError::Malformed)
}

/// The request in a frame's body. Its fields are counted before they are decoded: see
/// [`limits::REQUEST_FIELDS`].
#[cfg(feature = "server")]
pub(crate) fn decode_request<M: Message + Default>(body: Bytes) -> Result<M, FrameError> {
    let max = limits::REQUEST_FIELDS;
    let mut count = 0;
    // What repeats stands in the operation, which is a field of the frame.
    for inner in Fields(&body) {
        count += 1 + Fields(inner).take(max).count();
        if count > max {
            return Err(FrameError::TooManyFields { max });
        }
    }
    decode(body)
}

/// The fields of an encoded message, each as its bytes, empty if it is a number. Ends at what is no field: whoever
/// decodes the message refuses that.
#[cfg(feature = "server")]
struct Fields<'a>(&'a [u8]);

#[cfg(feature = "server")]
impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        use prost::encoding::decode_varint;

        let Self(rest) = self;
        let (skip, keep) = match decode_varint(rest).ok()? & 7 {
            0 => {
                decode_varint(rest).ok()?;
                (0, 0)
            }
            1 => (8, 0),
            2 => (0, usize::try_from(decode_varint(rest).ok()?).ok()?),
            5 => (4, 0),
            _ => return None,
        };
        *rest = rest.get(skip..)?;
        let (field, behind) = rest.split_at_checked(keep)?;
        *rest = behind;
        Some(field)
    }
}

/// Reads frames from a stream. Its futures may be dropped at any moment: what has arrived is kept.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Waits for the next frame's length, which is at most `max`. `None`: the stream ended between frames.
    /// Called again, it answers the same until [`Self::body`] has taken the body.
    pub async fn length(&mut self, max: usize) -> Result<Option<usize>, FrameError> {
        if !self.fill(PREFIX_BYTES).await? {
            return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
        }
        let bytes = self.prefix();
        if bytes > max { Err(FrameError::TooLarge { bytes, max }) } else { Ok(Some(bytes)) }
    }

    /// Waits until `bytes` of the next frame's body are here.
    #[cfg(feature = "server")]
    pub(crate) async fn arrived(&mut self, bytes: usize) -> Result<(), FrameError> {
        if self.fill(PREFIX_BYTES + bytes).await? { Ok(()) } else { Err(FrameError::Truncated) }
    }

    /// Takes the body of the frame whose length [`Self::length`] has told.
    pub async fn body(&mut self) -> Result<Bytes, FrameError> {
        if !self.fill(PREFIX_BYTES).await? {
            return Err(FrameError::Truncated);
        }
        let bytes = self.prefix();
        if !self.fill(PREFIX_BYTES + bytes).await? {
            return Err(FrameError::Truncated);
        }
        self.buffer.advance(PREFIX_BYTES);
        let body = self.buffer.split_to(bytes).freeze();
        if self.buffer.is_empty() {
            // What the body lies in belongs to the body now; a quiet stream keeps no large memory.
            self.buffer = BytesMut::new();
        }
        Ok(body)
    }

    /// Waits until the stream ends; bytes that still come are an error.
    pub async fn end(&mut self) -> Result<(), FrameError> {
        if self.fill(1).await? {
            Err(FrameError::TooLarge { bytes: self.buffer.len(), max: 0 })
        } else {
            Ok(())
        }
    }

    /// Reads until `bytes` are in the buffer; `false`: the stream ended before.
    async fn fill(&mut self, bytes: usize) -> Result<bool, FrameError> {
        while self.buffer.len() < bytes {
            let missing = bytes - self.buffer.len();
            self.buffer.reserve(missing.clamp(READ_AT_LEAST, READ_AT_MOST));
            // Safe to drop: `read_buf` either has read into the buffer or has read nothing.
            if self.stream.read_buf(&mut self.buffer).await.map_err(FrameError::Read)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn prefix(&self) -> usize {
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(&self.buffer[..PREFIX_BYTES]);
        usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::instance::{ClientFrame, Payload};

    fn frame(bytes: usize) -> Payload {
        Payload { data: vec![7; bytes].into(), encoding: "raw".to_owned(), type_name: String::new() }
    }

    #[tokio::test]
    async fn frames_come_back_in_order_however_they_are_cut() {
        let messages = [frame(0), frame(1), frame(300_000), frame(5)];
        let all: Vec<u8> =
            messages.iter().flat_map(|message| encode(message).expect("a small message")).collect();
        for cut in [1, 3, 4, 5, 1000, all.len()] {
            let (mut sender, receiver) = tokio::io::duplex(cut);
            let bytes = all.clone();
            let writer = async move {
                sender.write_all(&bytes).await.expect("the reader is there");
            };
            let reader = async {
                let mut reader = FrameReader::new(receiver);
                let mut got = Vec::new();
                while reader.length(limits::BULK_FRAME_MAX_BYTES).await.expect("a length").is_some() {
                    got.push(decode::<Payload>(reader.body().await.expect("a body")).expect("a message"));
                }
                got
            };
            let ((), got) = tokio::join!(writer, reader);
            assert_eq!(got, messages, "cut every {cut} bytes");
        }
    }

    #[tokio::test]
    async fn a_dropped_wait_loses_nothing() {
        let (mut sender, receiver) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(receiver);
        let bytes = encode(&frame(40)).expect("a small message");
        let mut context = Context::from_waker(Waker::noop());
        for part in bytes.chunks(3) {
            let length = pin!(reader.length(1000)).poll(&mut context);
            if let Poll::Ready(length) = length {
                length.expect("a length");
                assert!(pin!(reader.body()).poll(&mut context).is_pending());
            }
            sender.write_all(part).await.expect("the reader is there");
        }
        assert_eq!(reader.length(1000).await.expect("a length"), Some(bytes.len() - PREFIX_BYTES));
        assert!(decode::<Payload>(reader.body().await.expect("a body")).expect("a message") == frame(40));
    }

    #[tokio::test]
    async fn a_promise_of_too_much_is_refused_before_memory_is_taken() {
        let mut reader = FrameReader::new(&b"\xff\xff\xff\xff"[..]);
        let refused = reader.length(limits::FRAME_MAX_BYTES).await;
        assert!(matches!(
            refused,
            Err(FrameError::TooLarge { bytes: 0xffff_ffff, max: limits::FRAME_MAX_BYTES })
        ));
        assert!(reader.buffer.capacity() <= READ_AT_MOST);
    }

    #[tokio::test]
    async fn memory_follows_what_has_arrived() {
        let promised = u32::try_from(limits::BULK_FRAME_MAX_BYTES).expect("a small limit");
        let (mut sender, receiver) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(receiver);
        sender.write_all(&promised.to_be_bytes()).await.expect("the reader is there");
        assert!(reader.length(limits::BULK_FRAME_MAX_BYTES).await.expect("a length").is_some());
        let stalled = pin!(reader.body()).poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(stalled);
        assert!(
            reader.buffer.capacity() <= 2 * READ_AT_MOST,
            "{} bytes for nothing",
            reader.buffer.capacity()
        );
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_told_from_one_that_ends_between_them() {
        assert!(matches!(FrameReader::new(&b""[..]).length(9).await, Ok(None)));
        assert!(matches!(FrameReader::new(&b"\0\0"[..]).length(9).await, Err(FrameError::Truncated)));
        let mut reader = FrameReader::new(&b"\0\0\0\x05abc"[..]);
        assert!(matches!(reader.length(9).await, Ok(Some(5))));
        assert!(matches!(reader.body().await, Err(FrameError::Truncated)));
    }

    #[test]
    fn a_message_above_the_largest_frame_is_not_encoded() {
        assert!(matches!(encode(&frame(limits::BULK_FRAME_MAX_BYTES)), Err(FrameError::TooLarge { .. })));
        assert!(encode(&frame(limits::PAYLOAD_MAX_BYTES)).is_ok());
    }

    #[test]
    #[cfg(feature = "server")]
    fn fields_are_counted_before_they_are_decoded() {
        use crate::instance::client_frame::Operation;
        use crate::instance::{Suspend, Wait};

        let request = |waits| {
            let suspend = Suspend { waits: vec![Wait::default(); waits] };
            let frame = ClientFrame { id: 7, ..Operation::Suspend(suspend).into() };
            decode_request::<ClientFrame>(frame.encode_to_vec().into())
        };
        assert_eq!(request(1_000).expect("a request").id, 7);
        assert!(request(limits::REQUEST_FIELDS - 2).is_ok());
        let refused = request(limits::REQUEST_FIELDS);
        assert!(matches!(refused, Err(FrameError::TooManyFields { .. })), "{refused:?}");
        for garbage in [&b"\xff"[..], b"\x0a\xff\xff\xff\xff\x0f", b"\x09\x01", b"\x0f"] {
            let refused = decode_request::<ClientFrame>(Bytes::from_static(garbage));
            assert!(matches!(refused, Err(FrameError::Malformed(_))), "{garbage:?}: {refused:?}");
        }
    }

    #[test]
    fn garbage_is_malformed_and_unknown_fields_are_not() {
        assert!(matches!(
            decode::<ClientFrame>(Bytes::from_static(b"\xff\xff")),
            Err(FrameError::Malformed(_))
        ));
        // Field 999, length-delimited, one byte.
        let unknown = Bytes::from_static(b"\x08\x07\xba\x3e\x01x");
        assert_eq!(decode::<ClientFrame>(unknown).expect("a message").id, 7);
    }
}
