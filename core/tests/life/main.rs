//! The life of one instance, searched: can any order of crashes, lost replies, late copies,
//! pauses, cancels, lost leases, slow launches and outages break an invariant, or leave the
//! instance stuck?
//!
//! The world is a model (two nodes, the processes, core and a database); the row in it is the
//! real `Life` of `dormouse_core::domain::instance`. Time is abstract: a moment has come, or it
//! may come at any step.
//! - `state`: the world. No decisions.
//! - `row`: the requests of the table against the real row, and what the store does beside it.
//! - `actions`, `steps`: what may happen (controllers, nodes, processes, core, time, faults), and
//!   what that does.
//! - `properties`: what must hold, and the way home when faults end.
//! - `bugs`: known mistakes, each one rule left out; each must be found.
//! - `search`, `mix`: breadth first through all of it, and its hasher.
//!
//! Every scenario is searched for every property; a test is named after the invariant that
//! its scenario tries hardest. `DORMOUSE_TEST_LONG=1` launches the instance up to three times
//! in all of them, as the design's model does: a minute instead of seconds. Not looked at:
//! durations, several operations at once, SQL isolation, and other schedules than one fair one
//! on the way home.

mod actions;
mod bugs;
mod mix;
mod properties;
mod row;
mod search;
mod state;
mod steps;

use dormouse_core::domain::id::Attempt;

use crate::{
    actions::Rules,
    bugs::{Bug, MISTAKES, Mistake},
    properties::{Property, Reached},
    search::{Found, Search},
    state::{Budget, Op, World},
};

/// What the workflow does, and how much trouble it gets.
struct Scenario {
    name: &'static str,
    script: &'static [Op],
    clean_up: &'static [Op],
    budget: Budget,
    /// How often it may be launched; three times in the many-times version of the test.
    attempts: u32,
    /// Crashes in a row that are forgiven.
    crash_limit: u32,
    /// Crashes in a row before the search begins.
    crashed: u32,
}

const QUIET: Budget = Budget { faults: 0, signals: 0, cancels: 0, pauses: 0, endings: 0 };

