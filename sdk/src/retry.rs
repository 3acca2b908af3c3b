//! How often a step is tried, and how long it pauses in between.

use std::{fmt, sync::Arc, time::Duration};

use crate::error::Failure;

/// Says whether a failure is worth another try.
type Judge = dyn Fn(&Failure) -> bool + Send + Sync;

/// A step's policy: how many tries, how long the pauses, which failures are final.
///
/// Pauses are durable: they survive a crash, and a long one suspends the instance like a sleep. Tries
/// are counted over all launches; a try that a crash cut off does not count. A failure that says it is
/// [permanent](Failure::permanent) is final whatever the policy.
///
/// ```
/// use std::time::Duration;
/// use dormouse_sdk::Retry;
///
/// let policy = Retry::exponential()
///     .attempts(5)
///     .initial(Duration::from_millis(200))
///     .cap(Duration::from_secs(60))
///     .retry_if(|failure| failure.code() != "DECLINED");
/// ```
#[derive(Clone)]
pub struct Retry {
    attempts: u32,
    initial: Duration,
    factor: f64,
    cap: Duration,
    jitter: f64,
    judge: Option<Arc<Judge>>,
}

impl Retry {
    /// One try: the first failure is final. What a step does without a policy.
    pub fn never() -> Self {
        Self { attempts: 1, ..Self::exponential() }
    }

    /// Pauses that double: 1 s, 2 s, 4 s … up to 5 min, each by ± 20 %; 10 tries in all.
    pub fn exponential() -> Self {
        Self {
            attempts: 10,
            initial: Duration::from_secs(1),
            factor: 2.0,
            cap: Duration::from_mins(5),
            jitter: 0.2,
            judge: None,
        }
    }

    /// Equal pauses, without jitter; 10 tries in all.
    pub fn fixed(pause: Duration) -> Self {
        Self { initial: pause, factor: 1.0, cap: pause, jitter: 0.0, ..Self::exponential() }
    }

    /// Tries in all, the first one included; 0 counts as 1.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts: attempts.max(1), ..self }
    }

    /// Tries until it succeeds or fails for good.
    #[must_use]
    pub fn forever(self) -> Self {
        self.attempts(u32::MAX)
    }

    /// The pause after the first failed try.
    #[must_use]
    pub fn initial(self, pause: Duration) -> Self {
        Self { initial: pause, cap: self.cap.max(pause), ..self }
    }

    /// By how much each pause is longer than the one before; below 1 counts as 1.
    #[must_use]
    pub fn factor(self, factor: f64) -> Self {
        Self { factor: factor.max(1.0), ..self }
    }

    /// No pause is longer, jitter aside.
    #[must_use]
    pub fn cap(self, cap: Duration) -> Self {
        Self { cap, initial: self.initial.min(cap), ..self }
    }

    /// Each pause varies by this share of itself, so that instances which failed together do not come
    /// back together. From 0 to 1.
    #[must_use]
    pub fn jitter(self, share: f64) -> Self {
        Self { jitter: share.clamp(0.0, 1.0), ..self }
    }

    /// Which failures are worth another try, besides those that say they are permanent.
    #[must_use]
    pub fn retry_if(self, judge: impl Fn(&Failure) -> bool + Send + Sync + 'static) -> Self {
        Self { judge: Some(Arc::new(judge)), ..self }
    }

    /// The pause after the `failed`-th failed try; `None`: the failure is final.
    pub(crate) fn pause(&self, failed: u32, failure: &Failure, random: f64) -> Option<Duration> {
        let worth = failure.is_retryable() && self.judge.as_ref().is_none_or(|judge| judge(failure));
        if !worth || failed >= self.attempts {
            return None;
        }
        let doublings = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.initial.as_secs_f64() * self.factor.powi(doublings);
        let seconds = seconds.min(self.cap.as_secs_f64());
        // `random` in 0..1 becomes a factor around 1.
        let seconds = seconds * (1.0 + self.jitter * (2.0 * random - 1.0));
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(self.cap))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::never()
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("attempts", &self.attempts)
            .field("initial", &self.initial)
            .field("factor", &self.factor)
            .field("cap", &self.cap)
            .field("jitter", &self.jitter)
            .field("judges", &self.judge.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    fn pauses(policy: &Retry, random: f64) -> Vec<Option<u128>> {
        let failure = Failure::new("A", "b");
        (1..=4).map(|n| policy.pause(n, &failure, random).map(|pause| pause.as_millis())).collect()
    }

    #[test]
    fn pauses_double_up_to_the_cap_and_end_with_the_tries() {
        let policy = Retry::exponential().attempts(4).cap(Duration::from_secs(3));
        assert_eq!(pauses(&policy, MIDDLE), [Some(1000), Some(2000), Some(3000), None]);
        assert_eq!(pauses(&policy, 0.0), [Some(800), Some(1600), Some(2400), None]);
    }

    #[test]
    fn what_is_permanent_is_not_tried_again() {
        let policy = Retry::exponential().forever().retry_if(|failure| failure.code() != "NO");
        assert!(policy.pause(1, &Failure::new("A", "b").permanent(), MIDDLE).is_none());
        assert!(policy.pause(1, &Failure::new("NO", "b"), MIDDLE).is_none());
        assert_eq!(
            policy.pause(u32::MAX - 1, &Failure::new("A", "b"), MIDDLE),
            Some(Duration::from_mins(5)),
            "the pause stays finite however often it failed"
        );
        assert!(Retry::never().pause(1, &Failure::new("A", "b"), MIDDLE).is_none());
    }
}
