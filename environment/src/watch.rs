//! Watches the leases of the other nodes, and takes over what lost ones held.
//!
//! A lease is lost only when this node saw it unrenewed for its whole length: by this node's own
//! monotonic clock, with every look in that time answered by the database in time. So an outage
//! of the database, which keeps every node from renewing, costs nobody a lease; nor does a
//! watcher that was itself stopped for a while; and no wrong clock matters, because no two times
//! of different clocks are ever compared (invariant 10).
//!
//! Whoever sees a lost lease takes over, also when another node has marked it: that one may have
//! died since. It never ends a process, and never judges by the time that a row carries.

use std::time::Duration;

use dormouse_core::{
    domain::id::NodeId,
    fault,
    store::{self, Node, NodeLease, Store},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::supervisor::chain;

/// How others are watched.
#[derive(Clone, Debug)]
pub struct Options {
    /// From one look to the next.
    pub every: Duration,
    /// A look that took longer was not answered in time.
    pub in_time: Duration,
}

impl Options {
    /// For nodes whose leases are as long as this one's.
    pub fn for_lease(lease: Duration) -> Self {
        Self { every: lease / 3, in_time: lease / 3 }
    }

    /// Longest time between two looks of a watcher that was not stopped in between.
    fn gap(&self) -> Duration {
        (self.every + self.in_time) * 2
    }
}

/// What has been seen of the others so far.
#[derive(Debug)]
struct Watch {
    in_time: Duration,
    own: NodeId,
    /// Of each lease how often it was renewed.
    seen: dormouse_core::watch::Watch<NodeLease, u64>,
}

/// A lease that was seen unrenewed for its whole length.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Silent {
    lease: NodeLease,
    renewals: u64,
}

impl Watch {
    fn new(options: &Options, own: NodeId) -> Self {
        let seen = dormouse_core::watch::Watch::with_longest_gap(options.gap());
        Self { in_time: options.in_time, own, seen }
    }

    /// The database did not answer: whoever could not renew is not to blame.
    fn restart(&mut self) {
        self.seen.missed();
    }

    /// A look that began at `asked` was answered at `answered`: whose lease is lost now.
    fn answered(&mut self, asked: Instant, answered: Instant, nodes: &[Node]) -> Vec<Silent> {
        if answered.duration_since(asked) > self.in_time {
            debug!("late: watching the others' leases begins anew");
            self.restart();
        }
        let others = nodes.iter().filter(|node| node.lease.node != self.own && !node.lost);
        self.seen.saw(asked, answered, others.clone().map(|node| (node.lease.clone(), node.renewals)));
        let silent = others.filter(|node| self.seen.silence(&node.lease) >= node.lease_length);
        silent.map(|node| Silent { lease: node.lease.clone(), renewals: node.renewals }).collect()
    }
}

/// Watches for one node.
#[derive(Debug)]
pub struct Watcher {
    store: Store,
    watch: Watch,
    every: Duration,
}

impl Watcher {
    /// For the node `own`, which is left out.
    pub fn new(options: &Options, store: Store, own: NodeId) -> Self {
        Self { store, watch: Watch::new(options, own), every: options.every }
    }

