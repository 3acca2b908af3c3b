//! Named points at which a test makes a service kill itself.
//!
//! `DORMOUSE_KILL_AT=name` (or `name:n`) in a service's environment makes it send itself SIGKILL
//! when it passes the point of that name for the first (or n-th) time: nothing is flushed, no
//! destructor runs, as if the machine's operator had done it. `name:n@m` counts only passes in a
//! batch of at least m requests. Without the variable a point costs one atomic load. Points stand after each line whose effect another process or a restart can
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
    /// Requests that a batch must have.
    requests: usize,
}

impl Target {
    /// Reads `name`, `name:n`, `name@m` or `name:n@m`; what stands after a mark and is no number belongs to the name.
    fn parse(text: &str) -> Option<Self> {
        let (text, requests) = number_behind(text, '@').unwrap_or((text, 0));
        let (name, passes) = number_behind(text, ':').unwrap_or((text, 1));
        let passes_left = AtomicU32::new(passes.max(1));
        (!name.is_empty()).then(|| Self { name: name.to_owned(), passes_left, requests })
    }

    /// Whether this pass is the one.
    fn hit(&self, name: &str, requests: usize) -> bool {
        self.name == name
            && requests >= self.requests
            && self.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

fn number_behind<N: std::str::FromStr>(text: &str, mark: char) -> Option<(&str, N)> {
    let (before, number) = text.rsplit_once(mark)?;
    Some((before, number.parse().ok()?))
}

static TARGET: OnceLock<Option<Target>> = OnceLock::new();

/// The named point: returns, unless this process was told to die here.
pub fn point(name: &str) {
    batch(name, 1);
}

/// The same in a batch of so many requests.
pub fn batch(name: &str, requests: usize) {
    if TARGET.get_or_init(read_target).as_ref().is_some_and(|target| target.hit(name, requests)) {
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
        let hits = ["launch.spawned", "launch.claimed", "launch.spawned", "launch.spawned"]
            .map(|n| target.hit(n, 1));
        assert_eq!(hits, [false, false, true, false]);
    }

    #[test]
    fn small_batches_are_not_counted() {
        let target = Target::parse("store.row:2@8").expect("a name and two counts");
        let hits = [8, 7, 9, 10].map(|requests| target.hit("store.row", requests));
        assert_eq!(hits, [false, false, true, false]);
        assert!(Target::parse("store.taken@3").expect("a name and a count").hit("store.taken", 3));
    }

    #[test]
    fn no_count_means_the_first_pass_and_nothing_means_never() {
        assert!(Target::parse("a.b").expect("a name").hit("a.b", 1));
        assert!(Target::parse("").is_none());
    }
}
