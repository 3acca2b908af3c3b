//! The command line.

mod access;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use dormouse_core::config::Flags;
use dormouse_management_sdk::{Authority, ImageRef, Status, Stream, Target, Token, default_data_dir};

pub(crate) use self::access::{Quota, QuotaFlags, Tenant, TokenCommand, TokenCreate};
use crate::{config, exit::TABLE};

/// Durable workflows that are ordinary compiled programs.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = TABLE, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Address of an environment [default: the services of the data directory]
    #[arg(long, global = true, env = "DORMOUSE_SERVER", value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// Trust only services of this authority: its authority.pem, or the fingerprint that `certs show` prints
    /// [default: pki/authority.pem of the data directory]
    #[arg(long, global = true, env = "DORMOUSE_CA", value_name = "FILE|sha256:HEX")]
    pub(crate) ca: Option<String>,
    /// Act as the holder of the token in this file; a token itself goes into DORMOUSE_TOKEN
    /// [default: as administrator, by pki/administrator.pem of the data directory] [env: DORMOUSE_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where the services keep everything, and where their certificates are
    /// [default: /var/lib/dormouse for root, else ~/.local/share/dormouse] [env: DORMOUSE_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub(crate) color: Color,
    /// Logs of the services on stderr, more of them with -vv
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// The data directory that was named, or the default one.
    pub(crate) fn directory(&self) -> anyhow::Result<PathBuf> {
        let dir = match self.data_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        // Workflow processes have a working directory of their own.
        Ok(std::path::absolute(dir)?)
    }

    /// The folder of this machine's certificates.
    #[expect(clippy::disallowed_methods, reason = "as the services read it, for the commands beside them")]
    pub(crate) fn certs(&self) -> anyhow::Result<PathBuf> {
        match std::env::var_os("DORMOUSE_CERTS").filter(|dir| !dir.is_empty()) {
            Some(dir) => Ok(std::path::absolute(dir)?),
            None => Ok(self.directory()?.join("pki")),
        }
    }

    /// Where a client connects to, whom it trusts, and who it is there.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let token = match &self.token_file {
            Some(path) => Token::File(path.clone()),
            None => Token::from_environment()?,
        };
        let mut target = Target::data_dir(self.directory()?).with_token(token).with_certs(self.certs()?);
        if let Some(server) = named(&self.server) {
            target = target.with_server(server);
        }
        if let Some(authority) = named(&self.ca) {
            target = target.with_authority(Authority::parse(&authority)?);
        }
        Ok(target)
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs: one JSON value, nothing else on stdout
    Json,
    /// One id per line, for xargs
    Ids,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story in one minute: an audit that is killed, sleeps, and ends right
    Demo(Demo),
    /// Run a workflow binary once, durably, with both services in this process
    Run(Run),
    /// Run both services until stopped
    Up(Up),
    /// Push, list and delete workflow binaries
    #[command(subcommand)]
    Image(Image),
    /// Start an instance of a pushed image
    Start(Start),
    /// Everything about one instance, on one screen
    Get(Id),
    /// List instances, newest first
    List(List),
    /// Count instances by status
    Count(Count),
    /// Wait until an instance has ended, and print its output
    Wait(Wait),
    /// Instances as they change, until all of them have ended
    Watch(Watch),
    /// What an instance printed
    Logs(Logs),
    /// The timeline of an instance
    Events(Events),
    /// What an instance has saved
    Checkpoints(Checkpoints),
    /// Every launch of an instance
    Attempts(Id),
    /// Send a signal to an instance
    Signal(Signal),
    /// Ask an instance to clean up and end
    Cancel(Id),
    /// Launch an instance no more until it is resumed
    Pause(Id),
    /// Let a paused instance go on
    Resume(Id),
    /// End an instance at once, without its clean-up
    Stop(Id),
    /// Delete an ended instance and all that belongs to it
    Delete(Id),
    /// Delete all instances that ended long ago; services do it themselves after the retention
    Prune(Prune),
    /// The environments of the cluster
    #[command(subcommand)]
    Node(Node),
    /// The core replicas of the cluster
    #[command(subcommand)]
    Core(Core),
    /// Whose instances there are, and how much they may use; for the cluster's administrator
    #[command(subcommand)]
    Tenant(Tenant),
    /// What lets controllers in without a certificate
    #[command(subcommand)]
    Token(TokenCommand),
    /// The certificates of the cluster's services and administrators
    #[command(subcommand)]
    Certs(Certs),
    /// What this machine offers, and what to do about what is missing
    Doctor(Doctor),
    /// A Cargo project with one workflow, its test, and the settings that launch fastest
    New(New),
    /// A completion script for a shell, on stdout
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Whether the services are well
    Health(Health),
    /// How long requests and launches take, stage by stage, as the text that Prometheus reads
    Metrics(Metrics),
    /// How the services are configured
    #[command(subcommand)]
    Config(Config),
    /// Bring the database's tables up to date; services do it themselves when they start
    Migrate(Migrate),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) flags: Flags<config::Up>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Every key, its value, and who says so: what `up` with the same flags would use
    Show(Flags<config::Up>),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The workflow's stdout goes to stdout, its stderr and the progress to stderr. The last line of stdout is
