//! Tells a service manager how a service is, where one listens (systemd's `NOTIFY_SOCKET`).
//!
//! Nothing depends on whether it hears: without a manager both calls do nothing, and one that cannot
//! be told is a warning. Workflows never get the socket: the launcher hands no such variable on.

use sd_notify::NotifyState;

/// The service is bound and answers.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The service was asked to end, and does so in its own time.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, ?states, "the service manager cannot be told");
    }
}
