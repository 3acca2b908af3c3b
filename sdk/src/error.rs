//! What a workflow or a step fails with.
//!
//! A [`Failure`] is data, not an error object: it is saved with a step, shown to people and handed to
//! whoever waits for the instance, so it must mean the same after a relaunch as before. That is why
//! it keeps a code and a message but never the original error.

use std::fmt;

use dormouse_proto::instance;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What workflows and durable operations return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The codes that this crate itself puts into a [`Failure`].
///
/// A code that core answers with (`RESOURCE_EXHAUSTED`, `INVALID_ARGUMENT` …) is passed on as it is.
pub mod code {
    /// An error without a code of its own: whatever `?` turned into a failure.
    pub const ERROR: &str = "ERROR";
    /// The instance was cancelled, and this is the operation that feels it.
    pub const CANCELLED: &str = "CANCELLED";
    /// One try of a step took longer than its time limit.
    pub const STEP_TIMED_OUT: &str = "STEP_TIMED_OUT";
    /// Two operations of one launch have the same name and key.
    pub const NAME_USED_TWICE: &str = "NAME_USED_TWICE";
    /// A name, a key, a moment or a payload that cannot be stored.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// A value that cannot be written as JSON.
    pub const NOT_ENCODABLE: &str = "NOT_ENCODABLE";
    /// What is stored under a name is not of the type that the code expects. Ends the instance at once.
    pub const RESULT_UNREADABLE: &str = "RESULT_UNREADABLE";
    /// A signal's payload is not of the type that the workflow expects.
    pub const SIGNAL_UNREADABLE: &str = "SIGNAL_UNREADABLE";
    /// The instance's input is not of the type that the workflow expects.
    pub const INPUT_UNREADABLE: &str = "INPUT_UNREADABLE";
    /// The image holds no workflow of that name.
    pub const UNKNOWN_WORKFLOW: &str = "UNKNOWN_WORKFLOW";
}

/// Why a step or a workflow failed: a code for programs, a message for people.
///
/// Any standard error becomes one by `?`, with the code `ERROR`, its whole chain as the message, and
/// *retryable*. Others are made with [`Failure::new`] or, from boxed errors, [`Failure::because`].
///
/// ```
/// use dormouse_sdk::{Failure, Result};
///
/// fn parse(text: &str) -> Result<u32> {
///     let number: u32 = text.trim().parse()?;
///     if number == 0 {
///         return Err(Failure::new("NOTHING_ORDERED", "the quantity is 0").permanent());
///     }
///     Ok(number)
/// }
///
/// assert_eq!(parse("x").unwrap_err().code(), "ERROR");
/// assert!(!parse("0").unwrap_err().is_retryable());
/// ```
// Deliberately no std::error::Error: with it the conversion from every error would be impossible.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    code: String,
    message: String,
    retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
}

impl Failure {
    /// A failure that may be tried again. `code` is a word for programs, in capitals.
    pub fn new(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { code: code.into(), message: message.to_string(), retryable: true, details: None }
    }

    /// A failure from anything that becomes a boxed error: `anyhow::Error`, `Box<dyn Error>`, a text.
    pub fn because(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(code::ERROR, chain(error.into().as_ref()))
    }

    /// The same failure, but trying again cannot help: a step's policy gives up at once.
    #[must_use]
    pub fn permanent(self) -> Self {
        Self { retryable: false, ..self }
    }

    /// The same failure with another code.
    #[must_use]
    pub fn with_code(self, code: impl Into<String>) -> Self {
        Self { code: code.into(), ..self }
    }

    /// The same failure with details for programs. Details that are not JSON say so instead.
    #[must_use]
    pub fn with_details(self, details: impl Serialize) -> Self {
        let details = serde_json::to_value(details)
            .unwrap_or_else(|error| Value::String(format!("the details cannot be written as JSON: {error}")));
        Self { details: Some(details), ..self }
    }

    /// The word for programs.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// What else programs may want to know.
    pub fn details(&self) -> Option<&Value> {
        self.details.as_ref()
    }

    /// Whether this is the instance's cancellation, as its first unsaved operation feels it.
    pub fn is_cancelled(&self) -> bool {
        self.code == code::CANCELLED
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(code::CANCELLED, "the instance was cancelled").permanent()
    }

    pub(crate) fn invalid(message: impl fmt::Display) -> Self {
        Self::new(code::INVALID_ARGUMENT, message).permanent()
    }

    pub(crate) fn of_wire(error: instance::Error) -> Self {
        Self { code: error.code, message: error.message, retryable: error.retryable, details: None }
    }

    pub(crate) fn into_wire(self) -> instance::Failure {
        let details = self.details.map(|value| value.to_string().into_bytes()).unwrap_or_default();
        instance::Failure { code: self.code, message: self.message, retryable: self.retryable, details }
    }

    pub(crate) fn from_wire(failure: instance::Failure) -> Self {
        let details = serde_json::from_slice(&failure.details).ok();
        Self { code: failure.code, message: failure.message, retryable: failure.retryable, details }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl fmt::Debug for Failure {
    // Tests show failures with {:?}: a sentence reads better there than a struct.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({}: {}", self.code, self.message)?;
        if !self.retryable {
            f.write_str("; permanent")?;
        }
        if let Some(details) = &self.details {
            write!(f, "; {details}")?;
        }
        f.write_str(")")
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(code::ERROR, chain(&error))
    }
}

/// The error and its causes, the outermost first, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Many errors repeat their cause in their own sentence.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standard_error_brings_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("the stock is closed")]
        struct Outer(#[source] std::num::ParseIntError);

        let cause = "x".parse::<u8>().unwrap_err();
        let failure = Failure::from(Outer(cause));
        assert_eq!(failure.to_string(), "the stock is closed: invalid digit found in string (ERROR)");
        assert!(failure.is_retryable());
    }

    #[test]
    fn the_wire_keeps_everything() {
        let failure = Failure::new("DECLINED", "no money").permanent().with_details(vec![1, 2]);
        assert_eq!(Failure::from_wire(failure.clone().into_wire()), failure);
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }
}
