//! The configuration file of `up`: what a flag or an environment variable does not say.
//!
//! TOML, each key named like its flag. An unknown key, or a value that cannot be, is refused
//! with the file's name and the key.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use figment::{
    Figment,
    providers::{Format as _, Toml},
};
use serde::Deserialize;

use crate::{
    args::{Global, Services, Up},
    exit::Usage,
};

/// What the file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data_dir: Option<PathBuf>,
    core: Option<SocketAddr>,
    environment: Option<SocketAddr>,
    database: Option<String>,
    slots: Option<u32>,
}

/// Lays the file, if one is named, beneath flags and environment variables.
pub(crate) fn layered(global: &mut Global, args: Up) -> anyhow::Result<Services> {
    let Some(path) = args.config else { return Ok(args.services) };
    let file: File = Figment::from(Toml::file_exact(&path))
        .extract()
        .with_context(|| Usage(format!("--config {} cannot be used", path.display())))?;
    if let Some(slots) = file.slots
        && !(1..=100_000).contains(&slots)
    {
        let message = format!("--config {}: slots is {slots}; it must be 1 to 100000", path.display());
        return Err(Usage(message).into());
    }
    global.data_dir = global.data_dir.take().or(file.data_dir);
    let Services { core, environment, database, slots } = args.services;
    Ok(Services {
        core: core.or(file.core),
        environment: environment.or(file.environment),
        database: database.or(file.database),
        slots: slots.or(file.slots),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn up(file: &str, flags: &[&str]) -> anyhow::Result<(Global, Services)> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("dormouse.toml");
        std::fs::write(&path, file).expect("written");
        let path = path.to_str().expect("text");
        let line = [&["dormouse", "up", "--config", path], flags].concat();
        let cli = Cli::try_parse_from(line).expect("a command line");
        let Command::Up(args) = cli.command else { panic!("not up") };
        let mut global = cli.global;
        layered(&mut global, args).map(|services| (global, services))
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "data-dir = '/srv/dormouse'\nslots = 4\ncore = '127.0.0.1:1'\n";
        let (global, services) = up(file, &["--slots", "9"]).expect("good");
        assert_eq!(global.data_dir, Some("/srv/dormouse".into()));
        assert_eq!(
            (services.slots, services.core),
            (Some(9), Some("127.0.0.1:1".parse().expect("an address")))
        );
    }

    #[test]
    fn what_the_file_says_wrong_names_file_and_key() {
        for (file, named) in [
            ("slot = 4", "slot"),
            ("slots = 'many'", "slots"),
            ("slots = 0", "slots"),
            ("core = '1'", "core"),
        ] {
            let error = up(file, &[]).expect_err(file);
            let text = crate::exit::sentence(&error);
            assert!(text.contains("dormouse.toml") && text.contains(named), "{text}");
            assert_eq!(crate::exit::Exit::of_error(&error), crate::exit::Exit::Usage);
        }
    }
}
