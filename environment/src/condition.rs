//! How this node is: what its parts tell each other about claims, and the one sentence that says
//! why nothing is claimed (invariant 7, as people see it).
//!
//! The lease keeper writes, the wake scheduler and the supervisor look and are woken by changes,
//! the management server reads. It stores nothing and decides nothing about instances.

use std::{sync::Arc, time::Duration};

use dormouse_core::{
    domain::id::Tenant,
    store::{Drain, NodeReport},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    machine::{FullDisk, Machine},
    node::Slots,
};

/// What is known about this node. Times are of the node's monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What controllers ask of it.
    pub asked: Drain,
    /// The lease is lost since then, and a new one is not yet taken.
    pub lease_lost: Option<Instant>,
    /// The database has not answered a renewal since then.
    pub unanswered: Option<Instant>,
    /// Its disk has no room.
    pub full_disk: Option<FullDisk>,
    /// What the machine has left.
    pub machine: Machine,
    /// Images whose spares do not stand by.
    pub without_spares: Arc<[WithoutSpares]>,
}

/// An image whose spares do not stand by on a node: they are tried again after longer and longer pauses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WithoutSpares {
    /// Whose image: nobody else is told its name.
    pub tenant: Tenant,
    /// Its name and version.
    pub image: String,
    /// What became of the last one, for people.
    pub reason: String,
}

impl WithoutSpares {
    /// For its owner, with what helps.
    pub fn sentence(&self) -> String {
        let Self { image, reason, .. } = self;
        format!(
            "spares of {image} do not stand by on this node ({reason}), its instances are launched without; mend the \
             image and push it, or say `dormouse image set {image} --spares 0`"
        )
    }
}

impl Facts {
    /// Whether it claims, as far as slots are free. While the database is silent it goes on
    /// asking: the first answer is as good as any.
    pub fn claims(&self) -> bool {
        self.asked == Drain::No && self.lease_lost.is_none() && self.full_disk.is_none()
    }

    /// Whether it ends what runs and gives it back.
    pub fn suspends(&self) -> bool {
        self.asked == Drain::Suspend
    }

    /// Why nothing is claimed, in one sentence, while so many processes run; `None`: it claims as
    /// far as slots are free.
    pub fn not_claiming(&self, running: usize, now: Instant) -> Option<String> {
        if let Some(since) = self.lease_lost {
            return Some(format!("its lease is lost since {}; it is taking a new one", ago(since, now)));
        }
        if let Some(since) = self.unanswered {
            return Some(format!("the database does not answer since {}", ago(since, now)));
        }
        match (self.asked, running) {
            (Drain::No, _) => {}
            (Drain::Wait | Drain::Suspend, 0) => {
                return Some("drained: nothing runs here until `dormouse node undrain`".to_owned());
            }
            (Drain::Wait, n) => return Some(format!("draining: waits for {n} processes")),
            (Drain::Suspend, n) => {
                return Some(format!("draining: ends {n} processes, others go on with them"));
            }
        }
        self.full_disk.map(|FullDisk { free, needed }| {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            format!(
                "the disk of its data directory is full: {} MiB free, {} needed; free space on it",
                mib(free),
                mib(needed)
            )
        })
    }

    /// What is told with a renewal.
    pub fn report(&self, running: usize, mut in_force: Vec<String>, now: Instant) -> NodeReport {
        match self.without_spares.len() {
            0 => {}
            1 => in_force.push("spares of 1 image do not stand by".to_owned()),
            n => in_force.push(format!("spares of {n} images do not stand by")),
        }
        NodeReport {
            running: u32::try_from(running).unwrap_or(u32::MAX),
            draining: self.asked != Drain::No,
            not_claiming: self.not_claiming(running, now).unwrap_or_default(),
            load_milli: self.machine.load_milli,
            memory_free_bytes: self.machine.memory_free_bytes,
            in_force,
        }
    }
}

