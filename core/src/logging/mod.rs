//! Logs of the services on stderr: text for people or one JSON object a line for programs, with a
//! filter that can be changed while they run.
//!
//! What concerns an instance, an attempt, a node or a tenant carries fields of exactly these names,
//! mostly from the span around its work ([`session`], [`attempt`], [`node`]). Spans are of level
//! ERROR, so that no filter takes the fields from the lines that it lets through.
//!
//! Never logged: tokens, payloads, passwords.

mod json;

use std::{
    fmt::Display,
    fs::File,
    io::{self, IsTerminal},
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use tracing::Span;
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{self, format},
    layer::{Layer, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFilter, LogFormat};

/// The running logs of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs cannot be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only a program's `main` starts them.
    #[error("the logs of this process are set up already; this is a defect")]
    Twice,
    /// Its subscriber is gone.
    #[error("the log filter cannot be changed any more; this is a defect")]
    Gone(#[source] reload::Error),
}

/// Whether lines have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// If stderr is a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Logging {
    /// Starts the logs of this process, once.
    pub fn start(filter: &LogFilter, format: LogFormat, colour: Colour) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(env_filter(filter));
        let lines: Box<dyn Layer<_> + Send + Sync> = match format {
            LogFormat::Json => Box::new(json::Lines::new(io::stderr)),
            LogFormat::Text => text(colour, goes_to_journal()),
        };
        // The filter is outermost: what it refuses costs nothing.
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        subscriber.try_init().map_err(|_| Error::Twice)?;
        Ok(Self { filter: handle })
    }

    /// From now on lines are chosen by another filter.
    pub fn set_filter(&self, filter: &LogFilter) -> Result<(), Error> {
        self.filter.reload(env_filter(filter)).map_err(Error::Gone)
    }
}

fn env_filter(filter: &LogFilter) -> EnvFilter {
    EnvFilter::try_new(&filter.0).expect("it was read as one")
}

/// The journal notes the time itself, and shows no colours.
fn text<S>(colour: Colour, journal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
{
    let coloured = match colour {
        Colour::Auto => io::stderr().is_terminal(),
        Colour::Always => true,
        Colour::Never => false,
    };
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(coloured && !journal);
    if journal { Box::new(lines.event_format(format().without_time())) } else { Box::new(lines) }
}

/// Whether stderr is the very stream that systemd connected to its journal: it says which by
/// device and inode, and a process that was started further down inherits the variable alone.
#[expect(clippy::disallowed_methods, reason = "read once, before anything else runs")]
fn goes_to_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(descriptor) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(metadata) = File::from(descriptor).metadata() else { return false };
    stream.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Around what one node does.
pub fn node(node: &impl Display) -> Span {
    tracing::error_span!("node", %node)
}

/// Around what concerns one attempt's process.
pub fn attempt(tenant: &impl Display, instance: &impl Display, attempt: u32) -> Span {
    tracing::error_span!("attempt", %tenant, %instance, attempt)
}

/// Around one registered connection of an attempt's process.
pub fn session(tenant: &impl Display, instance: &impl Display, attempt: u32, session: u32) -> Span {
    tracing::error_span!("session", %tenant, %instance, attempt, session)
}

/// Around one request of a controller.
pub fn request(tenant: &impl Display) -> Span {
    tracing::error_span!("request", %tenant, instance = tracing::field::Empty)
}

/// Says which instance the request is about, once that is known.
pub fn request_of(instance: &impl Display) {
    Span::current().record("instance", tracing::field::display(instance));
}
