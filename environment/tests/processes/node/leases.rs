//! A node that loses its lease, and one that is asked to drain.

use std::time::Duration;

use dormouse_core::{
    domain::{id::Attempt, instance::Status},
    store::{self, Drain, NewNode, NodeLease},
};
use dormouse_environment::environment::Error;

use super::{Node, has_ended, options};
use crate::bench::{runs, until};

#[tokio::test]
async fn a_lease_that_another_took_kills_what_runs_here_and_ends_the_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = Node::fresh(&folder).await;
    node.start("fenced", "stubborn").await;
    node.register("fenced", 1).await;
    let pid = node.pid("fenced", 1).expect("known");
    // Another holder of the same node's lease, as after a copy of its directory.
    let lease = NewNode {
        id: node.handle.node.clone(),
        name: "other".to_owned(),
        address: "elsewhere:1".to_owned(),
        version: "0".to_owned(),
        slots: 1,
        lease: Duration::from_secs(15),
    };
    node.store.lease_node(lease).await.expect("taken");
    // Its next claim is refused.
    node.start("refused", "sleep").await;
    let ended = node.running.join_next().await.expect("it was started").expect("no panic");
    let Err(Error::Store(store::Error::LeaseTaken { .. })) = ended else { panic!("{ended:?}") };
    assert!(!runs(pid), "it runs where it must not");
    assert_eq!(node.instance("refused").await.life.attempt, Attempt::NONE);
    assert_eq!(node.instance("fenced").await.life.crashes, 0, "settled by the new holder, no crash");
    node.store.close().await;
}

#[tokio::test]
async fn a_node_that_lost_its_lease_kills_takes_a_new_one_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("running", "stubborn").await;
    node.start("family", "family").await;
    node.register("running", 1).await;
    node.register("family", 1).await;
    let pids = ["running", "family"].map(|id| node.pid(id, 1).expect("known"));
    let lease = NodeLease { node: node.handle.node.clone(), epoch: 1 };
    assert!(node.store.lose_lease(&lease, 0).await.expect("marked"));
    assert_eq!(node.store.take_over().await.expect("taken over").len(), 2);
    // By itself: the old processes are gone, and their instances are launched again.
    for id in ["running", "family"] {
        let again = node.until_instance(id, "its second attempt", |i| i.life.attempt == Attempt(2)).await;
        assert_eq!(again.life.crashes, 0, "{id}: a lost lease is no crash");
        node.register(id, 2).await;
    }
    until("the old processes are gone", || (!pids.iter().any(|pid| runs(*pid))).then_some(())).await;
    let held = node.store.nodes().await.expect("nodes").remove(0);
    assert_eq!((held.lease.epoch, held.lost), (2, false));
    assert!(node.handle.condition.now().claims());
    node.handle.end_processes();
    node.leave().await;
}

#[tokio::test]
async fn a_draining_node_waits_for_what_runs_and_claims_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("runs", "sleep").await;
    let session = node.register("runs", 1).await;
    node.drain(Drain::Wait).await;
    node.start("waits", "sleep").await;
    let said = node.handle.condition.report();
    assert_eq!((said.draining, said.not_claiming.as_str()), (true, "draining: waits for 1 processes"));
    node.complete(&session).await;
    node.until_instance("runs", "its ending", has_ended).await;
    node.idle().await;
    assert!(node.handle.condition.report().not_claiming.starts_with("drained: nothing runs here"));
    assert_eq!(node.instance("waits").await.life.attempt, Attempt::NONE, "it was claimed by a draining node");
    let data = node.data.clone();
    node.leave().await;

    // Drained is drained, also after a restart.
    let node = Node::open(&data, options(16)).await;
    assert_eq!(node.handle.condition.now().asked, Drain::Wait);
    node.drain(Drain::No).await;
    node.register("waits", 1).await;
    node.handle.end_processes();
    node.leave().await;
}

#[tokio::test]
async fn what_a_draining_node_suspends_goes_on_and_no_crash_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    for id in ["listens", "deaf"] {
        node.start(id, if id == "deaf" { "stubborn" } else { "sleep" }).await;
        node.register(id, 1).await;
    }
    let pids = ["listens", "deaf"].map(|id| node.pid(id, 1).expect("known"));
    node.drain(Drain::Suspend).await;
    node.idle().await;
    assert!(!pids.iter().any(|pid| runs(*pid)));
    for id in ["listens", "deaf"] {
        let life = node.until_instance(id, "handed back", |i| i.life.node().is_none()).await.life;
        assert_eq!((life.status(), life.crashes, life.attempt), (Status::Suspended, 0, Attempt(1)), "{id}");
        assert!(life.wake_at().expect("others take it") <= node.store.now().await.expect("a clock"), "{id}");
    }
    node.drain(Drain::No).await;
    for id in ["listens", "deaf"] {
        node.register(id, 2).await;
    }
    node.handle.end_processes();
    node.leave().await;
}

#[tokio::test]
async fn what_runs_when_a_node_starts_that_is_to_suspend_is_handed_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("adopted", "sleep").await;
    node.register("adopted", 1).await;
    let (data, pid) = (node.data.clone(), node.pid("adopted", 1).expect("known"));
    let id = node.handle.node.clone();
    node.leave().await;
    assert!(runs(pid));
    let store = super::open_store(&data, Duration::from_hours(1)).await;
    store.ask_drain(id.as_str(), Drain::Suspend).await.expect("asked while it is away");
    store.close().await;

    let node = Node::open(&data, options(16)).await;
    let life = node.until_instance("adopted", "handed back", |i| i.life.node().is_none()).await.life;
    assert_eq!((life.crashes, runs(pid)), (0, false));
    node.leave().await;
}

impl Node {
    /// Asks, and waits until the node has heard it.
    async fn drain(&self, drain: Drain) {
        self.store.ask_drain(self.handle.node.as_str(), drain).await.expect("asked");
        until("the node heard it", || (self.handle.condition.now().asked == drain).then_some(())).await;
    }
}
