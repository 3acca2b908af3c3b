//! SIGHUP: the configuration is read again, and what can change at once does.
//!
//! The log filter changes at once, and whoever runs this renews what else it can (certificates).
//! Every other key that changed is named, for it needs a restart. A configuration that cannot be
//! is refused as at a start, and everything stays as it is.
//!
//! A terminal that goes away sends the same signal. Then nobody is left to stop a service that was
//! started there, so it stops.

use std::io::{self, IsTerminal};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

use crate::{
    config::{KEYS, Settings, Sources, Takes},
    logging::Logging,
};

/// Answers SIGHUP from its making on.
#[derive(Debug)]
pub struct Reload {
    hangups: Signal,
    sources: Sources,
    /// As at the start, but for what was applied since.
    in_force: Settings,
    logging: Logging,
    on_terminal: bool,
}

/// The terminal on which the service was started is gone; the service should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalGone;

impl Reload {
    /// Catches the signal from now on. Within a tokio runtime.
    pub fn catch(sources: Sources, in_force: Settings, logging: Logging) -> io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        Ok(Self { hangups, sources, in_force, logging, on_terminal: has_terminal() })
    }

    /// Answers each signal until the terminal is gone, and calls `also` each time. Safe to drop.
    pub async fn run(mut self, mut also: impl AsyncFnMut()) -> TerminalGone {
        while self.hangups.recv().await.is_some() {
            if self.on_terminal && !has_terminal() {
                info!("the terminal is gone");
                return TerminalGone;
            }
            self.read_again().await;
            also().await;
        }
        // The runtime has no signals any more: it is ending.
        std::future::pending().await
    }

    async fn read_again(&mut self) {
        let sources = self.sources.clone();
        let read = spawn_blocking(move || sources.load()).await;
        match read {
            Ok(Ok(settings)) => self.apply(&settings),
            Ok(Err(error)) => error!(%error, "the configuration is refused; everything stays as it is"),
            Err(error) => error!(%error, "reading the configuration panicked"),
        }
    }

    fn apply(&mut self, new: &Settings) {
        let mut changed = 0;
        for key in KEYS {
            let (before, after) = (self.in_force.values.shown(key), new.values.shown(key));
            if before == after {
                continue;
            }
            changed += 1;
            let (key_name, source) = (key.name, new.origin(key));
            match key.takes {
                Takes::Reload => info!(key = key_name, before, after, %source, "a setting has changed"),
                Takes::Restart => {
                    warn!(key = key_name, before, after, %source, "this setting changes at the next start");
                }
            }
        }
        if new.other_database(&self.in_force) {
            warn!("another database, or another password for it, is used from the next start on");
        }
        let filter = &new.values.log;
        match self.logging.set_filter(filter) {
            Ok(()) => self.in_force.values.log = filter.clone(),
            Err(error) => error!(%error, "the log filter stays as it is"),
        }
        info!(changed, "the configuration was read again");
    }
}

fn has_terminal() -> bool {
    io::stdin().is_terminal() || io::stderr().is_terminal()
}
