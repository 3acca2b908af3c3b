//! Connections of spare processes, and of processes that serve one instance after the other.

use std::time::Duration;

use dormouse_core::domain::id::{InstanceId, Tenant};
use dormouse_core::server::Options;
use dormouse_core::store::{Claim, NodeLease};
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{Completed, InstanceEvent, Standby, instance_event};
use dormouse_proto::standby::SpareKey;

use crate::core::{Client, Core, json, register, step};
use crate::db::{self, TestDb, tenant};

on_both! {
    a_spare_keeps_its_connection_and_registers_on_it,
    a_spare_proves_itself_by_its_nodes_newest_key,
    a_spare_that_connects_again_replaces_itself,
    a_spare_may_do_nothing_but_register,
    invariant_8_a_spare_serves_its_own_tenant_only,
    a_process_registers_again_once_its_instance_has_ended,
    a_late_push_says_for_which_registration_it_was,
}

const KEY: SpareKey = SpareKey([5; 32]);

/// The node's key is known; answers what its spare of that number shows.
async fn spare(core: &Core, number: u64) -> Standby {
    let lease = core.db.node("node-a").await;
    core.db.store.give_spare_key(&lease, KEY).await.expect("given");
    shown(&lease, &tenant(), number)
}

fn shown(lease: &NodeLease, tenant: &Tenant, number: u64) -> Standby {
    KEY.sign(lease.node.as_str(), lease.epoch, tenant.as_str(), number)
}

async fn stand_by(core: &Core, shown: Standby) -> Client {
    let client = core.connect().await;
    let answer = client.ask(Operation::Standby(shown)).await;
    assert!(matches!(answer, Outcome::StandingBy(_)), "{answer:?}");
    client
}

async fn claimed(core: &Core, id: &str) -> Claim {
    core.claimed(id).await
}

/// Two attempts under one lease.
async fn two(core: &Core) -> (Claim, Claim) {
    let lease = core.db.node("node-a").await;
    core.db.start("a").await;
    let a = core.db.claim_one(&lease).await;
    core.db.start("b").await;
    (a, core.db.claim_one(&lease).await)
}

async fn complete(client: &Client) {
    let completed = Completed { output: Some(json("null")) };
    let event = Some(instance_event::Event::Completed(completed));
    client.ask(Operation::Event(InstanceEvent { event })).await;
}

async fn a_spare_keeps_its_connection_and_registers_on_it(db: TestDb) {
    let core = Core::new(db);
    let client = stand_by(&core, spare(&core, 1).await).await;
    let claim = claimed(&core, "a").await;
    let registered = client.register(&claim).await;
    assert_eq!((registered.instance_id.as_str(), registered.session), ("a", 1));
    client.save(step("one", "1")).await;
    complete(&client).await;
}

async fn a_spare_proves_itself_by_its_nodes_newest_key(db: TestDb) {
    let core = Core::new(db);
    let good = spare(&core, 1).await;
    drop(stand_by(&core, good.clone()).await);
    // The lease is taken anew: what was signed under the one before counts no more.
    let lease = core.db.node("node-a").await;
    for old in [
        Standby { epoch: lease.epoch, ..good.clone() },
        Standby { number: 2, ..good.clone() },
        Standby { proof: vec![0; 32], ..good.clone() },
        Standby { node: "nobody".to_owned(), ..good.clone() },
    ] {
        let refused = core.connect().await.refused(Operation::Standby(old)).await;
        assert_eq!(refused.code, "UNAUTHENTICATED", "{}", refused.message);
    }
    let new = KEY.sign(lease.node.as_str(), lease.epoch, tenant().as_str(), 1);
    let other = SpareKey([6; 32]);
    core.db.store.give_spare_key(&lease, KEY).await.expect("given");
    drop(stand_by(&core, new).await);
    let refused = other.sign(lease.node.as_str(), lease.epoch, tenant().as_str(), 1);
    assert_eq!(core.connect().await.refused(Operation::Standby(refused)).await.code, "UNAUTHENTICATED");
}

async fn a_spare_that_connects_again_replaces_itself(db: TestDb) {
    let core = Core::new(db);
    let shown = spare(&core, 1).await;
    let first = stand_by(&core, shown.clone()).await;
    let other = stand_by(&core, spare_of_the_same_lease(&core, 2).await).await;
    let again = stand_by(&core, shown).await;
    assert!(first.ended().await.contains("connected again"));
    // The others stand by as before.
    let (a, b) = two(&core).await;
    again.register(&a).await;
    other.register(&b).await;
}

