//! Named points at which a test makes a service kill itself.
//!
//! `DORMOUSE_KILL_AT=name` (or `name:n`) in a service's environment makes it send itself SIGKILL
//! when it passes the point of that name for the first (or n-th) time: nothing is flushed, no
//! destructor runs, as if the machine's operator had done it. Without the variable a point costs
//! one atomic load. Points stand after each line whose effect another process or a restart can
//! see, and they are named `component.what_was_just_done`.
//!
//! It never does anything but kill this very process.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};

/// The variable's name.
pub const VARIABLE: &str = "DORMOUSE_KILL_AT";

struct Target {
    name: String,
    passes_left: AtomicU32,
}

impl Target {
    /// Reads `name` or `name:n`; what stands after the colon and is no number belongs to the name.
    fn parse(text: &str) -> Option<Self> {
        let (name, passes) = match text.rsplit_once(':') {
            Some((name, n)) => n.parse().map_or((text, 1), |n: u32| (name, n.max(1))),
            None => (text, 1),
        };
        (!name.is_empty()).then(|| Self { name: name.to_owned(), passes_left: AtomicU32::new(passes) })
    }

    /// Whether this pass is the one.
    fn hit(&self, name: &str) -> bool {
        self.name == name && self.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

static TARGET: OnceLock<Option<Target>> = OnceLock::new();

/// The named point: returns, unless this process was told to die here.
pub fn point(name: &str) {
    if TARGET.get_or_init(read_target).as_ref().is_some_and(|target| target.hit(name)) {
        // Cannot fail: the process exists and is our own. Should it, the panic is as visible.
        kill(getpid(), Signal::SIGKILL).expect("a process may kill itself");
    }
}

#[expect(clippy::disallowed_methods, reason = "a switch of tests, below any configuration")]
fn read_target() -> Option<Target> {
    std::env::var(VARIABLE).ok().as_deref().and_then(Target::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_pass_of_the_named_point_is_hit_once() {
        let target = Target::parse("launch.spawned:2").expect("a name and a count");
        let hits =
            ["launch.spawned", "launch.claimed", "launch.spawned", "launch.spawned"].map(|n| target.hit(n));
        assert_eq!(hits, [false, false, true, false]);
    }

    #[test]
    fn no_count_means_the_first_pass_and_nothing_means_never() {
        assert!(Target::parse("a.b").expect("a name").hit("a.b"));
        assert!(Target::parse("").is_none());
    }
}
