use clap::{Command, FromArgMatches as _};

use super::*;

/// Settings of `dormouse-environment` with this file, these variables and flags.
fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Settings, Error> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("dormouse.toml");
    std::fs::write(&path, file).expect("written");
    let path = path.to_str().expect("text").to_owned();
    let line = [&["program", "--config", &path], flags].concat();
    let command = <Flags<EnvironmentAlone> as clap::Args>::augment_args(Command::new("program"));
    let flags = Flags::<EnvironmentAlone>::from_arg_matches(&command.get_matches_from(line)).expect("flags");
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Sources::new(flags, environment).load()
}

fn sentence(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> String {
    load(file, variables, flags).expect_err("refused").to_string()
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = "slots = 1\nlease = '20s'\nretention = '7d'\n";
    let variables = [("DORMOUSE_SLOTS", "2"), ("DORMOUSE_LEASE", "25s"), ("DORMOUSE_CRASHES", "")];
    let settings = load(file, &variables, &["--slots", "3"]).expect("good");
    let values = &settings.values;
    assert_eq!((values.slots, values.crashes), (Some(3), 10));
    assert_eq!(values.lease, std::time::Duration::from_secs(25));
    assert_eq!(values.retention, std::time::Duration::from_hours(168));
    let origin = |name| settings.origin(Key::named(name).expect("a key")).to_string();
    assert_eq!(origin("slots"), "flag --slots");
    assert_eq!(origin("lease"), "variable DORMOUSE_LEASE");
    assert!(origin("retention").ends_with("dormouse.toml:3"), "{}", origin("retention"));
    assert_eq!(origin("crashes"), "default", "an empty variable says nothing");
}

#[test]
fn the_settings_reach_the_limits() {
    let limits = load("payload_bytes = '1MiB'\ncrashes = 3\ncrash_backoff = '2s'\n", &[], &[]);
    let limits = limits.expect("good").limits();
    assert_eq!((limits.payload_bytes, limits.crashes), (1 << 20, 3));
    assert_eq!(limits.crash_backoff, std::time::Duration::from_secs(2));
}

#[test]
fn defaults_are_those_of_the_limits() {
    let limits = load("", &[], &[]).expect("good").limits();
    assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
}

#[test]
fn what_cannot_be_names_key_value_line_and_remedy() {
    for (file, parts) in [
        ("\nslots = 0", &["slots is \"0\"", "dormouse.toml:2", "from 1 to 100000"][..]),
        ("slots = 'many'", &["slots is the string \"many\"", "a whole number", "without quotes"]),
        ("slots = '4'", &["without quotes"]),
        ("slots = 4.5", &["slots is a number with a fraction"]),
        ("slots = 99999999999999999999", &["slots is", "from 1 to 100000"]),
        ("lease = 15", &["lease is an integer", "a time such as", "in quotes"]),
        ("lease = '1s'", &["lease is \"1s\"", "from 3s to 10m"]),
        ("lease = '15'", &["lease is \"15\"", "a time such as"]),
        ("payload_bytes = '4MB'", &["payload_bytes is \"4MB\"", "4MiB"]),
        ("payload_bytes = '5MiB'", &["from 1KiB to 4MiB"]),
        ("environment_listen = '1'", &["environment_listen is \"1\"", "127.0.0.1:8001"]),
        ("core_addresses = [1]", &["core_addresses is an array", "array of strings", "HOST:PORT"]),
        ("core_addresses = ['a:1', 'b']", &["core_addresses is", "HOST:PORT"]),
        ("[slots]\na = 1", &["slots is a table"]),
        ("log = 'dormouse=loud'", &["log is", "info,dormouse_core=debug"]),
        ("log_format = 'xml'", &["log_format is \"xml\"", "text or json"]),
    ] {
        let text = sentence(file, &[], &[]);
        assert!(parts.iter().all(|part| text.contains(part)), "{file:?}: {text}");
        assert!(text.contains("dormouse.toml:") && !text.contains('\n'), "{text}");
    }
}

#[test]
fn what_nobody_knows_names_what_may_be_meant() {
    let text = sentence("\n\ndata-dir = '/x'", &[], &[]);
    assert!(text.contains("dormouse.toml:3: there is no key data-dir; is data_dir meant?"), "{text}");
    assert!(sentence("slot = 4", &[], &[]).contains("is slots meant?"));
    assert!(sentence("[limits]\nslots = 4", &[], &[]).contains("no key limits; `dormouse config show`"));
    let text = sentence("slots = 1\nslots = 2", &[], &[]);
    assert!(text.contains("dormouse.toml:2 is no TOML: duplicate key"), "{text}");
    assert!(sentence("slots = ", &[], &[]).contains("dormouse.toml:1 is no TOML"));
}

#[test]
fn variables_and_flags_are_named_as_such() {
    let text = sentence("", &[("DORMOUSE_SLOTS", "none")], &[]);
    assert!(text.starts_with("slots is \"none\" (variable DORMOUSE_SLOTS); it must be a whole"), "{text}");
    let text = sentence("", &[], &["--listen", "nowhere"]);
    assert!(
        text.starts_with("environment_listen is \"nowhere\" (flag --listen); it must be an IP"),
        "{text}"
    );
    assert!(sentence("", &[("RUST_LOG", "a=b=c")], &[]).contains("variable RUST_LOG"));
}

#[test]
fn a_bad_value_beneath_a_good_one_is_refused_too() {
    assert!(sentence("slots = 0", &[], &["--slots", "4"]).contains("dormouse.toml:1"));
}

#[test]
fn a_file_that_is_not_there_says_who_names_it() {
    let environment = [("DORMOUSE_CONFIG".into(), "/nowhere/d.toml".into())].into();
    let command = <Flags<CoreAlone> as clap::Args>::augment_args(Command::new("program"));
    let flags = Flags::<CoreAlone>::from_arg_matches(&command.get_matches_from(["program"])).expect("flags");
    let error = Sources::new(flags, environment).load().expect_err("no file").to_string();
    assert!(error.contains("/nowhere/d.toml (variable DORMOUSE_CONFIG)"), "{error}");
}

#[test]
fn the_database_may_stand_in_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("url");
    std::fs::write(&path, "postgres://u:secret@h/d\n").expect("written");
    let path = path.to_str().expect("text");
    let file = format!("database_file = '{path}'");

    let settings = load(&file, &[], &[]).expect("good");
    assert_eq!(settings.database(Path::new("/d")), Database::Postgres("postgres://u:secret@h/d".to_owned()));
    assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");

    let settings = load(&file, &[("DORMOUSE_DATABASE", "/x.db")], &[]).expect("the higher layer wins");
    assert_eq!(settings.database(Path::new("/d")), Database::Sqlite("/x.db".into()));

    let both = format!("{file}\ndatabase = 'postgres://u:secret@h/d'");
    let text = sentence(&both, &[], &[]);
    assert!(
        text.contains("both set") && text.contains("dormouse.toml:2") && !text.contains("secret"),
        "{text}"
    );

    std::fs::write(path, "not a url\nat all").expect("written");
    let text = sentence(&file, &[], &[]);
    assert!(text.contains("holds no address of a database"), "{text}");
    assert!(sentence("database_file = '/nowhere/u'", &[], &[]).contains("cannot be read"));
}

