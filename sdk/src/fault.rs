//! Named points at which a test makes a workflow's process kill itself.
//!
//! `DORMOUSE_SDK_KILL_AT=name` (or `name:n`) in the process's environment makes it send itself SIGKILL
//! when it passes that point for the first (or n-th) time of this launch; `name@a` and `name:n@a` do so
//! in attempt a alone, for an instance that is killed at the same point in each attempt gets nowhere.
//! Nothing is flushed, no destructor runs. Without the variable a point costs one atomic load.
//!
//! | point | what was just done |
//! |---|---|
//! | `document-taken` | a spare has said that it has its launch document; core knows nothing |
//! | `after-register` | core knows this attempt; the workflow has not begun |
//! | `before-step` | a step may run; nothing of it has |
//! | `step-ran` | a step's work is done; nothing is saved |
//! | `before-checkpoint` | a checkpoint (of any kind) is about to be sent |
//! | `after-checkpoint` | it is stored and acknowledged; the workflow has not seen that |
//! | `before-suspend` | new operations are held back; core does not know |
//! | `after-suspend` | the suspension is recorded; the process would end now |
//! | `before-complete` | the workflow returned; core does not know |
//! | `after-complete` | the ending is recorded; the process would end now |

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::sys;

/// The variable's name.
const VARIABLE: &str = "DORMOUSE_SDK_KILL_AT";

macro_rules! points {
    ($($name:ident $word:literal),+ $(,)?) => {
        /// A point, see the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Point { $($name),+ }

        impl Point {
            const ALL: &[Self] = &[$(Self::$name),+];

            const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

points! {
    DocumentTaken "document-taken",
    AfterRegister "after-register",
    BeforeStep "before-step",
    StepRan "step-ran",
    BeforeCheckpoint "before-checkpoint",
    AfterCheckpoint "after-checkpoint",
    BeforeSuspend "before-suspend",
    AfterSuspend "after-suspend",
    BeforeComplete "before-complete",
    AfterComplete "after-complete",
}

struct Target {
    point: Point,
    passes_left: AtomicU32,
    /// 0: in each attempt.
    attempt: u32,
}

impl Target {
    /// Reads `name`, `name:n`, `name@a` or `name:n@a`.
    fn parse(text: &str) -> Option<Self> {
        let (text, attempt) = match text.split_once('@') {
            Some((text, attempt)) => (text, attempt.parse().ok()?),
            None => (text, 0),
        };
        let (name, passes) = match text.split_once(':') {
            Some((name, n)) => (name, n.parse().ok()?),
            None => (text, 1),
        };
        let point = Point::ALL.iter().copied().find(|point| point.word() == name)?;
        Some(Self { point, passes_left: AtomicU32::new(passes), attempt })
    }

    /// Whether this pass is the one.
    fn hit(&self, point: Point, attempt: u32) -> bool {
        let meant = self.point == point && (self.attempt == 0 || self.attempt == attempt);
        meant && self.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Whether there is a target at all.
static ARMED: AtomicBool = AtomicBool::new(false);
static TARGET: Mutex<Option<Target>> = Mutex::new(None);
/// Which attempt this process is.
static ATTEMPT: AtomicU32 = AtomicU32::new(0);

/// Says which attempt this process is, before it passes any point. Each may have an environment of its own.
pub(crate) fn this_is_attempt(attempt: u32) {
    ATTEMPT.store(attempt, Ordering::Relaxed);
    let target = read_target();
    ARMED.store(target.is_some(), Ordering::Relaxed);
    *TARGET.lock().unwrap_or_else(PoisonError::into_inner) = target;
}

/// The named point: returns, unless this process was told to die here.
pub(crate) fn pass(point: Point) {
    if !ARMED.load(Ordering::Relaxed) {
        return;
    }
    let target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
    if target.as_ref().is_some_and(|target| target.hit(point, ATTEMPT.load(Ordering::Relaxed))) {
        sys::kill_self();
    }
}

#[expect(clippy::disallowed_methods, reason = "a switch of tests, below any configuration")]
fn read_target() -> Option<Target> {
    let text = std::env::var(VARIABLE).ok()?;
    let target = Target::parse(&text);
    if target.is_none() {
        // A test that kills nothing must not pass silently.
        eprintln!("dormouse-sdk: {VARIABLE}={text} names no point; this process will not kill itself");
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_pass_of_the_named_point_is_hit_once() {
        let target = Target::parse("step-ran:2").unwrap();
        let passes = [Point::StepRan, Point::BeforeStep, Point::StepRan, Point::StepRan];
        assert_eq!(passes.map(|point| target.hit(point, 7)), [false, false, true, false]);
    }

    #[test]
    fn one_attempt_alone_may_be_meant() {
        let target = Target::parse("step-ran:2@3").unwrap();
        let passes = [(2, false), (2, false), (3, false), (3, true), (3, false), (4, false)];
        for (attempt, hit) in passes {
            assert_eq!(target.hit(Point::StepRan, attempt), hit);
        }
    }

    #[test]
    fn what_names_no_point_is_not_a_target() {
        for text in ["", "nowhere", "step-ran:x", "step-ran:-1", "step-ran@", "step-ran@x"] {
            assert!(Target::parse(text).is_none(), "{text}");
        }
        assert!(Target::parse("after-complete").unwrap().hit(Point::AfterComplete, 1));
    }
}
