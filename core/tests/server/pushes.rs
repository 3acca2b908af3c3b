//! Hearing of signals, cancels, pauses and endings, without asking. The slow poll is switched off, unless said.

use std::time::Duration;

use dormouse_core::domain::instance::Status;
use dormouse_core::domain::outcome::Outcome as Ending;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{Cancel, checkpoint};

use crate::core::{Core, checkpoint};
use crate::db::{self, TestDb, tenant};

on_both! {
    every_news_is_pushed_as_the_whole_truth,
    news_reach_the_core_that_holds_the_session,
    a_stopped_instance_is_told_that_it_is_fenced,
    an_instance_past_its_time_limit_is_told_that_it_is_fenced,
    the_slow_poll_finds_what_no_notice_told,
}

async fn every_news_is_pushed_as_the_whole_truth(db: TestDb) {
    let core = Core::new(db);
    let (mut client, claim) = core.running("a").await;
    let (store, tenant) = (&core.db.store, tenant());

    core.db.send(&claim.id, "first").await;
    assert_eq!(client.inbox().await.unread.len(), 1);
    core.db.send(&claim.id, "second").await;
    let inbox = client.inbox().await;
    let names: Vec<&str> = inbox.unread.iter().map(|unread| unread.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);

    store.pause(&tenant, &claim.id).await.expect("a pause");
    let inbox = client.inbox().await;
    assert!(inbox.paused && inbox.unread.len() == 2);
    store.resume(&tenant, &claim.id).await.expect("a resume");
    assert!(!client.inbox().await.paused);
    store.cancel(&tenant, &claim.id).await.expect("a cancel");
    assert_eq!(client.inbox().await.cancel(), Cancel::Asked);
    client.save(checkpoint("here", "cancelled", checkpoint::Value::FeelCancel(true))).await;
    assert_eq!(client.inbox().await.cancel(), Cancel::Felt);
}

async fn news_reach_the_core_that_holds_the_session(db: TestDb) {
    let mut core = Core::new(db);
    let replica = core.replica().await;
    let claim = core.claimed("a").await;
    let mut client = core.connect_to(replica.address()).await;
    client.register(&claim).await;
    core.db.send(&claim.id, "news").await;
    assert_eq!(client.inbox().await.unread.len(), 1);
}

async fn a_stopped_instance_is_told_that_it_is_fenced(db: TestDb) {
    let core = Core::new(db);
    let (mut client, claim) = core.running("a").await;
    core.db.store.stop(&tenant(), &claim.id).await.expect("a stop");
    assert_fenced(client.pushed().await);
    assert!(client.ended().await.contains("has ended"));
    assert_eq!(core.db.status(&claim.id).await, Status::Ended(Ending::Cancelled));
}

async fn an_instance_past_its_time_limit_is_told_that_it_is_fenced(db: TestDb) {
    let core = Core::new(db);
    let lease = core.db.node("node-a").await;
    let limit = Some(Duration::from_mins(1));
    core.db
        .store
        .start(dormouse_core::store::StartRequest { limit, ..db::request("a") })
        .await
        .expect("a start");
    let claim = core.db.claim_one(&lease).await;
    let mut client = core.connect().await;
    client.register(&claim).await;
    core.db.advance(Duration::from_mins(2));
    core.db.store.expire().await.expect("a look at the deadlines");
    assert_fenced(client.pushed().await);
}

async fn the_slow_poll_finds_what_no_notice_told(db: TestDb) {
    let core = Core::with(db, |options| options.poll = Duration::from_millis(20));
    let (mut client, claim) = core.running("a").await;
    core.db.send(&claim.id, "news").await;
    assert_eq!(client.inbox().await.unread.len(), 1);
    // Taking a signal is no notice; the inbox without it is found by looking.
    client.save(checkpoint("wait", "signal", checkpoint::Value::TakeSignal("news".to_owned()))).await;
    assert_eq!(client.inbox().await.unread, []);
}

fn assert_fenced(push: Outcome) {
    let Outcome::Error(error) = push else { panic!("core pushed {push:?}") };
    assert_eq!(error.code, "FENCED");
    assert!(!error.retryable);
}
