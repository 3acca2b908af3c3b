//! The control channel between the environment and one process: a pair of Unix sockets that keep datagrams apart.
//!
//! It is also a lifeline: when this service ends, however it ends, the process reads the end of the channel and,
//! if it has no instance, leaves. Nothing is ever waited for in here but a report.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixDatagram as StdDatagram,
};

use dormouse_proto::launch::{Order, Report, order, report::Word};
use prost::Message as _;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use tokio::net::UnixDatagram;

/// Descriptors that go with an order: standard output, standard error, the working directory.
pub(crate) const DESCRIPTORS: usize = 3;

/// A report is a word; a longer datagram is cut, and not understood.
const REPORT_MAX: usize = 64;

/// This service's end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: UnixDatagram,
}

impl Channel {
    /// Both ends: this one, and the process's. Within a tokio runtime.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let ours = StdDatagram::from(ours);
        ours.set_nonblocking(true)?;
        Ok((Self { socket: UnixDatagram::from_std(ours)? }, theirs))
    }

    /// Sends an order, at once or not at all: whoever does not read its orders gets no more of them.
    pub(crate) fn send(
        &self,
        order: order::Order,
        descriptors: Option<[BorrowedFd<'_>; DESCRIPTORS]>,
    ) -> io::Result<()> {
        let bytes = Order { order: Some(order) }.encode_to_vec();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(descriptors) = &descriptors
            && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(self.socket.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next report; `None` once the process's end is closed. May be dropped at any moment.
    pub(crate) async fn report(&self) -> Option<Word> {
        loop {
            let mut bytes = [0; REPORT_MAX];
            match self.socket.recv(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => {
                    if let Some(word) = word(&bytes[..n]) {
                        return Some(word);
                    }
                }
            }
        }
    }

    /// A report that is there already. Asks the kernel: what the runtime has heard of may be less.
    pub(crate) fn reported(&self) -> Option<Word> {
        let mut bytes = [0; REPORT_MAX];
        loop {
            match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                Ok((_, 0)) | Err(_) => return None,
                Ok((_, n)) => {
                    if let Some(word) = word(&bytes[..n.min(REPORT_MAX)]) {
                        return Some(word);
                    }
                }
            }
        }
    }
}

/// What a newer release may add is skipped.
fn word(bytes: &[u8]) -> Option<Word> {
    Report::decode(bytes).ok().map(|report| report.word()).filter(|word| *word != Word::Unknown)
}

#[cfg(test)]
mod tests {
    use dormouse_proto::launch::{LaunchDocument, SpareDocument};

    use super::*;

    fn tell(end: &OwnedFd, word: Word) {
        let report = Report { word: word.into() }.encode_to_vec();
        rustix::net::send(end, &report, SendFlags::NOSIGNAL).expect("sent");
    }

    #[tokio::test]
    async fn orders_and_reports_keep_their_bounds_and_the_end_is_heard() {
        let (channel, end) = Channel::pair().expect("a pair");
        let document = SpareDocument { format: 1, ..SpareDocument::default() };
        channel.send(order::Order::StandBy(document.clone()), None).expect("sent");
        channel.send(order::Order::Launch(LaunchDocument::default()), None).expect("sent");
        let mut bytes = [0; 4096];
        let (_, n) = rustix::net::recv(&end, &mut bytes, RecvFlags::empty()).expect("read");
        let first = Order::decode(&bytes[..n]).expect("one order").order;
        assert_eq!(first, Some(order::Order::StandBy(document)));

        tell(&end, Word::Ready);
        tell(&end, Word::Taken);
        assert_eq!(channel.report().await, Some(Word::Ready));
        assert_eq!(channel.reported(), Some(Word::Taken));
        drop(end);
        assert_eq!(channel.report().await, None);
        assert!(channel.send(order::Order::Launch(LaunchDocument::default()), None).is_err());
    }
}