#[test]
fn a_bad_address_of_a_database_is_not_repeated() {
    let text = sentence("", &[("DORMOUSE_DATABASE", "mysql://u:secret@h")], &[]);
    assert!(text.contains("postgres://USER@HOST/NAME") && !text.contains("secret"), "{text}");
    let text = sentence("database = ['secret']", &[], &[]);
    assert!(!text.contains("secret'"), "{text}");
}

#[test]
fn a_relative_path_begins_at_the_files_folder() {
    let settings = load("data_dir = 'data'", &[], &[]).expect("good");
    let data_dir = settings.values.data_dir.expect("set");
    assert!(data_dir.is_absolute() && data_dir.ends_with("data"), "{}", data_dir.display());
    let settings = load("", &[], &["--data-dir", "data"]).expect("good");
    assert_eq!(settings.values.data_dir, Some("data".into()), "a flag's begins where the program runs");
}

/// The table of docs/configuration.md.
fn documented() -> String {
    let mut text = String::from("| key | value | default | limits | used by | changes | meaning |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for key in KEYS {
        let limits = key.range.map_or_else(|| "–".to_owned(), |(least, most)| format!("{least} to {most}"));
        let of = match key.of {
            Of::Both => "both",
            Of::Core => "core",
            Of::Environment => "environment",
        };
        let takes = match key.takes {
            Takes::Restart => "restart",
            Takes::Reload => "reload",
        };
        let default =
            if key.default.is_empty() { key.absent.to_owned() } else { format!("`{}`", key.default) };
        let help = key.help.trim().replace('|', "\\|");
        text.push_str(&format!(
            "| `{}` | {} | {default} | {limits} | {of} | {takes} | {help} |\n",
            key.name, key.value
        ));
    }
    text
}

#[test]
fn the_page_of_the_keys_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (begin, end) = ("<!-- keys -->\n", "<!-- /keys -->");
    let (before, rest) = page.split_once(begin).expect("a beginning");
    let (table, after) = rest.split_once(end).expect("an end");
    if std::env::vars_os().any(|(name, _)| name == "DORMOUSE_REGENERATE") {
        std::fs::write(&path, [before, begin, &documented(), end, after].concat()).expect("written");
    } else {
        assert_eq!(table, documented(), "run DORMOUSE_REGENERATE=1 cargo test -p dormouse-core --lib config");
    }
}
