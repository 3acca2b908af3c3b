//! The layers above the defaults: a TOML file, the environment's variables, the flags.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Error, KEYS, Key, Shape};

/// Who said a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// This program, whose default is another one than the table's.
    Program(&'static str),
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(&'static str),
    /// A flag, with its dashes.
    Flag(String),
}

impl Origin {
    /// The higher wins.
    pub(super) fn layer(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Program(_) => 1,
            Self::File { .. } => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Program(name) => write!(f, "default of {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What one layer says of one key.
#[derive(Clone, Debug)]
pub struct Given {
    /// Of which.
    pub key: &'static Key,
    /// As text.
    pub text: String,
    /// By whom.
    pub origin: Origin,
}

/// What the environment's variables say; an empty one says nothing.
pub(super) fn variables(environment: &BTreeMap<OsString, OsString>) -> Result<Vec<Given>, Error> {
    let mut given = Vec::new();
    for key in KEYS {
        let set = key.variables.iter().find_map(|name| {
            let value = environment.get(std::ffi::OsStr::new(name))?;
            (!value.is_empty()).then_some((*name, value))
        });
        let Some((name, value)) = set else { continue };
        let origin = Origin::Variable(name);
        let Some(text) = value.to_str() else {
            let value = if key.secret { "(hidden)".to_owned() } else { value.display().to_string() };
            return Err(Error::Value { key: key.name, value, at: origin, must: "UTF-8".to_owned() });
        };
        given.push(Given { key, text: text.to_owned(), origin });
    }
    Ok(given)
}

/// What a file says.
pub(super) fn file(path: &Path, text: &str) -> Result<Vec<Given>, Error> {
    let line = |offset: usize| text.as_bytes()[..offset.min(text.len())].split(|b| *b == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        line: line(error.span().map_or(0, |span| span.start)),
        problem: error.message().replace('\n', ", "),
    })?;
    let mut given = Vec::new();
    for (name, value) in table.get_ref() {
        let at = Origin::File { path: path.to_owned(), line: line(name.span().start) };
        let Some(key) = Key::named(name.get_ref()) else {
            return Err(unknown(name.get_ref(), at));
        };
        let text = plain(key, value.get_ref(), &at)?;
        let text = if key.is_path { beside(path, text) } else { text };
        given.push(Given { key, text, origin: at });
    }
    given.sort_by_key(|given| KEYS.iter().position(|key| key.name == given.key.name));
    Ok(given)
}

/// A relative path begins at the file's folder.
fn beside(file: &Path, text: String) -> String {
    if text.is_empty() || Path::new(&text).is_absolute() {
        return text;
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    folder.join(&text).to_str().map_or(text, str::to_owned)
}

fn unknown(name: &str, at: Origin) -> Error {
    let near = KEYS.iter().map(|key| (strsim::jaro_winkler(name, key.name), key.name));
    let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.8);
    let remedy = match nearest {
        Some((_, near)) => format!("is {near} meant? `dormouse config show` lists all"),
        None => "`dormouse config show` lists all".to_owned(),
    };
    Error::UnknownKey { key: name.to_owned(), at, remedy }
}

/// A TOML value as the text that the key's type reads; refused if it is of another kind.
fn plain(key: &'static Key, value: &DeValue<'_>, at: &Origin) -> Result<String, Error> {
    let text = match (key.shape, value) {
        (Shape::Text | Shape::TextOrInteger | Shape::List, DeValue::String(text)) => Some(text.to_string()),
        (Shape::Integer | Shape::TextOrInteger, DeValue::Integer(number)) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string())
        }
        (Shape::List, DeValue::Array(parts)) => {
            let parts = parts.iter().map(|part| part.get_ref().as_str().map(str::to_owned));
            parts.collect::<Option<Vec<_>>>().map(|parts| parts.join(","))
        }
        _ => None,
    };
    text.ok_or_else(|| Error::Value {
        key: key.name,
        value: match value {
            DeValue::String(text) if !key.secret => format!("the string {text:?}"),
            _ => kind(value).to_owned(),
        },
        at: at.clone(),
        must: match key.shape {
            Shape::Text => format!("{}, as a string in quotes", super::must_of(key)),
            Shape::Integer => format!("{}, without quotes", super::must_of(key)),
            Shape::TextOrInteger => super::must_of(key),
            Shape::List => format!("an array of strings, each {}", super::must_of(key)),
        },
    })
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
