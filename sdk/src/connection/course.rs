//! How long this process's launch has taken, as far as it alone knows: told to core for the operator's histograms,
//! with the registration and with the first request after it. Nothing depends on it.

use std::time::Duration;

use dormouse_proto::{instance::Launched, launch::LaunchDocument};
use tokio::time::Instant;

use crate::sys;

/// The stages of a launch, as they pass.
#[derive(Debug)]
pub(super) struct Course {
    /// When the last stage ended; none: everything is told.
    since: Option<Instant>,
    told: Launched,
}

impl Course {
    /// The document has just been read.
    pub(super) fn begin(document: &LaunchDocument) -> Self {
        let waited = document.handed_over_nanos;
        let waited = (waited > 0).then(|| sys::monotonic_nanos().checked_sub(waited)).flatten();
        let start_micros = waited.map(|nanos| micros(Duration::from_nanos(nanos)));
        Self { since: Some(Instant::now()), told: Launched { start_micros, ..Launched::default() } }
    }

    /// All that a connection needs is there.
    pub(super) fn prepared(&mut self) {
        self.told.endpoint_micros = self.lap();
    }

    /// The connection is established: what is told with the registration; none if it was told before.
    pub(super) fn connected(&mut self) -> Option<Launched> {
        self.told.handshake_micros = self.lap();
        self.take()
    }

    /// The registration is answered.
    pub(super) fn registered(&mut self) {
        self.told.register_micros = self.lap();
    }

    /// The first request after it is made: what is told with it. Later there is nothing more to tell.
    pub(super) fn asked(&mut self) -> Option<Launched> {
        self.told.first_step_micros = self.lap();
        let told = self.take();
        self.since = None;
        told
    }

    fn take(&mut self) -> Option<Launched> {
        self.since.is_some().then(|| std::mem::take(&mut self.told))
    }

    fn lap(&mut self) -> Option<u32> {
        let since = self.since.as_mut()?;
        let now = Instant::now();
        Some(micros(now - std::mem::replace(since, now)))
    }
}

fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_told_once() {
        let mut course = Course::begin(&LaunchDocument::default());
        course.prepared();
        let Launched { start_micros, endpoint_micros, handshake_micros, register_micros, first_step_micros } =
            course.connected().expect("the first");
        assert!(endpoint_micros.is_some() && handshake_micros.is_some());
        assert_eq!((start_micros, register_micros, first_step_micros), (None, None, None), "not passed yet");
        course.registered();
        let told = course.asked().expect("the first");
        assert!(told.register_micros.is_some() && told.first_step_micros.is_some());
        assert_eq!((told.endpoint_micros, told.handshake_micros), (None, None), "told before");
        // Connected again, with requests to come.
        assert_eq!(course.connected(), None);
        course.registered();
        assert_eq!(course.asked(), None);
    }

    #[test]
    fn the_start_is_told_if_the_moment_before_it_is() {
        let handed_over_nanos = sys::monotonic_nanos();
        let course = Course::begin(&LaunchDocument { handed_over_nanos, ..LaunchDocument::default() });
        assert!(course.told.start_micros.is_some());
        for handed_over_nanos in [0, u64::MAX] {
            let course = Course::begin(&LaunchDocument { handed_over_nanos, ..LaunchDocument::default() });
            assert_eq!(course.told.start_micros, None);
        }
    }
}
