//! Several cores on one database: the list of them, and sessions that are handed over.

use std::time::Duration;

use dormouse_core::store::{Database, Replica};
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use sqlx::{Connection as _, Executor as _};
use tokio::task::JoinSet;

use crate::core::{Core, soon, step};
use crate::db::{self, TestDb};

on_both! {
    a_core_is_in_the_list_from_its_start_to_its_end,
    a_session_goes_on_at_another_core_with_all_that_was_saved,
}

/// Looks at the list until it is as wanted.
async fn until_listed(db: &TestDb, what: &str, wanted: impl Fn(&[Replica]) -> bool) -> Vec<Replica> {
    soon(what, async {
        loop {
            let replicas = db.store.replicas().await.expect("a list");
            if wanted(&replicas) {
                return replicas;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn a_core_is_in_the_list_from_its_start_to_its_end(db: TestDb) {
    let mut core = Core::new(db);
    let first = until_listed(&core.db, "the core in the list", |all| all.len() == 1).await.remove(0);
    assert_eq!(first.address, core.handle.address().to_string());
    assert!(!first.report.draining && !first.name.is_empty() && !first.version.is_empty());

    core.shutdown.cancel();
    core.ended().await;
    until_listed(&core.db, "an empty list", <[Replica]>::is_empty).await;

    core.restart();
    let again = until_listed(&core.db, "the core in the list", |all| all.len() == 1).await.remove(0);
    assert_eq!(again.lease.replica, first.lease.replica, "its id is kept in its folder");
}

/// What the SDK does when it is told to connect elsewhere, by hand.
async fn a_session_goes_on_at_another_core_with_all_that_was_saved(db: TestDb) {
    let mut core = Core::new(db);
    let replica = core.replica().await;
    let (client, claim) = core.running("a").await;
    client.save(step("one", "1")).await;
    core.shutdown.cancel();
    assert!(client.ended().await.contains("core is shutting down"));
    core.one_ended().await;

    let client = core.connect_to(replica.address()).await;
    let registered = client.register(&claim).await;
    assert_eq!((registered.session, registered.checkpoints.len()), (2, 1));
    // The answer to it may have been lost: it is asked again, and answered the same way.
    assert!(client.save(step("one", "1")).await.existed);
    client.save(step("two", "2")).await;
    let left = core.db.store.replicas().await.expect("a list");
    assert_eq!(left.iter().map(|r| r.address.clone()).collect::<Vec<_>>(), [replica.address().to_string()]);
}

/// Waits until somebody waits for a lock that this connection holds.
async fn until_it_blocks(url: &str, holder: &mut sqlx::PgConnection) {
    const BLOCKED: &str = "SELECT COUNT(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(holder).await.expect("its number");
    let mut looker = sqlx::PgConnection::connect(url).await.expect("a connection");
    soon("a request that waits for the row", async {
        loop {
            let blocked: i64 =
                sqlx::query_scalar(BLOCKED).bind(pid).fetch_one(&mut looker).await.expect("a count");
            if blocked > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A core that drains says so first, refuses who comes, and gives what is in flight its answer.
#[tokio::test]
async fn a_draining_core_finishes_what_was_asked_of_it() {
    let mut core = Core::new(db::postgres().await);
    let (client, claim) = core.running("a").await;
    until_listed(&core.db, "the core in the list", |all| all.len() == 1).await;

    // Somebody holds the instance's row, so that a request stays in flight.
    let Database::Postgres(url) = &core.db.options.database else { panic!("not PostgreSQL") };
    let mut holder = sqlx::PgConnection::connect(url).await.expect("a connection");
    holder.execute("BEGIN").await.expect("a transaction");
    holder.execute("SELECT key FROM instance FOR UPDATE").await.expect("locked");
    let mut saving = JoinSet::new();
    let caller = client.caller.clone();
    saving.spawn(async move { caller.call(Operation::Checkpoint(step("late", "1")).into()).await });
    until_it_blocks(url, &mut holder).await;

    core.shutdown.cancel();
    let draining = until_listed(&core.db, "a draining core", |all| all.iter().all(|r| r.report.draining));
    assert_eq!(draining.await.len(), 1);
    let refused = soon("a refusal", async {
        loop {
            match core.try_connect_to(core.handle.address()).await {
                // It came before the door was shut: it is sent away as all others.
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return error,
            }
        }
    });
    assert!(refused.await.contains("refused"), "who comes is told at once");

    holder.execute("COMMIT").await.expect("released");
    let answer = soon("the answer", saving.join_next()).await.expect("one").expect("no panic");
    let answer = answer.expect("what was in flight is answered").outcome;
    assert!(matches!(answer, Some(Outcome::Checkpoint(_))), "{answer:?}");
    core.ended().await;
    assert_eq!(core.db.store.replicas().await.expect("a list"), []);
    let stored = core.db.store.checkpoints(&db::tenant(), &claim.id, 0, 10, false).await.expect("a page");
    assert_eq!(stored.checkpoints.len(), 1);
}