const SLEEP: Scenario = Scenario {
    name: "sleep, step",
    script: &[Op::Sleep, Op::Step],
    clean_up: &[],
    budget: Budget { faults: 1, ..QUIET },
    attempts: 3,
    crash_limit: 1,
    crashed: 0,
};
const TWO_FAULTS: Scenario = Scenario {
    name: "step, two faults",
    script: &[Op::Step],
    clean_up: &[],
    budget: Budget { faults: 2, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 0,
};
const SIGNALS: Scenario = Scenario {
    name: "two signals",
    script: &[Op::Signal, Op::Signal],
    clean_up: &[],
    budget: Budget { faults: 1, signals: 2, ..QUIET },
    attempts: 3,
    crash_limit: 1,
    crashed: 0,
};
const DEADLINE: Scenario = Scenario {
    name: "signal with a deadline",
    script: &[Op::SignalOrTime],
    clean_up: &[],
    budget: Budget { faults: 1, signals: 1, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 0,
};
const PAUSE_AND_CANCEL: Scenario = Scenario {
    name: "signal, cancel, pause",
    script: &[Op::Signal],
    clean_up: &[],
    budget: Budget { faults: 1, signals: 1, cancels: 1, pauses: 1, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 0,
};
const CLEAN_UP: Scenario = Scenario {
    name: "sleep, two cancels, clean up",
    script: &[Op::Sleep],
    clean_up: &[Op::Sleep],
    budget: Budget { faults: 1, cancels: 2, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 0,
};
const PAUSE: Scenario = Scenario {
    name: "sleep, pause, crashed before",
    script: &[Op::Sleep],
    clean_up: &[],
    budget: Budget { faults: 1, pauses: 1, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 1,
};
const ENDINGS: Scenario = Scenario {
    name: "step, cancel, endings from outside",
    script: &[Op::Step],
    clean_up: &[Op::Step],
    budget: Budget { faults: 1, cancels: 1, endings: 2, ..QUIET },
    attempts: 2,
    crash_limit: 0,
    crashed: 0,
};

const CRASHES: Scenario = Scenario {
    name: "step, crashed before",
    script: &[Op::Step],
    clean_up: &[],
    budget: Budget { faults: 2, ..QUIET },
    attempts: 2,
    crash_limit: 1,
    crashed: 1,
};

impl Scenario {
    fn rules(&self, bug: Bug) -> Rules {
        let attempts = if is_long() { self.attempts.max(3) } else { self.attempts };
        Rules {
            script: self.script,
            clean_up: self.clean_up,
            bug,
            takes_over_once: false,
            max_attempts: Attempt(attempts),
            crash_limit: self.crash_limit,
        }
    }

    /// Every property in every reachable world, and each of these somewhere.
    fn holds(&self, reaches: &[Reached]) {
        self.holds_with(self.rules(Bug::None), reaches);
    }

    fn holds_with(&self, rules: Rules, reaches: &[Reached]) {
        let found = self.search(rules, &Property::ALL);
        println!("{}: {} worlds", self.name, found.worlds);
        let broken = found.broken.iter().map(|(property, way)| format!("{property:?} is broken:\n{way}"));
        let broken = broken.collect::<Vec<_>>().join("\n");
        assert!(broken.is_empty(), "{}: {broken}", self.name);
        for reached in reaches {
            assert!(found.reached.contains(reached), "{}: {reached:?} was never reached", self.name);
        }
    }

    fn search(&self, rules: Rules, properties: &[Property]) -> Found {
        let start = World::start(self.budget, self.crashed);
        Search { rules, start, properties: properties.to_vec() }.run()
    }
}

#[expect(clippy::disallowed_methods, reason = "the switch that ./test --long sets")]
fn is_long() -> bool {
    std::env::var_os("DORMOUSE_TEST_LONG").is_some()
}

#[test]
fn invariant_1_a_sleep_that_is_acknowledged_is_what_the_row_says() {
    SLEEP.holds(&[Reached::Completed]);
}

#[test]
fn invariant_2_no_zombie_is_acknowledged_whatever_two_faults_do() {
    TWO_FAULTS.holds(&[Reached::Completed, Reached::Failed, Reached::Zombie]);
}

#[test]
fn invariant_4_a_paused_wake_is_claimed_once_and_after_its_resume() {
    PAUSE.holds(&[Reached::Completed]);
}

#[test]
fn invariant_5_signals_are_taken_once_and_in_order() {
    SIGNALS.holds(&[Reached::Completed]);
}

#[test]
fn invariant_5_a_signal_beside_its_deadline_is_not_lost() {
    DEADLINE.holds(&[Reached::Completed]);
}

#[test]
fn invariant_6_no_stop_limit_or_grace_changes_an_ending() {
    ENDINGS.holds(&[Reached::Completed, Reached::Failed, Reached::CancelledAfterCleanUp]);
}

#[test]
fn invariant_7_pause_and_cancel_leave_nobody_stuck() {
    PAUSE_AND_CANCEL.holds(&[Reached::Completed, Reached::CancelledAfterCleanUp]);
}

#[test]
fn invariant_7_a_cancel_ends_the_instance_after_its_clean_up() {
    CLEAN_UP.holds(&[Reached::Completed, Reached::CancelledAfterCleanUp]);
}

#[test]
fn invariant_7_crashes_end_an_instance_only_in_a_row() {
    CRASHES.holds(&[Reached::Completed, Reached::Failed, Reached::Zombie]);
}

#[test]
fn takeover_at_the_moment_of_loss_suffices_while_claims_ask_for_the_lease() {
    SLEEP.holds_with(Rules { takes_over_once: true, ..SLEEP.rules(Bug::None) }, &[]);
}

#[test]
fn each_rule_left_out_is_noticed() {
    for Mistake { bug, what, scenario, breaks } in MISTAKES {
        let found = scenario.search(scenario.rules(*bug), breaks);
        let noticed: Vec<&Property> = found.broken.keys().collect();
        assert_eq!(
            noticed.len(),
            breaks.len(),
            "{what}: only {noticed:?} of {breaks:?} broke in {}",
            scenario.name
        );
    }
}