the workflow's output as JSON. With -o json stdout holds one JSON value, the instance as `get -o json`
prints it, and the workflow's stdout goes to stderr.

The same command with the same --id continues, whatever was killed in between.")]
pub(crate) struct Run {
    /// The workflow binary
    #[arg(value_name = "BINARY")]
    pub(crate) binary: PathBuf,
    /// Which of its workflows; needed only if there are several
    #[arg(long, value_name = "W")]
    pub(crate) workflow: Option<String>,
    /// The input: JSON, @FILE, or - for stdin [default: null, or that of the id]
    #[arg(long, value_name = "JSON")]
    pub(crate) input: Option<String>,
    /// Continue this instance, or start it under this id [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) flags: Flags<config::Run>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Push a workflow binary under a name
    Push {
        /// The binary
        binary: PathBuf,
        /// The image's name
        #[arg(long)]
        name: String,
        /// The version [default: 1, 2, 3 …]
        #[arg(long)]
        version: Option<String>,
        #[command(flatten)]
        options: ImageOptions,
    },
    /// Change how many processes of a version stand ready, and whether they are used again
    #[command(arg_required_else_help = true)]
    Set {
        /// NAME or NAME:VERSION
        image: ImageRef,
        #[command(flatten)]
        options: ImageOptions,
    },
    /// List images, or the versions of one
    List {
        /// Only of this name
        name: Option<String>,
    },
    /// Everything about one image
    Get {
        /// NAME or NAME:VERSION
        image: ImageRef,
    },
    /// Delete a version, or all of them
    Delete {
        /// NAME or NAME:VERSION
        image: ImageRef,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ImageOptions {
    /// Processes that stand ready on each node, connected and without an instance; 0: none
    #[arg(long, value_name = "N")]
    pub(crate) spares: Option<u32>,
    /// Instances that one process may serve, one after the other; 1: a process for each
    #[arg(long, value_name = "M")]
    pub(crate) reuse: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// NAME or NAME:VERSION of a pushed image
    #[arg(value_name = "NAME[:VERSION]", required_unless_present = "retry_of")]
    pub(crate) image: Option<ImageRef>,
    /// As this ended instance was started, going on from what its operations have done; what is given
    /// beside replaces its part
    #[arg(long, value_name = "ID")]
    pub(crate) retry_of: Option<String>,
    /// With --retry-of: take over nothing of what was done
    #[arg(long, requires = "retry_of")]
    pub(crate) from_scratch: bool,
    /// Which of its workflows; needed only if there are several
    #[arg(long, value_name = "W")]
    pub(crate) workflow: Option<String>,
    /// The input: JSON, @FILE, or - for stdin [default: null]
    #[arg(long, value_name = "JSON")]
    pub(crate) input: Option<String>,
    /// The same start with the same id is the same instance [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Add a variable to its processes' environment; may repeat
    #[arg(long, value_name = "K=V", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Fail it when its whole life takes longer, such as 90s, 15m, 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) limit: Option<Duration>,
    /// Launch it no earlier than in this time
    #[arg(long = "in", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) delay: Option<Duration>,
    /// 0–9, the highest first [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=9))]
    pub(crate) priority: Option<u32>,
    /// Wait for its ending, and print its output
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only in this status
    #[arg(long, value_name = "S")]
    pub(crate) status: Option<Status>,
    /// Only of this image name
    #[arg(long, value_name = "N")]
    pub(crate) image: Option<String>,
    /// Only suspended ones that wait for this: sleep, signal, signal:NAME, resume or retry
    #[arg(long, value_name = "WAIT", conflicts_with = "status", value_parser = parse_waiting_for)]
    pub(crate) waiting_for: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Go on where the page before ended
    #[arg(long, value_name = "C")]
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Only say how many would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Those that ended longer ago than this, such as 12h, 7d [default: the services' retention]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The folder to audit, with 20 files or more [default: one that stands on this machine]
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Keep a copy of the manifest here
    #[arg(long, value_name = "FILE")]
    pub(crate) keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Look through the whole database instead: is everything there, and nothing stuck?
    /// Only reads; services may run. Exit 5 if something is broken
    #[arg(long)]
    pub(crate) data: bool,
    #[command(flatten)]
    pub(crate) flags: Flags<config::DatabaseOnly>,
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) flags: Flags<config::DatabaseOnly>,
}

/// The certificates of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Make a folder of certificates for another machine, where the authority's key is
    Issue(IssueCerts),
    /// What a folder holds, until when it is valid, and the fingerprint for clients
    Show {
        /// The folder [default: that of this machine's services] [env: DORMOUSE_CERTS]
        dir: Option<PathBuf>,
    },
    /// Give the cluster another authority, when the old one has expired or its key is lost
    #[command(after_help = "\
Every service must be stopped, and must get certificates of the new authority before it starts again. A workflow's
process that still runs then never reaches core again: end it, and its instance is launched anew.")]
    Replace {
        /// The folder of the new one [default: that of this machine's services] [env: DORMOUSE_CERTS]
        dir: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags<config::DatabaseOnly>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The folder gets authority.pem and the certificates of core and environment with their keys, never the
authority's key. Issuing into the same folder again is a renewal. Services take new files over by themselves,
within a minute or at SIGHUP.")]
pub(crate) struct IssueCerts {
    /// Which machine or person they are for; it stands in the certificates
    pub(crate) name: String,
    /// The folder to make, readable by its owner alone
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The authority's folder; a new authority is made in one that is empty
    /// [default: that of this machine's services] [env: DORMOUSE_CERTS]
    #[arg(long, value_name = "DIR")]
    pub(crate) authority: Option<PathBuf>,
    /// Also an administrator's certificate, which gives every right in the cluster
    #[arg(long)]
    pub(crate) client: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Count {
    /// Only of this image name
    #[arg(long, value_name = "N")]
    pub(crate) image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
    /// At most this long, such as 90s, 15m, 1h; then exit 12 [default: as long as it takes]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) limit: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// The project's name, a new folder here
    pub(crate) name: String,
    /// Take the SDK from this folder
    #[arg(long, value_name = "PATH", conflicts_with = "git")]
    pub(crate) sdk: Option<PathBuf>,
    /// Take the SDK from this Git repository [default: that of Dormouse]
    #[arg(long, value_name = "URL")]
    pub(crate) git: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Ids of instances, or unique prefixes of them [default: the newest, and those that start meanwhile]
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Without ids: so many of the newest
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) newest: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
    /// Go on until the instance has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only of this attempt [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
    /// Only the last lines of the newest attempt
    #[arg(long, value_name = "LINES", conflicts_with_all = ["follow", "attempt"], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) tail: Option<u32>,
    /// Only stdout or only stderr
    #[arg(long, value_name = "STREAM", value_parser = parse_stream)]
    pub(crate) stream: Option<Stream>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
    /// Go on until the instance has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Checkpoints {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
    /// At most so many, the newest first [default: all, the oldest first]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) last: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Signal {
    /// The instance's id, or a unique prefix of it
    pub(crate) id: String,
    /// The signal's name
    pub(crate) name: String,
    /// What it carries: JSON, @FILE, or - for stdin [default: null]
    #[arg(long, value_name = "JSON")]
    pub(crate) payload: Option<String>,
    /// The same key again is the same signal
    #[arg(long, value_name = "KEY")]
    pub(crate) dedup: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Only whether this machine's service accepts connections; needs no credentials and no database
    #[arg(long, value_enum, value_name = "SERVICE", conflicts_with = "server")]
    pub(crate) listening: Option<ServicePart>,
}

#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// Of the core that runs on this machine in the data directory; with `up` it is the same process
    #[arg(long, conflicts_with = "server")]
    pub(crate) core: bool,
}

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServicePart {
    /// Answers the processes of workflows
    Core,
    /// Answers controllers
    Environment,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the environments, and why one claims nothing
    List,
    /// Let a node claim nothing more; it stays up, and stays so over its restart
    Drain(DrainNode),
    /// Let a node claim again
    Undrain {
        /// Its id, a unique beginning of it, or its name
        node: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DrainNode {
    /// Its id, a unique beginning of it, or its name
    pub(crate) node: String,
    /// End what runs there and give it back to the wake queue, instead of waiting for it
    #[arg(long)]
    pub(crate) suspend: bool,
    /// Wait until nothing runs there
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Core {
    /// List the core replicas
    List,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=VALUE".to_owned()),
    }
}

/// The services judge it again; here it is wrong usage.
fn parse_waiting_for(text: &str) -> Result<String, String> {
    match text {
        "sleep" | "signal" | "resume" | "retry" => Ok(text.to_owned()),
        _ if text.strip_prefix("signal:").is_some_and(|name| !name.is_empty()) => Ok(text.to_owned()),
        _ => Err("it must be sleep, signal, signal:NAME, resume or retry".to_owned()),
    }
}

fn parse_stream(text: &str) -> Result<Stream, String> {
    match text {
        "stdout" => Ok(Stream::Stdout),
        "stderr" => Ok(Stream::Stderr),
        _ => Err("it must be stdout or stderr".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    dormouse_core::config::parse_duration(text)
        .ok_or_else(|| "it must be a time such as 500ms, 90s, 15m, 1h30m or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("dormouse").chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_guide_is_understood() {
        for line in [
            "demo",
            "run ./fixity --workflow w --input {} --id a --data-dir /tmp/d",
            "up --data-dir d --database postgres://h/d --core 127.0.0.1:0 --environment 127.0.0.1:0",
            "doctor",
            "doctor --data --database postgres://h/d",
            "config show --config f --slots 4 -o json",
            "migrate",
            "image push ./b --name n --version 1",
            "image push ./b --name n --spares 4 --reuse 100",
            "image set n:1 --spares 0",
            "image list",
            "image get n:1",
            "image delete n",
            "start n:1 --workflow w --input @f --id a --env A=B --env C= --limit 1h --wait",
            "get a -o json",
            "start --retry-of a --from-scratch --id b",
            "start n:2 --retry-of a --input {}",
            "list --status running --image n --limit 5 --cursor c -o ids",
            "count",
            "wait a --for 10m",
            "watch",
            "new hello --sdk ./sdk",
            "completions zsh",
            "watch a b -o json",
            "logs a -f",
            "events a",
            "checkpoints a",
            "signal a approval --payload {\"granted\":true}",
            "cancel a",
            "pause a",
            "resume a",
            "stop a",
            "delete a",
            "prune",
            "prune --dry-run --older-than 7d -o json",
            "list --waiting-for signal:approval -o ids",
            "node list",
            "tenant create acme --max-running 4 --max-stored 1000 --starts-per-second 10",
            "tenant list -o json",
            "tenant quota acme --max-running none",
            "token create --tenant acme --name ci --role reader --expires 90d",
            "token list --tenant acme",
            "token revoke ci --tenant acme",
            "node drain k7 --suspend --wait",
            "node undrain mill",
            "health --server h:1",
            "certs issue oak --out certs/oak --authority pki --client",
            "certs show certs/oak -o json",
            "certs replace pki --database postgres://h/d",
            "health --listening core",
            "list --server h:1 --ca authority.pem --token-file /run/secrets/token",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in [
            "start n:",
            "list --status DONE",
            "wait a --for 10",
            "start n --env A",
            "start",
            "start n --from-scratch",
            "nonsense",
            "tenant quota acme --max-running 0",
            "token create --role cluster",
            "list --limit 0",
            "list --token dmt_A",
            "list --waiting-for rain",
            "list --waiting-for signal:",
            "list --waiting-for sleep --status running",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
