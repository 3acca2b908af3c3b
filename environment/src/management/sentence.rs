//! The one sentence that every instance which has not ended says of itself: what it waits for
//! and since when, or why it cannot be launched now (invariant 7, as people see it).
//!
//! Pure: the row, the nodes, the time and the zone are arguments.

use std::time::Duration;

use dormouse_core::domain::{
    instance::{Cancel, Life, State},
    time::Micros,
    wake::{Wait, Waits},
};
use jiff::{Timestamp, Zoned, tz::TimeZone};

/// Whether a due wake would be claimed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Some node takes claims and has a free slot.
    Free,
    /// Nodes take claims, and all their slots are taken.
    Full,
    /// As many of the tenant's instances run as its quota allows.
    TenantFull {
        /// Which tenant.
        tenant: String,
        /// The quota.
        max: u64,
    },
    /// No node takes claims; why, as the nodes say it.
    NobodyClaims(Vec<String>),
}

/// What the sentence is made of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The row.
    pub life: &'a Life,
    /// When it came to be as it is.
    pub since: Micros,
    /// Why the last launch failed or the last process ended, if that is why it waits.
    pub fault: Option<&'a str>,
    /// Whether somebody would launch it.
    pub capacity: &'a Capacity,
    /// The longest time a cancelled process has to end by itself.
    pub cancel_grace: Duration,
}

/// The sentence, for a reader at `now` in `zone`; `None` once it has ended.
pub fn waiting_for(facts: &Facts<'_>, now: Micros, zone: &TimeZone) -> Option<String> {
    let reader = Reader { now, zone };
    let life = facts.life;
    let since = reader.ago(facts.since);
    let sentence = match &life.state {
        State::Ended { .. } => return None,
        State::Launching { node, .. } => format!("being launched on node {node} since {since}"),
        State::Running { node } => reader.running(life, node.as_str(), &since, facts.cancel_grace),
        State::Pending { .. } | State::Suspended { .. } if life.paused => {
            format!("paused since {since}; `dormouse resume` lets it go on")
        }
        State::Pending { wake_at } => reader.pending(facts, *wake_at),
        State::Suspended { waits, wake_at } => reader.suspended(facts, waits, *wake_at),
    };
    Some(sentence)
}

struct Reader<'a> {
    now: Micros,
    zone: &'a TimeZone,
}

