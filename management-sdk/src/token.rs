//! The secret that stands in for a certificate.
//!
//! It never stands on a command line, where every user of the machine could read it, and never in a message or a
//! log: [`Token`] prints where it comes from.

use std::{fmt, fs::File, io::Read as _, path::PathBuf};

use crate::{Error, target::variable};

/// What every token begins with, so that a wrong file or variable is noticed here, before it is sent anywhere.
const PREFIX: &str = "dmt_";

/// A token is 56 characters; what is longer than this is something else.
const MAX_BYTES: usize = 200;

/// Where the token comes from.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Token {
    /// There is none: the administrator's certificate is shown.
    #[default]
    None,
    /// The text itself.
    Text(Secret),
    /// A file that holds it, read at each connect.
    File(PathBuf),
}

/// A secret that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Token {
    /// The text of a token: what `dormouse token create` printed.
    pub fn text(text: &str) -> Result<Self, Error> {
        checked(text, "the token").map(|text| Self::Text(Secret(text)))
    }

    /// `DORMOUSE_TOKEN`, else the file that `DORMOUSE_TOKEN_FILE` names, else none.
    pub fn from_environment() -> Result<Self, Error> {
        if let Some(text) = variable("DORMOUSE_TOKEN") {
            // What is no text is no token either; it must not get into a message.
            let text = checked(&text.to_string_lossy(), "DORMOUSE_TOKEN")?;
            return Ok(Self::Text(Secret(text)));
        }
        Ok(variable("DORMOUSE_TOKEN_FILE").map_or(Self::None, |path| Self::File(path.into())))
    }

    /// The secret as it is now; `None`: there is none.
    pub(crate) fn read(&self) -> Result<Option<String>, Error> {
        match self {
            Self::None => Ok(None),
            Self::Text(Secret(text)) => Ok(Some(text.clone())),
            Self::File(path) => {
                let mut text = Vec::new();
                let limit = u64::try_from(MAX_BYTES).expect("small") + 2; // and the end of a line
                let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
                read.map_err(|source| Error::File { path: path.clone(), source })?;
                checked(&String::from_utf8_lossy(&text), &path.display().to_string()).map(Some)
            }
        }
    }
}

/// The token in `text`, which came from `from`. A message never repeats it.
fn checked(text: &str, from: &str) -> Result<String, Error> {
    let text = text.trim();
    let fits =
        text.len() <= MAX_BYTES && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !text.starts_with(PREFIX) || !fits {
        return Err(Error::Argument(format!(
            "{from} holds no token: one begins with {PREFIX} and is one word of letters and digits; make one with \
             `dormouse token create`"
        )));
    }
    Ok(text.to_owned())
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(secret) => secret.fmt(f),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_from_its_file_each_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        let token = Token::File(path.clone());
        assert!(matches!(token.read(), Err(Error::File { .. })));
        for text in ["dmt_ABC234", "dmt_XYZ567"] {
            std::fs::write(&path, format!("{text}\n")).expect("written");
            assert_eq!(token.read().expect("read").as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_token_is_not_sent_and_not_repeated() {
        let long = format!("dmt_{}", "A".repeat(10_000));
        for wrong in ["", "hunter2", "dmt_two words", "dmt_ä", &long] {
            let error = Token::text(wrong).expect_err(wrong).to_string();
            assert!(error.contains("dormouse token create"), "{error}");
            assert!(!error.contains("hunter2") && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn a_token_does_not_print_itself() {
        let token = Token::text("dmt_SECRET").expect("a token");
        assert!(!format!("{token:?}").contains("SECRET"));
    }
}
