//! One file per noun; each command is one function from its arguments to an [`Exit`].

use std::io::{IsTerminal, Read};

use anyhow::Context;
use clap::CommandFactory as _;
use dormouse_management_sdk::{Client, Options, Payload};
use tokio::sync::OnceCell;

use crate::{
    args::{Cli, Command, Global, Health},
    exit::{Exit, Usage},
    output::{Screen, print_bytes},
};

mod certs;
mod config;
mod cores;
mod demo;
mod doctor;
mod health;
mod history;
mod image;
mod instance;
mod listening;
mod logs;
mod metrics;
mod new;
mod nodes;
mod prune;
mod run;
mod services;
mod start;
mod steer;
mod tenant;
mod token;
mod wait;
mod watch;

/// Runs one command.
pub(crate) async fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let screen = Screen { format: cli.global.output };
    let ctx = Ctx { screen, global: cli.global, client: OnceCell::new() };
    let outcome = perform(&ctx, cli.command).await;
    if let Some(client) = ctx.client.get() {
        // Otherwise the services would find out only by a time-out.
        client.close().await;
    }
    outcome
}

async fn perform(ctx: &Ctx, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Up(args) => services::up(ctx, args).await,
        Command::Run(args) => run::run(ctx, args).await,
        Command::Doctor(args) => doctor::doctor(ctx, args).await,
        Command::Migrate(args) => services::migrate(ctx, args).await,
        Command::Image(args) => image::image(ctx, args).await,
        Command::Start(args) => start::start(ctx, args).await,
        Command::Get(args) => instance::get(ctx, &args.id).await,
        Command::List(args) => instance::list(ctx, args).await,
        Command::Count(args) => instance::count(ctx, args).await,
        Command::Wait(args) => wait::wait(ctx, args).await,
        Command::Watch(args) => watch::watch(ctx, args).await,
        Command::Logs(args) => logs::logs(ctx, args).await,
        Command::Events(args) => history::events(ctx, args).await,
        Command::Checkpoints(args) => history::checkpoints(ctx, args).await,
        Command::Attempts(args) => history::attempts(ctx, &args.id).await,
        Command::Signal(args) => steer::signal(ctx, args).await,
        Command::Cancel(args) => steer::cancel(ctx, &args.id).await,
        Command::Pause(args) => steer::pause(ctx, &args.id).await,
        Command::Resume(args) => steer::resume(ctx, &args.id).await,
        Command::Stop(args) => steer::stop(ctx, &args.id).await,
        Command::Delete(args) => steer::delete(ctx, &args.id).await,
        Command::Prune(args) => prune::prune(ctx, args).await,
        Command::Core(crate::args::Core::List) => cores::list(ctx).await,
        Command::Tenant(args) => tenant::tenant(ctx, args).await,
        Command::Certs(args) => certs::certs(ctx, args).await,
        Command::Token(args) => token::token(ctx, args).await,
        Command::Node(args) => nodes::node(ctx, args).await,
        Command::New(args) => new::new(ctx, &args),
        Command::Completions { shell } => completions(shell),
        Command::Health(Health { listening: None }) => health::health(ctx).await,
        Command::Health(Health { listening: Some(part) }) => listening::look(ctx, part).await,
        Command::Metrics(args) => metrics::metrics(ctx, &args).await,
        Command::Config(args) => config::config(ctx, args),
        Command::Demo(args) => demo::demo(args).await,
    }
}

/// Static: it knows commands and flags, not the ids of instances.
fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dormouse", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}

/// What every command needs.
pub(crate) struct Ctx {
    /// Where results go.
    pub(crate) screen: Screen,
    /// The global options.
    pub(crate) global: Global,
    /// Opened by the first who asks for it.
    client: OnceCell<Client>,
}

impl Ctx {
    /// A connection to the services that the options name.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let target = self.global.target()?;
        let connect = || Client::connect_with(target, client_options());
        Ok(self.client.get_or_try_init(connect).await?.clone())
    }
}

/// How this command introduces itself to the services.
pub(crate) fn client_options() -> Options {
    Options { name: concat!("dormouse ", env!("CARGO_PKG_VERSION")).to_owned(), ..Options::default() }
}

/// A JSON argument: as it stands, `@FILE`, or `-` for stdin.
pub(crate) fn payload(argument: &str, flag: &str) -> anyhow::Result<Payload> {
    let (text, what) = match argument.strip_prefix('@') {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| Usage(format!("cannot read {path}, which {flag} names")))?;
            (text, format!("{path}, which {flag} names,"))
        }
        None if argument == "-" => {
            let mut text = String::new();
            if std::io::stdin().is_terminal() {
                crate::output::say("reading the JSON from the terminal; end it with Ctrl-D");
            }
            std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
            (text, "what stdin holds".to_owned())
        }
        None => (argument.to_owned(), format!("the value of {flag}, {argument:?},")),
    };
    Ok(Payload::json_text(text.trim(), &what)?)
}

/// JSON `null`: the input of what takes none.
pub(crate) fn null() -> Payload {
    Payload {
        data: b"null".to_vec(),
        encoding: dormouse_management_sdk::Encoding::Json,
        type_name: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_json_or_name_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("input.json");
        std::fs::write(&path, "{\"a\": 1}\n").expect("written");
        let given = payload(&format!("@{}", path.display()), "--input").expect("JSON");
        assert_eq!(given.data, b"{\"a\": 1}");
        assert_eq!(payload("[1]", "--input").expect("JSON").data, b"[1]");
    }

    #[test]
    fn what_is_no_json_names_the_flag() {
        let error = payload("{a}", "--input").expect_err("no JSON");
        assert!(error.to_string().contains("--input"), "{error}");
        assert_eq!(Exit::of_error(&error), Exit::Usage);
        let error = payload("@/nowhere", "--payload").expect_err("no file");
        assert_eq!(Exit::of_error(&error), Exit::Usage);
    }
}
