//! The error codes: stable words that programs may compare. Each has a page, `docs/errors/CODE.md`.

use std::fmt;

/// Whether a repeat of the same request may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request gets the same answer.
    Never,
    /// The same request may succeed later.
    Later,
}

/// An error that has a code.
pub trait Coded: std::error::Error {
    /// The code that a caller gets to see.
    fn code(&self) -> Code;

    /// Whether a repeat of the same request may help.
    fn retry(&self) -> Retry {
        self.code().retry()
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $word:literal $retry:ident $remedy:literal;)+) => {
        /// A stable error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name),+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// The code of a word on the wire; `None` for a word of a newer release.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)+ _ => None }
            }

            /// Whether a repeat of the same request may help.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry),+ }
            }

            /// What to do, in general; an error's message says it for the case at hand.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),+ }
            }
        }
    };
}

codes! {
    /// A field is missing, too large or malformed.
    InvalidArgument "INVALID_ARGUMENT" Never "correct the field that the message names and send the request again";
    /// What the request names does not exist.
    NotFound "NOT_FOUND" Never "check the name; what is listed exists";
    /// It exists and differs from what was asked.
    AlreadyExists "ALREADY_EXISTS" Never "choose another id or name, or repeat exactly the earlier request";
    /// A newer attempt or session writes now.
    Fenced "FENCED" Never "a newer attempt took over; end this process";
    /// The state does not allow it.
    FailedPrecondition "FAILED_PRECONDITION" Never "bring about the state that the message names first";
    /// A limit is reached.
    ResourceExhausted "RESOURCE_EXHAUSTED" Later "wait until something is done, or raise the limit that the message names";
    /// No credential, or one that is not known.
    Unauthenticated "UNAUTHENTICATED" Never "use a credential of this cluster";
    /// The credential does not allow it.
    PermissionDenied "PERMISSION_DENIED" Never "use a credential that allows it";
    /// The service cannot answer now.
    Unavailable "UNAVAILABLE" Later "the service cannot answer now; repeat the call";
    /// The time that was allowed is over; the request may have had its effect.
    DeadlineExceeded "DEADLINE_EXCEEDED" Later "repeat the call, with more time if it happens again";
    /// This release does not know the operation or the protocol version.
    Unimplemented "UNIMPLEMENTED" Never "use a release on both sides that knows the operation";
    /// A defect of Dormouse or of its database.
    Internal "INTERNAL" Never "this is a defect; report it with the service's log";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_parsed_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
        assert_eq!(Code::parse("fenced"), None);
    }
}
