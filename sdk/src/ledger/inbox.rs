//! What is waiting for the instance: cancel, pause, unread signals.
//!
//! Inboxes arrive with answers and with pushes, on streams that are not ordered among each other,
//! so a stale one may come after a newer one. Nothing here can be lost by that: cancel only
//! rises, signals are a union minus what was taken, and a stale pause leads to a suspension that
//! core answers with the truth. Keeps invariant 5 on this side: each unread signal is offered to
//! one wait at a time.

use std::collections::{BTreeMap, HashSet};

use dormouse_proto::instance::{self, Cancel};

/// How far a cancellation got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cancelled {
    #[default]
    No,
    Asked,
    Felt,
}

#[derive(Debug)]
struct Unread {
    name: Box<str>,
    /// A wait has asked for it and has no answer yet.
    offered: bool,
}

/// The inbox as far as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) paused: bool,
    pub(crate) cancelled: Cancelled,
    unread: BTreeMap<u64, Unread>,
    /// Taken during this launch: a stale inbox may still name them.
    taken: HashSet<u64>,
}

impl Inbox {
    /// What an answer or a push says.
    pub(crate) fn merge(&mut self, news: instance::Inbox) {
        self.paused = news.paused;
        let cancelled = match Cancel::try_from(news.cancel).unwrap_or_default() {
            Cancel::No => Cancelled::No,
            Cancel::Asked => Cancelled::Asked,
            Cancel::Felt => Cancelled::Felt,
        };
        self.cancelled = self.cancelled.max(cancelled);
        for signal in news.unread {
            if !self.taken.contains(&signal.number) {
                self.unread
                    .entry(signal.number)
                    .or_insert_with(|| Unread { name: signal.name.into(), offered: false });
            }
        }
    }

    /// Whether a signal of this name is unread that no wait has asked for.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.unread.values().any(|signal| !signal.offered && *signal.name == *name)
    }

    /// Offers the oldest unread signal of this name to one wait.
    pub(crate) fn offer(&mut self, name: &str) -> Option<u64> {
        let (number, signal) =
            self.unread.iter_mut().find(|(_, signal)| !signal.offered && *signal.name == *name)?;
        signal.offered = true;
        Some(*number)
    }

    /// The wait got a signal, or core said that there is none: either way this one is gone.
    pub(crate) fn taken(&mut self, number: u64) {
        self.unread.remove(&number);
        self.taken.insert(number);
    }

    /// The wait did not ask, or core refused: another may.
    pub(crate) fn withdraw(&mut self, number: u64) {
        if let Some(signal) = self.unread.get_mut(&number) {
            signal.offered = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(paused: bool, cancel: Cancel, unread: &[(u64, &str)]) -> instance::Inbox {
        let unread = unread
            .iter()
            .map(|(number, name)| instance::UnreadSignal { number: *number, name: (*name).to_owned() })
            .collect();
        instance::Inbox { paused, cancel: cancel.into(), unread }
    }

    #[test]
    fn invariant_5_each_unread_signal_is_offered_once() {
        let mut inbox = Inbox::default();
        inbox.merge(news(false, Cancel::No, &[(7, "a"), (5, "a"), (6, "b")]));
        assert_eq!([inbox.offer("a"), inbox.offer("a"), inbox.offer("a")], [Some(5), Some(7), None]);
        inbox.taken(5);
        inbox.withdraw(7);
        inbox.merge(news(false, Cancel::No, &[(5, "a"), (7, "a")]));
        assert_eq!([inbox.offer("a"), inbox.offer("a")], [Some(7), None], "5 was taken: that news was stale");
    }

    #[test]
    fn a_cancel_only_rises() {
        let mut inbox = Inbox::default();
        inbox.merge(news(false, Cancel::Asked, &[]));
        inbox.merge(news(true, Cancel::No, &[]));
        assert_eq!(inbox.cancelled, Cancelled::Asked);
        assert!(inbox.paused);
    }
}