/// [`spare`] takes the lease again, which ends those before.
async fn spare_of_the_same_lease(core: &Core, number: u64) -> Standby {
    let nodes = core.db.store.nodes().await.expect("a list");
    let lease = nodes.into_iter().find(|node| node.lease.node.as_str() == "node-a").expect("listed").lease;
    shown(&lease, &tenant(), number)
}

async fn a_spare_may_do_nothing_but_register(db: TestDb) {
    let core = Core::new(db);
    let shown = spare(&core, 1).await;
    let client = stand_by(&core, shown.clone()).await;
    let refused = client.refused(Operation::Checkpoint(step("one", "1"))).await;
    assert_eq!(refused.code, "UNAUTHENTICATED");
    let again = client.refused(Operation::Standby(shown.clone())).await;
    assert_eq!(again.code, "FAILED_PRECONDITION");
    // What a spare shows is no attempt's token.
    let claim = claimed(&core, "a").await;
    let Operation::Register(mut forged) = register(&claim) else { panic!("a registration") };
    forged.token.clone_from(&shown.proof);
    assert_eq!(client.refused(Operation::Register(forged)).await.code, "UNAUTHENTICATED");
    client.register(&claim).await;
    assert_eq!(client.refused(Operation::Standby(shown)).await.code, "FAILED_PRECONDITION");
}

async fn invariant_8_a_spare_serves_its_own_tenant_only(db: TestDb) {
    let core = Core::new(db);
    let lease = core.db.node("node-a").await;
    core.db.store.give_spare_key(&lease, KEY).await.expect("given");
    let stranger = Tenant::parse("stranger").expect("a name");
    let client = stand_by(&core, shown(&lease, &stranger, 1)).await;
    core.db.start("a").await;
    let claim = core.db.claim_one(&lease).await;
    let refused = client.refused(register(&claim)).await;
    assert_eq!(refused.code, "PERMISSION_DENIED");
    // Refused before it had an effect: the attempt's own process is the first to register.
    assert_eq!(core.connect().await.register(&claim).await.session, 1);
}

async fn a_process_registers_again_once_its_instance_has_ended(db: TestDb) {
    let core = Core::new(db);
    let (a, b) = two(&core).await;
    let client = core.connect().await;
    client.register(&a).await;
    let refused = client.refused(register(&b)).await;
    assert_eq!(refused.code, "FAILED_PRECONDITION", "its instance has not ended");
    complete(&client).await;
    let registered = client.register(&b).await;
    assert_eq!(registered.instance_id, b.id.as_str());
    // It speaks for the second one alone.
    client.save(step("mine", "1")).await;
    assert!(checkpoints(&core, &a.id).await.is_empty());
    assert_eq!(checkpoints(&core, &b.id).await, ["mine"]);
    // A token is good for its own attempt: the first instance has ended.
    complete(&client).await;
    assert_eq!(client.refused(register(&a)).await.code, "FENCED");
}

async fn checkpoints(core: &Core, id: &InstanceId) -> Vec<String> {
    let page = core.db.store.checkpoints(&db::tenant(), id, 0, 100, false).await.expect("a page");
    page.checkpoints.iter().map(|stored| stored.operation.name.to_string()).collect()
}

async fn a_late_push_says_for_which_registration_it_was(db: TestDb) {
    let core = Core::with(db, |options: &mut Options| options.poll = Duration::from_hours(1));
    let (a, b) = two(&core).await;
    let mut client = core.connect().await;
    client.register(&a).await;
    core.db.send(&a.id, "for the first").await;
    let push = client.pushes.next().await.expect("a push");
    assert_eq!(push.registration, 0);
    complete(&client).await;
    let registered = client.register(&b).await;
    assert!(registered.inbox.expect("an inbox").unread.is_empty());
    core.db.send(&b.id, "for the second").await;
    loop {
        let push = client.pushes.next().await.expect("a push");
        let Some(Outcome::Inbox(inbox)) = push.outcome else { panic!("another push") };
        if push.registration == 1 {
            assert_eq!(inbox.unread.len(), 1);
            return;
        }
    }
}