fn ago(since: Instant, now: Instant) -> String {
    let secs = now.saturating_duration_since(since).as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        _ => format!("{} h", secs / 3600),
    }
}

/// One node's condition. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Condition {
    facts: Arc<watch::Sender<Facts>>,
    slots: Slots,
    in_force: Arc<[String]>,
}

impl Condition {
    /// Of a node that nothing is known of yet. `in_force`: what confines its processes, a phrase each.
    pub fn new(slots: Slots, in_force: Vec<String>) -> Self {
        Self { facts: Arc::new(watch::Sender::new(Facts::default())), slots, in_force: in_force.into() }
    }

    /// As it is now.
    pub fn now(&self) -> Facts {
        self.facts.borrow().clone()
    }

    /// Wakes whoever waits for a change.
    pub fn subscribe(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// As the node tells it.
    pub fn report(&self) -> NodeReport {
        self.now().report(self.slots.used(), self.in_force.to_vec(), Instant::now())
    }

    /// Changes it; who waits is woken only if something did change.
    pub fn change(&self, change: impl FnOnce(&mut Facts)) {
        self.facts.send_if_modified(|facts| {
            let before = facts.clone();
            change(facts);
            // Load and free memory change all the time and concern nobody here.
            Facts { machine: facts.machine, ..before } != *facts
        });
    }

    /// How long a drained node needs until its processes have ended, for who polls it.
    pub(crate) fn is_emptying(&self) -> bool {
        self.facts.borrow().asked != Drain::No && self.slots.used() > 0
    }
}

/// How often a node that drains tells how far it is.
pub(crate) const EMPTYING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_sentence_names_the_first_thing_to_look_at() {
        let now = Instant::now();
        tokio::time::advance(Duration::from_secs(150)).await;
        let full_disk = Some(FullDisk { free: 3 << 20, needed: 64 << 20 });
        let (asked, machine) = (Drain::No, Machine::default());
        let well = Facts { asked, machine, ..Facts::default() };
        let cases = [
            (well.clone(), 3, None),
            (Facts { asked: Drain::Wait, ..well.clone() }, 3, Some("draining: waits for 3 processes")),
            (
                Facts { asked: Drain::Suspend, ..well.clone() },
                2,
                Some("draining: ends 2 processes, others go on with them"),
            ),
            (
                Facts { asked: Drain::Suspend, ..well.clone() },
                0,
                Some("drained: nothing runs here until `dormouse node undrain`"),
            ),
            (
                Facts { full_disk, ..well.clone() },
                0,
                Some("the disk of its data directory is full: 3 MiB free, 64 needed; free space on it"),
            ),
            (
                Facts { asked: Drain::Wait, unanswered: Some(now), ..well.clone() },
                0,
                Some("the database does not answer since 2 min"),
            ),
            (
                Facts { lease_lost: Some(now), unanswered: Some(now), ..well.clone() },
                0,
                Some("its lease is lost since 2 min; it is taking a new one"),
            ),
        ];
        for (facts, running, sentence) in cases {
            assert_eq!(facts.not_claiming(running, Instant::now()).as_deref(), sentence, "{facts:?}");
        }
        assert!(well.claims() && Facts { unanswered: Some(now), ..well.clone() }.claims());
        assert!(!Facts { full_disk, ..well.clone() }.claims());
        assert!(!Facts { asked: Drain::Wait, ..well }.claims());
    }

    #[tokio::test]
    async fn only_what_matters_wakes_who_waits() {
        let condition = Condition::new(Slots::new(1), Vec::new());
        let mut waiting = condition.subscribe();
        condition.change(|facts| facts.machine.load_milli = 7);
        assert!(!waiting.has_changed().expect("it lives"));
        assert_eq!(condition.report().load_milli, 7);
        condition.change(|facts| facts.asked = Drain::Wait);
        assert!(waiting.has_changed().expect("it lives"));
        assert!(waiting.borrow_and_update().asked == Drain::Wait && condition.report().draining);
    }
}
