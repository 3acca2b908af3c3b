//! Entries of an instance's append-only timeline.

use super::{id::Attempt, payload::Payload, time::Micros};

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $word:literal),+ $(,)?) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind { $($(#[$doc])* $variant),+ }

        impl EventKind {
            /// The word on the wire and in the tables.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Reads that word.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// The instance was started by a controller.
    Started "started",
    /// A node claimed its wake and launches an attempt.
    Claimed "claimed",
    /// The attempt's process registered.
    Registered "registered",
    /// The claim was given back, or the launch failed.
    LaunchFailed "launch_failed",
    /// The instance suspended itself.
    Suspended "suspended",
    /// A signal was stored.
    Signal "signal",
    /// A cancel was asked for.
    CancelAsked "cancel_asked",
    /// The workflow felt its cancellation.
    CancelFelt "cancel_felt",
    /// A pause was asked for.
    Paused "paused",
    /// A resume was asked for.
    Resumed "resumed",
    /// The attempt's process ended without an ending or a suspension.
    Crashed "crashed",
    /// The attempt was returned to the wake queue without fault of its own.
    Returned "returned",
    /// Progress as the workflow reports it.
    Progress "progress",
    /// An event of the author.
    Custom "custom",
    /// The ending.
    Completed "completed",
    /// The ending.
    Failed "failed",
    /// The ending.
    Cancelled "cancelled",
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// 1, 2, 3 … per instance.
    pub number: u64,
    /// When.
    pub at: Micros,
    /// The newest attempt at that moment.
    pub attempt: Attempt,
    /// What.
    pub kind: EventKind,
    /// One sentence for people; for a custom event its name.
    pub message: String,
    /// An author's bytes.
    pub payload: Option<Payload>,
}

/// How far a workflow says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all; 0: unknown.
    pub total: u64,
    /// What it is doing.
    pub message: String,
}
