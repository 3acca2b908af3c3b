//! New certificates are taken over while the services run: for new connections; those that stand keep theirs.
//!
//! Every minute, and at once when [`Authority::look_again`] is called, the files are looked at. Where the authority's
//! key is, a certificate that is about to expire is made anew by that look; elsewhere somebody puts new files there.
//! What is damaged, half replaced or of another authority is not taken: the old certificate goes on, and the log
//! says so, once for each new complaint.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::{Authority, IdentityError, Role};
use crate::endpoint::{Identity, TlsError};

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Follows the files of one role.
#[derive(Debug)]
pub struct Renewal {
    authority: Arc<Authority>,
    role: Role,
    /// Also kept fresh, if it can be made here.
    beside: Option<Role>,
    /// The certificate that is served with.
    in_use: String,
    nudges: watch::Receiver<()>,
    complaint: String,
}

impl Renewal {
    /// For a server that serves with `in_use` now.
    pub fn new(authority: Arc<Authority>, role: Role, in_use: &Identity) -> Self {
        let nudges = authority.looks.subscribe();
        Self {
            authority,
            role,
            beside: None,
            in_use: in_use.certificate_pem.clone(),
            nudges,
            complaint: String::new(),
        }
    }

    /// Keeps the files of another role fresh, too, where the authority's key is.
    #[must_use]
    pub fn beside(mut self, role: Role) -> Self {
        self.beside = Some(role);
        self
    }

    /// Looks for as long as it is polled, and has `serve` take each new certificate. To be kept over the
    /// iterations of a loop, not made anew in each: what a look found would be lost.
    pub async fn run(mut self, mut serve: impl FnMut(&Identity) -> Result<(), TlsError>) -> Infallible {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await; // the first one is now, and the files were just read
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                // An error cannot be: we hold the authority, and it holds the sender.
                _ = self.nudges.changed() => {}
            }
            let (authority, role, beside) = (Arc::clone(&self.authority), self.role, self.beside);
            let looked = spawn_blocking(move || look(&authority, role, beside)).await;
            let outcome = match looked {
                Ok(Ok(found)) if found.certificate_pem == self.in_use => Ok(()),
                Ok(Ok(found)) => serve(&found).map_err(|error| error.to_string()).map(|()| {
                    info!(role = role.file(), "new connections get the new certificate");
                    self.in_use = found.certificate_pem;
                }),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(format!("looking at the certificates broke: {error}; this is a defect")),
            };
            self.complain(outcome.err().unwrap_or_default());
        }
    }

    fn complain(&mut self, complaint: String) {
        if complaint != self.complaint && !complaint.is_empty() {
            error!(role = self.role.file(), reason = complaint, "the old certificate goes on");
        }
        self.complaint = complaint;
    }
}

fn look(authority: &Authority, role: Role, beside: Option<Role>) -> Result<Identity, IdentityError> {
    if let Some(beside) = beside.filter(|_| authority.has_key()) {
        authority.identity(beside)?;
    }
    authority.identity(role)
}