    /// Watches until `shutdown`. Nothing that goes wrong here ends a node: it is said, and tried
    /// again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.look().await;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = sleep(self.every) => {}
            }
        }
    }

    /// One look, and what follows from it.
    async fn look(&mut self) {
        let asked = Instant::now();
        let nodes = match self.store.watch_nodes().await {
            Ok(nodes) => nodes,
            Err(error) => {
                debug!(error = %chain(&error), "the others' leases are not seen now");
                return self.watch.restart();
            }
        };
        let silent = self.watch.answered(asked, Instant::now(), &nodes);
        let mut any_lost = nodes.iter().any(|node| node.lost);
        for Silent { lease, renewals } in silent {
            match self.store.lose_lease(&lease, renewals).await {
                Ok(lost) => {
                    any_lost |= lost;
                    if lost {
                        warn!(node = %lease.node, "its lease is lost: it was not renewed for its whole length");
                    }
                }
                Err(error) => {
                    warn!(error = %chain(&error), node = %lease.node, "a lost lease is not marked now")
                }
            }
        }
        fault::point("watch.lease_lost");
        if any_lost && let Err(error) = self.take_over().await {
            warn!(error = %chain(&error), "what lost nodes held is not taken over now");
        }
    }

    /// Until no row is left; in batches, so that nobody waits long for a row.
    async fn take_over(&self) -> Result<(), store::Error> {
        loop {
            let taken = self.store.take_over().await?;
            if taken.is_empty() {
                return Ok(());
            }
            fault::point("watch.taken_over");
            info!(instances = taken.len(), "taken over from nodes that lost their leases");
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::{
        domain::time::Micros,
        store::{Drain, NodeReport},
    };

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn id(text: &str) -> NodeId {
        NodeId::parse(text).expect("an id")
    }

    fn node(name: &str, epoch: u64, renewals: u64) -> Node {
        Node {
            lease: NodeLease { node: id(name), epoch },
            renewals,
            lease_length: LEASE,
            lost: false,
            name: name.to_owned(),
            address: String::new(),
            version: String::new(),
            slots: 1,
            report: NodeReport::default(),
            drain: Drain::No,
            // Decades apart: whoever compares times of rows fails here.
            started_at: Micros(0),
            renewed_at: Micros(0),
        }
    }

    /// What happens, one after the other.
    enum Do {
        /// So many seconds pass.
        Pass(f64),
        /// A look takes so many seconds and is answered with these (epoch, renewals) of node "b";
        /// the names of those that are lost by it follow.
        Look(f64, (u64, u64), bool),
        /// A look fails.
        Fail,
    }
    use Do::{Fail, Look, Pass};

    async fn check(what: &str, steps: &[Do]) {
        let mut watch = Watch::new(&Options::for_lease(LEASE), id("a"));
        for (at, step) in steps.iter().enumerate() {
            match step {
                Pass(seconds) => tokio::time::advance(Duration::from_secs_f64(*seconds)).await,
                Fail => watch.restart(),
                Look(takes, (epoch, renewals), lost) => {
                    let asked = Instant::now();
                    tokio::time::advance(Duration::from_secs_f64(*takes)).await;
                    let nodes = [node("a", 1, 0), node("b", *epoch, *renewals)];
                    let silent = watch.answered(asked, Instant::now(), &nodes);
                    let names: Vec<&str> = silent.iter().map(|one| one.lease.node.as_str()).collect();
                    assert_eq!(names, if *lost { vec!["b"] } else { vec![] }, "{what}, step {at}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_lost_after_its_whole_length_and_not_before() {
        let same = (1, 7);
        let steps = [
            Look(0.0, same, false),
            Pass(5.0),
            Look(0.0, same, false),
            Pass(5.0),
            Look(0.0, same, false),
            Pass(4.9),
            Look(0.0, same, false),
            Pass(0.2),
            Look(0.0, same, true),
        ];
        check("unrenewed", &steps).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_or_a_new_lease_begins_the_watch_anew() {
        for (what, other) in [("renewed", (1, 8)), ("a new lease", (2, 7))] {
            let steps = [
                Look(0.0, (1, 7), false),
                Pass(7.0),
                Look(0.0, (1, 7), false),
                Pass(7.0),
                Look(0.0, other, false),
                Pass(7.0),
                Look(0.0, other, false),
                Pass(7.9),
                Look(0.0, other, false),
                Pass(0.1),
                Look(0.0, other, true),
            ];
            check(what, &steps).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_costs_nobody_a_lease() {
        let same = (1, 7);
        let short = [
            Look(0.0, same, false),
            Pass(5.0),
            Look(0.0, same, false),
            Pass(5.0),
            Fail,
            Pass(5.0),
            Look(0.0, same, false),
            Pass(10.0),
            Look(0.0, same, false),
            Pass(5.0),
            Look(0.0, same, true),
        ];
        check("one look failed", &short).await;
        let mut long = vec![Look(0.0, same, false)];
        for _ in 0..20 {
            long.extend([Pass(5.0), Fail]);
        }
        long.extend([Pass(5.0), Look(0.0, same, false), Pass(14.0), Look(0.0, same, false)]);
        check("longer than every lease", &long).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_counts_as_none() {
        let same = (1, 7);
        let steps = [
            Look(0.0, same, false),
            Pass(9.0),
            Look(5.1, same, false),
            Pass(1.0),
            Look(0.0, same, false),
            Pass(14.1),
            Look(0.0, same, true),
        ];
        check("late", &steps).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_was_stopped_begins_anew() {
        let same = (1, 7);
        let steps =
            [Look(0.0, same, false), Pass(3600.0), Look(0.0, same, false), Pass(15.0), Look(0.0, same, true)];
        check("stopped for an hour", &steps).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_look_takes_is_not_counted() {
        let same = (1, 7);
        // The row may have been renewed while the first look was on its way, and the last answer
        // may be as old as its question.
        let steps =
            [Look(3.0, same, false), Pass(12.0), Look(4.0, same, false), Pass(0.0), Look(0.0, same, true)];
        check("slow looks", &steps).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_own_lease_and_lost_ones_are_not_watched() {
        let mut watch = Watch::new(&Options::for_lease(LEASE), id("a"));
        let lost = Node { lost: true, ..node("b", 1, 1) };
        for _ in 0..10 {
            let now = Instant::now();
            assert_eq!(watch.answered(now, now, &[node("a", 1, 1), lost.clone()]), []);
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        // It has taken a new lease: its time begins now.
        let now = Instant::now();
        assert_eq!(watch.answered(now, now, &[node("a", 1, 1), node("b", 2, 0)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn each_node_has_the_length_that_its_row_says() {
        let mut watch = Watch::new(&Options::for_lease(LEASE), id("a"));
        let quick = Node { lease_length: Duration::from_secs(3), ..node("quick", 1, 1) };
        let nodes = [quick, node("slow", 1, 1)];
        let mut lost = Vec::new();
        for _ in 0..5 {
            let now = Instant::now();
            lost.push(watch.answered(now, now, &nodes).len());
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(lost, [0, 1, 1, 2, 2]);
    }
}