impl Reader<'_> {
    fn running(&self, life: &Life, node: &str, since: &str, grace: Duration) -> String {
        match life.cancel {
            Cancel::Asked { since: asked } => format!(
                "asked to cancel {} ago; its process on node {node} is killed {} if it does not end before",
                self.ago(asked),
                self.until(asked + grace)
            ),
            Cancel::Felt => format!("cleaning up on node {node} since {since}, because it was cancelled"),
            Cancel::No if life.paused => {
                format!("pausing since {since}: its process on node {node} finishes the step it is in")
            }
            Cancel::No => format!("running on node {node} since {since}"),
        }
    }

    fn pending(&self, facts: &Facts<'_>, wake_at: Micros) -> String {
        if wake_at <= self.now {
            return self.due(facts, wake_at);
        }
        match self.after_fault(facts, wake_at) {
            Some(sentence) => sentence,
            None => format!("starts {}", self.until(wake_at)),
        }
    }

    fn suspended(&self, facts: &Facts<'_>, waits: &Waits, wake_at: Option<Micros>) -> String {
        if let Some(due) = wake_at.filter(|due| *due <= self.now) {
            return self.due(facts, due);
        }
        if let (true, Some(due)) = (waits.for_retry(), wake_at) {
            let returned = || format!("returned to the queue, next try {}", self.until(due));
            return self.after_fault(facts, due).unwrap_or_else(returned);
        }
        let signals: Vec<String> =
            waits.signals().map(|name| format!("signal {:?}", name.as_str())).collect();
        let since = self.ago(facts.since);
        match (signals.is_empty(), wake_at) {
            (false, None) => format!("waits for {} since {since}", signals.join(" or ")),
            (false, Some(due)) => {
                format!("waits for {} since {since}, until {}", signals.join(" or "), self.moment(due))
            }
            (true, Some(due)) => format!("sleeps until {}{}", self.moment_in(due), at_operation(waits, due)),
            // Only signals may be waited for without a wake: the table's CHECK says so.
            (true, None) => format!("waits since {since}"),
        }
    }

    /// Why it waits although nothing but a launch is missing.
    fn due(&self, facts: &Facts<'_>, since: Micros) -> String {
        let since = self.ago(since.max(facts.since));
        let what = match facts.life.cancel {
            Cancel::Asked { .. } => "cancelled, and ",
            Cancel::No | Cancel::Felt => "",
        };
        match facts.capacity {
            Capacity::Free => format!("{what}due since {since}, about to be launched"),
            Capacity::Full => format!("{what}no free slot on any node, due since {since}"),
            Capacity::TenantFull { tenant, max } => format!(
                "{what}tenant {tenant} runs {max} instances already, which is its quota, due since {since}"
            ),
            Capacity::NobodyClaims(reasons) if reasons.is_empty() => {
                format!("{what}no node takes anything, due since {since}; start one with `dormouse up`")
            }
            Capacity::NobodyClaims(reasons) => {
                format!("{what}no node takes anything, due since {since}: {}", reasons.join("; "))
            }
        }
    }

    fn after_fault(&self, facts: &Facts<'_>, next: Micros) -> Option<String> {
        let why = facts.fault.map(|fault| format!(" ({fault})")).unwrap_or_default();
        match facts.life.crashes {
            0 => facts.fault.map(|fault| format!("not launched: {fault}; next try {}", self.until(next))),
            1 => Some(format!("crashed{why}, next try {}", self.until(next))),
            n => Some(format!("crashed {n} times{why}, next try {}", self.until(next))),
        }
    }

    /// How long ago, rounded down.
    fn ago(&self, then: Micros) -> String {
        span(self.now.since(then).as_secs())
    }

    /// "in 3 s", or for what is further off the moment itself.
    fn until(&self, then: Micros) -> String {
        let left = self.left(then);
        if left == 0 {
            "now".to_owned()
        } else if left < 3600 {
            format!("in {}", span(left))
        } else {
            format!("at {}", self.moment(then))
        }
    }

    /// "09:00:05, in 3 s".
    fn moment_in(&self, then: Micros) -> String {
        match self.left(then) {
            0 => self.moment(then),
            left => format!("{}, in {}", self.moment(then), span(left)),
        }
    }

    /// Seconds left, rounded up.
    fn left(&self, then: Micros) -> u64 {
        then.since(self.now).as_micros().div_ceil(1_000_000).try_into().unwrap_or(u64::MAX)
    }

    /// As short as it is clear: the time today, with seconds if it is near; else with the day;
    /// with the year if it is another one.
    fn moment(&self, then: Micros) -> String {
        let (Some(at), Some(now)) = (self.zoned(then), self.zoned(self.now)) else {
            return "the end of time".to_owned();
        };
        let format = if at.date() == now.date() {
            if self.left(then) < 3600 { "%H:%M:%S" } else { "%H:%M" }
        } else if at.year() == now.year() || self.left(then) < 300 * 86_400 {
            "%-d %b %H:%M"
        } else {
            "%-d %b %Y %H:%M"
        };
        at.strftime(format).to_string()
    }

    fn zoned(&self, at: Micros) -> Option<Zoned> {
        Timestamp::from_microsecond(at.0).ok().map(|at| at.to_zoned(self.zone.clone()))
    }
}

