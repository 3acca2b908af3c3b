//! The keys as flags: made from the table, so that names, help and defaults cannot differ.

use std::{ffi::OsString, marker::PhantomData, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{Given, KEYS, Key, Of, Origin, Shape};

/// Which program reads its flags; it decides which there are, and their names.
pub trait Program {
    /// As people call it.
    const NAME: &'static str;

    /// The flags of a key, without dashes, the first as the main one; none if the program takes it
    /// from elsewhere or does not look at it.
    fn flags(key: &Key) -> Vec<&'static str>;

    /// Its own defaults, where they are not the table's.
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[];
}

/// `dormouse-core`.
#[derive(Clone, Copy, Debug)]
pub struct CoreAlone;

impl Program for CoreAlone {
    const NAME: &'static str = "dormouse-core";

    fn flags(key: &Key) -> Vec<&'static str> {
        match (key.of, key.name) {
            (Of::Environment, _) => Vec::new(),
            (_, "core_listen") => vec!["listen", "core", key.flag],
            _ => vec![key.flag],
        }
    }
}

/// `dormouse-environment`.
#[derive(Clone, Copy, Debug)]
pub struct EnvironmentAlone;

impl Program for EnvironmentAlone {
    const NAME: &'static str = "dormouse-environment";

    fn flags(key: &Key) -> Vec<&'static str> {
        match (key.of, key.name) {
            (Of::Core, _) => Vec::new(),
            (_, "environment_listen") => vec!["listen", "environment", key.flag],
            (_, "core_addresses") => vec!["core", key.flag],
            _ => vec![key.flag],
        }
    }
}

/// The flags that a program was given, not yet looked at: wrong values are refused with those of
/// the other layers, in the same words.
#[derive(Clone, Debug)]
pub struct Flags<P> {
    /// `--config`.
    pub(super) config: Option<PathBuf>,
    pub(super) given: Vec<Given>,
    program: PhantomData<P>,
}

impl<P> Flags<P> {
    /// Adds what was said of a key in another way than by its flag.
    pub fn give(&mut self, name: &str, text: String, origin: Origin) {
        let key = Key::named(name).unwrap_or_else(|| panic!("{name} is a key"));
        self.given.push(Given { key, text, origin });
    }

    /// Whether the command line says something of a key.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|given| given.key.name == name).map(|given| given.text.as_str())
    }
}

impl<P: Program> Args for Flags<P> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A TOML file with settings; variables and flags win over it [env: DORMOUSE_CONFIG]");
        KEYS.iter().filter_map(argument::<P>).fold(command.arg(config), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument<P: Program>(key: &'static Key) -> Option<Arg> {
    let flags = P::flags(key);
    let (flag, aliases) = flags.split_first()?;
    let own = P::DEFAULTS.iter().find(|(name, _)| *name == key.name).map(|(_, value)| *value);
    let default = own.unwrap_or(key.default_shown());
    let facts = format!("[default: {default}] [env: {}]", key.variables[0]);
    let help = key.help.trim();
    let first_sentence = help.split(". ").next().unwrap_or(help).trim_end_matches('.');
    Some(
        Arg::new(key.name)
            .long(*flag)
            .visible_aliases(aliases.to_vec())
            .value_name(key.value)
            .value_parser(clap::value_parser!(OsString))
            .action(if key.shape == Shape::List { ArgAction::Append } else { ArgAction::Set })
            .help(format!("{first_sentence} {facts}"))
            .long_help(format!("{help} {facts}"))
            .hide_short_help(is_rare(key)),
    )
}

/// Limits fill pages: `--help` shows them, `-h` does not.
fn is_rare(key: &Key) -> bool {
    const USUAL: [&str; 10] = [
        "data_dir",
        "certs",
        "database",
        "database_file",
        "core_listen",
        "environment_listen",
        "core_addresses",
        "slots",
        "log",
        "log_format",
    ];
    !USUAL.contains(&key.name)
}

impl<P: Program> FromArgMatches for Flags<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for key in KEYS {
            let Some(flag) = P::flags(key).first().copied() else { continue };
            let Some(texts) = matches.get_many::<OsString>(key.name) else { continue };
            let texts = texts.map(|text| text.to_str()).collect::<Option<Vec<_>>>().ok_or_else(|| {
                clap::Error::raw(clap::error::ErrorKind::InvalidUtf8, format!("--{flag} is not UTF-8\n"))
            })?;
            given.push(Given { key, text: texts.join(","), origin: Origin::Flag(format!("--{flag}")) });
        }
        Ok(Self { config: matches.get_one::<PathBuf>("config").cloned(), given, program: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
