//! The settings of the services that this command runs itself: which flags there are, and what
//! they start with. Keys and layers stand in [`dormouse_core::config`].

use dormouse_core::{
    config::{Flags, Key, Origin, Program, Settings, Sources},
    logging::{Colour, Logging},
};

use crate::args::{Color, Global};

/// `dormouse up`, `config show`: everything. The data directory is a flag of every command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up;

impl Program for Up {
    const NAME: &'static str = "up";

    fn flags(key: &Key) -> Vec<&'static str> {
        match key.name {
            "data_dir" => Vec::new(),
            "core_listen" => vec!["core", key.flag],
            "environment_listen" => vec!["environment", key.flag],
            _ => vec![key.flag],
        }
    }
}

/// `dormouse run`: the same flags, but quiet, and on ports that nobody else has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run;

impl Program for Run {
    const NAME: &'static str = "run";

    fn flags(key: &Key) -> Vec<&'static str> {
        Up::flags(key)
    }

    const DEFAULTS: &'static [(&'static str, &'static str)] =
        &[("core_listen", "127.0.0.1:0"), ("environment_listen", "127.0.0.1:0"), ("log", "warn")];
}

/// What goes to the database without services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatabaseOnly;

impl Program for DatabaseOnly {
    const NAME: &'static str = "dormouse";

    fn flags(key: &Key) -> Vec<&'static str> {
        if matches!(key.name, "database" | "database_file") { vec![key.flag] } else { Vec::new() }
    }
}

/// Where the settings of a command come from: its flags and those of every command, variables, a file.
pub(crate) fn sources<P: Program>(global: &Global, mut flags: Flags<P>) -> anyhow::Result<Sources> {
    let flag = |flag: &str| Origin::Flag(flag.to_owned());
    if let Some(dir) = &global.data_dir {
        let dir = std::path::absolute(dir)?;
        let text = dir.into_os_string().into_string();
        let text = text.map_err(|dir| anyhow::anyhow!("--data-dir {} is not UTF-8", dir.display()))?;
        flags.give("data_dir", text, flag("--data-dir"));
    }
    if let (Some(filter), None) = (filter_of(global.verbose), flags.text_of("log")) {
        flags.give("log", filter.to_owned(), flag("-v"));
    }
    Ok(Sources::new(flags, std::env::vars_os().collect()))
}

/// Reads the settings and starts the logs that they ask for.
pub(crate) fn begin(global: &Global, sources: &Sources) -> anyhow::Result<(Settings, Logging)> {
    let settings = sources.load()?;
    let logging = Logging::start(&settings.values.log, settings.values.log_format, colour(global))?;
    Ok((settings, logging))
}

/// What `-v` asks for.
pub(crate) fn filter_of(verbose: u8) -> Option<&'static str> {
    match verbose {
        0 => None,
        1 => Some(
            "info,dormouse=debug,dormouse_core=debug,dormouse_environment=debug,dormouse_management_sdk=debug",
        ),
        _ => Some("debug"),
    }
}

/// What `--color` says about log lines.
pub(crate) fn colour(global: &Global) -> Colour {
    match global.color {
        Color::Auto => Colour::Auto,
        Color::Always => Colour::Always,
        Color::Never => Colour::Never,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn up(file: &str, flags: &[&str]) -> anyhow::Result<Settings> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("dormouse.toml");
        std::fs::write(&path, file).expect("written");
        let path = path.to_str().expect("text");
        let line = [&["dormouse", "up", "--config", path], flags].concat();
        let cli = Cli::try_parse_from(line).expect("a command line");
        let Command::Up(args) = cli.command else { panic!("not up") };
        Ok(sources(&cli.global, args.flags)?.load()?)
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "data_dir = '/srv/dormouse'\nslots = 4\ncore_listen = '127.0.0.1:1'\n";
        let settings = up(file, &["--slots", "9"]).expect("good");
        assert_eq!(settings.values.data_dir, Some("/srv/dormouse".into()));
        assert_eq!(settings.values.slots, Some(9));
        assert_eq!(settings.values.core_listen, "127.0.0.1:1".parse().expect("an address"));
        let settings = up(file, &["--data-dir", "/d", "--core", "127.0.0.1:2", "-vv"]).expect("good");
        assert_eq!(settings.values.data_dir, Some("/d".into()));
        assert_eq!(settings.values.core_listen, "127.0.0.1:2".parse().expect("an address"));
        assert_eq!(settings.values.log.0, "debug");
    }

    #[test]
    fn what_the_file_says_wrong_is_wrong_usage() {
        for (file, named) in
            [("slot = 4", "slots"), ("slots = 0", "slots"), ("core_listen = '1'", "core_listen")]
        {
            let error = up(file, &[]).expect_err(file);
            let text = crate::exit::sentence(&error);
            assert!(text.contains("dormouse.toml:1") && text.contains(named), "{text}");
            assert_eq!(crate::exit::Exit::of_error(&error), crate::exit::Exit::Usage);
        }
    }

    #[test]
    fn run_has_defaults_of_its_own() {
        let cli = Cli::try_parse_from(["dormouse", "run", "b"]).expect("a command line");
        let Command::Run(args) = cli.command else { panic!("not run") };
        let settings = Sources::new(args.flags, std::collections::BTreeMap::new()).load().expect("good");
        assert_eq!((settings.values.core_listen.port(), settings.values.environment_listen.port()), (0, 0));
        let log = Key::named("log").expect("a key");
        assert_eq!(settings.origin(log).to_string(), "default of run");
    }
}
