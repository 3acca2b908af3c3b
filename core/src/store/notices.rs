//! Who should look again: told after a commit, gathered, to this process and to its peers.
//!
//! A notice carries no state and may be lost: whoever listens looks into the database, and a
//! slow poll of its own stands beneath. So a lost notice costs latency, never a wake.

use tokio::sync::{broadcast, mpsc};

use crate::domain::id::InstanceKey;

/// Notices that a slow listener may fall behind before it is told [`Notice::Everything`].
const BACKLOG: usize = 1024;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A wake was set, moved or freed: schedulers look.
    Wakes,
    /// Something of this instance changed that its session, its node or a watcher wants to know.
    Instance(InstanceKey),
    /// This instance ended or was deleted: who waits for nothing else looks. [`Notice::Instance`] is told too.
    Ended(InstanceKey),
    /// A token was made, revoked or replaced: what is remembered of tokens is old.
    Tokens,
    /// A version's spares or reuse changed, or it was deleted: what is kept of it is old.
    Images,
    /// Notices were lost: look at everything.
    Everything,
}

/// Receives notices. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Notices(broadcast::Receiver<Notice>);

impl Notices {
    /// The next notice; `None` once the store is closed. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.0.recv().await {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Notice::Everything),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Hands notices to this process's listeners and to the task that tells the peers.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    here: broadcast::Sender<Notice>,
    peers: mpsc::Sender<Notice>,
}

impl Hub {
    /// The hub, and what the task that tells the peers reads.
    pub(super) fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (here, _) = broadcast::channel(BACKLOG);
        let (peers, outbox) = mpsc::channel(BACKLOG);
        (Self { here, peers }, outbox)
    }

    pub(super) fn subscribe(&self) -> Notices {
        Notices(self.here.subscribe())
    }

    /// After a commit of this process. A full outbox drops: peers poll.
    pub(super) fn committed(&self, notices: Vec<Notice>) {
        for notice in notices {
            self.heard(notice);
            let _ = self.peers.try_send(notice);
        }
    }

    /// From a peer, or after a connection to the peers was lost.
    pub(super) fn heard(&self, notice: Notice) {
        // No listener is no error.
        let _ = self.here.send(notice);
    }
}

/// Says that endings are told as such. Releases before 0.3.0 do not: there any change may be one.
const ENDINGS: &str = "x";

/// Notices for the wire between peers: "w", "t", "i", "e", instance keys and, with an "x" before it, those that
/// ended, separated by spaces, at most `max` bytes each; without repeats.
pub(super) fn encode(origin: &str, notices: &[Notice], max: usize) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    for notice in notices {
        let word = match notice {
            Notice::Wakes => "w".to_owned(),
            Notice::Tokens => "t".to_owned(),
            Notice::Images => "i".to_owned(),
            Notice::Everything => "e".to_owned(),
            Notice::Instance(key) => key.0.to_string(),
            Notice::Ended(key) => format!("x{}", key.0),
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    for word in words {
        match texts.last_mut() {
            Some(text) if text.len() + 1 + word.len() <= max => {
                text.push(' ');
                text.push_str(&word);
            }
            _ => texts.push(format!("{origin} {ENDINGS} {word}")),
        }
    }
    texts
}

/// Reads what [`encode`] wrote; nothing if it is our own. What a newer release adds is skipped.
pub(super) fn decode(origin: &str, text: &str) -> Vec<Notice> {
    let mut words = text.split(' ').peekable();
    if words.next() == Some(origin) {
        return Vec::new();
    }
    let tells_endings = words.next_if_eq(&ENDINGS).is_some();
    let mut notices = Vec::new();
    for word in words {
        match word {
            "w" => notices.push(Notice::Wakes),
            "t" => notices.push(Notice::Tokens),
            "i" => notices.push(Notice::Images),
            "e" => notices.push(Notice::Everything),
            word => {
                let (ended, key) = word.strip_prefix(ENDINGS).map_or((false, word), |key| (true, key));
                let Some(key) = key.parse().ok().map(InstanceKey) else { continue };
                if !ended {
                    notices.push(Notice::Instance(key));
                }
                if ended || !tells_endings {
                    notices.push(Notice::Ended(key));
                }
            }
        }
    }
    notices
}

/// Waits for the next notice and takes what else is there; `None` once nobody can send any more.
pub(super) async fn gather(outbox: &mut mpsc::Receiver<Notice>) -> Option<Vec<Notice>> {
    let mut notices = Vec::new();
    (outbox.recv_many(&mut notices, BACKLOG).await > 0).then_some(notices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_read_what_was_written_and_skip_their_own() {
        let key = InstanceKey(17);
        let notices = [
            Notice::Wakes,
            Notice::Instance(key),
            Notice::Ended(key),
            Notice::Tokens,
            Notice::Images,
            Notice::Wakes,
        ];
        let texts = encode("abc", &notices, 1000);
        assert_eq!(texts, ["abc x w 17 x17 t i"]);
        assert_eq!(decode("xyz", &texts[0]), notices[..5]);
        assert_eq!(decode("abc", &texts[0]), []);
        assert_eq!(decode("xyz", "abc x w new:word"), [Notice::Wakes]);
    }

    #[test]
    fn any_change_that_an_older_release_tells_may_be_an_ending() {
        let key = InstanceKey(17);
        assert_eq!(decode("xyz", "abc w 17"), [Notice::Wakes, Notice::Instance(key), Notice::Ended(key)]);
    }

    #[test]
    fn long_lists_are_split() {
        let notices: Vec<Notice> = (0..100).map(|key| Notice::Instance(InstanceKey(key))).collect();
        let texts = encode("abc", &notices, 50);
        assert!(texts.iter().all(|text| text.len() <= 50));
        assert_eq!(texts.iter().flat_map(|text| decode("", text)).collect::<Vec<_>>(), notices);
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_to_look_at_everything() {
        let (hub, _outbox) = Hub::new();
        let mut slow = hub.subscribe();
        for key in 0..=BACKLOG {
            hub.heard(Notice::Instance(InstanceKey(i64::try_from(key).expect("small"))));
        }
        assert_eq!(slow.next().await, Some(Notice::Everything));
    }
}