/// Which operation a due time belongs to.
fn at_operation(waits: &Waits, due: Micros) -> String {
    let name = waits.iter().find_map(|wait| match wait {
        Wait::Due { name, key, due_at } if *due_at == due => Some(if key.as_str().is_empty() {
            format!("{:?}", name.as_str())
        } else {
            format!("{:?} of {:?}", name.as_str(), key.as_str())
        }),
        Wait::Due { .. } | Wait::Signal { .. } | Wait::Resume | Wait::Retry => None,
    });
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

/// A span for people, in its largest unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::domain::{
        id::{Key, Name, NodeId},
        instance::Writer,
        outcome::Outcome,
    };

    use super::*;

    /// 21 Nov 2026 09:00:00 UTC.
    const NOW: Micros = Micros::seconds(1_795_251_600);
    const HOUR: Duration = Duration::from_hours(1);

    fn node() -> NodeId {
        NodeId::parse("hazel").expect("a node's name")
    }

    fn name(text: &str) -> Name {
        Name::parse("name", text).expect("a name")
    }

    fn say(life: &Life, since: Micros, fault: Option<&str>, capacity: &Capacity) -> String {
        let facts = Facts { life, since, fault, capacity, cancel_grace: Duration::from_mins(5) };
        waiting_for(&facts, NOW, &TimeZone::UTC).expect("it has not ended")
    }

    fn suspended(waits: Vec<Wait>) -> Life {
        let waits = Waits::new(waits).expect("waits for something");
        let wake_at = waits.earliest_due();
        Life { state: State::Suspended { waits, wake_at }, ..Life::start(NOW, None) }
    }

    fn signal(signal: &str, due_at: Option<Micros>) -> Wait {
        Wait::Signal { name: name(signal), key: Key::none(), signal: name(signal), due_at }
    }

    #[test]
    fn signals_with_and_without_a_time_out() {
        let free = Capacity::Free;
        let life = suspended(vec![signal("approval", Some(NOW + 72 * HOUR))]);
        assert_eq!(
            say(&life, NOW - 2 * HOUR, None, &free),
            "waits for signal \"approval\" since 2 h, until 24 Nov 09:00"
        );
        let life = suspended(vec![signal("yes", None), signal("no", None)]);
        assert_eq!(
            say(&life, NOW - Duration::from_secs(90), None, &free),
            "waits for signal \"no\" or signal \"yes\" since 1 min"
        );
    }

    #[test]
    fn sleeps() {
        let sleep = |due_at| suspended(vec![Wait::Due { name: name("nap"), key: Key::none(), due_at }]);
        let near = sleep(NOW + Duration::from_millis(2_500));
        assert_eq!(say(&near, NOW, None, &Capacity::Free), "sleeps until 09:00:02, in 3 s (\"nap\")");
        let far = sleep(NOW + 24 * 400 * HOUR);
        assert_eq!(
            say(&far, NOW, None, &Capacity::Free),
            "sleeps until 26 Dec 2027 09:00, in 400 d (\"nap\")"
        );
        let over = sleep(Micros::MAX);
        assert!(say(&over, NOW, None, &Capacity::Free).contains("the end of time"));
    }

    #[test]
    fn what_is_due_says_why_nobody_takes_it() {
        let life = Life::start(NOW - Duration::from_secs(3), None);
        let since = NOW - Duration::from_secs(3);
        assert_eq!(say(&life, since, None, &Capacity::Free), "due since 3 s, about to be launched");
        assert_eq!(say(&life, since, None, &Capacity::Full), "no free slot on any node, due since 3 s");
        let full = Capacity::TenantFull { tenant: "acme".into(), max: 4 };
        assert_eq!(
            say(&life, since, None, &full),
            "tenant acme runs 4 instances already, which is its quota, due since 3 s"
        );
        assert_eq!(
            say(&life, since, None, &Capacity::NobodyClaims(vec!["hazel is draining".into()])),
            "no node takes anything, due since 3 s: hazel is draining"
        );
        assert!(say(&life, since, None, &Capacity::NobodyClaims(vec![])).ends_with("`dormouse up`"));
    }

    #[test]
    fn launches() {
        let life = Life::start(NOW, None).claim(&node(), NOW + HOUR, NOW).expect("due");
        assert_eq!(
            say(&life, NOW - Duration::from_secs(1), None, &Capacity::Free),
            "being launched on node hazel since 1 s"
        );
        let later = Life::start(NOW + 2 * HOUR, None);
        assert_eq!(say(&later, NOW, None, &Capacity::Free), "starts at 11:00");
    }

    #[test]
    fn crashes_say_when_it_is_tried_again() {
        let retry = Life {
            state: State::Suspended { waits: Waits::retry(), wake_at: Some(NOW + Duration::from_secs(3)) },
            crashes: 2,
            ..Life::start(NOW, None)
        };
        assert_eq!(say(&retry, NOW, None, &Capacity::Free), "crashed 2 times, next try in 3 s");
        assert_eq!(
            say(&retry, NOW, Some("killed by signal 9 (SIGKILL)"), &Capacity::Free),
            "crashed 2 times (killed by signal 9 (SIGKILL)), next try in 3 s"
        );
        let given_back = Life::start(NOW + Duration::from_secs(5), None);
        assert_eq!(
            say(&given_back, NOW, Some("the image is not here"), &Capacity::Free),
            "not launched: the image is not here; next try in 5 s"
        );
    }

    #[test]
    fn pauses_and_cancels() {
        let paused = suspended(vec![signal("go", None)]).pause().expect("may be paused");
        assert_eq!(
            say(&paused, NOW - 2 * HOUR, None, &Capacity::Free),
            "paused since 2 h; `dormouse resume` lets it go on"
        );
        let running = Life::start(NOW, None)
            .claim(&node(), NOW + HOUR, NOW)
            .and_then(|life| life.register(life.attempt, NOW).ok())
            .expect("registered");
        assert_eq!(say(&running, NOW, None, &Capacity::Free), "running on node hazel since 0 s");
        let asked = running.cancel(NOW - Duration::from_secs(10)).expect("may be cancelled");
        assert_eq!(
            say(&asked, NOW, None, &Capacity::Free),
            "asked to cancel 10 s ago; its process on node hazel is killed in 4 min if it does not end before"
        );
        let by = Writer { attempt: running.attempt, session: running.session };
        let ended = running.end(by, Outcome::Completed, NOW).expect("may end");
        let dormouse_core::domain::instance::End::Ended(ended) = ended else { panic!("it ended now") };
        let facts =
            Facts { life: &ended, since: NOW, fault: None, capacity: &Capacity::Free, cancel_grace: HOUR };
        assert_eq!(waiting_for(&facts, NOW, &TimeZone::UTC), None);
    }
}
