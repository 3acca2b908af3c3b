//! Leaving in order, and coming back.

use dormouse_proto::call::CallError;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use tokio::task::JoinSet;

use crate::core::{Core, soon, step};
use crate::db::TestDb;

on_both! {
    a_shutdown_answers_what_is_in_flight_and_says_goodbye,
    a_core_comes_back_at_its_address,
    connections_beyond_the_limit_are_refused,
}

/// Each save is either answered, and then stored, or lost, and then the SDK repeats it.
async fn a_shutdown_answers_what_is_in_flight_and_says_goodbye(db: TestDb) {
    let mut core = Core::new(db);
    let (client, claim) = core.running("a").await;
    let silent = core.connect().await;
    let mut saves = JoinSet::new();
    for n in 0..200 {
        let caller = client.caller.clone();
        saves.spawn(async move {
            let name = format!("{n}");
            let answer = caller.call(Operation::Checkpoint(step(&name, "1")).into()).await;
            (name, answer)
        });
    }
    let mut acknowledged = Vec::new();
    let mut stopped = false;
    while let Some(saved) = soon("the answers", saves.join_next()).await {
        match saved.expect("no panic") {
            (name, Ok(answer)) => {
                assert!(matches!(answer.outcome, Some(Outcome::Checkpoint(_))), "{answer:?}");
                acknowledged.push(name);
            }
            (_, Err(CallError::Lost { .. })) => assert!(stopped),
            (name, Err(error)) => panic!("save {name}: {error}"),
        }
        if acknowledged.len() == 20 && !stopped {
            stopped = true;
            core.shutdown.cancel();
        }
    }
    assert!(client.ended().await.contains("core is shutting down"));
    assert!(silent.ended().await.contains("core is shutting down"));
    core.ended().await;
    let tenant = crate::db::tenant();
    let stored = core.db.store.checkpoints(&tenant, &claim.id, 0, 1000, false).await.expect("a page");
    for name in acknowledged {
        assert!(
            stored.checkpoints.iter().any(|stored| stored.operation.name.as_str() == name),
            "{name} is lost"
        );
    }
}

async fn a_core_comes_back_at_its_address(db: TestDb) {
    let mut core = Core::new(db);
    let (client, claim) = core.running("a").await;
    client.save(step("one", "1")).await;
    let address = core.handle.address();
    core.shutdown.cancel();
    core.ended().await;
    core.restart();
    assert_eq!(core.handle.address(), address);
    let registered = core.connect().await.register(&claim).await;
    assert_eq!((registered.session, registered.checkpoints.len()), (2, 1));
}

async fn connections_beyond_the_limit_are_refused(db: TestDb) {
    let core = Core::with(db, |options| options.places.connections = 2);
    let (first, _claim) = core.running("a").await;
    let second = core.connect().await;
    let refused = core.try_connect_to(core.handle.address()).await;
    assert!(refused.as_ref().is_err_and(|error| error.contains("refused")), "{:?}", refused.err());
    first.caller.close("done");
    soon("the first to be gone", async {
        while core.handle.sessions() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(second);
    soon("a place to be free", async { while core.try_connect_to(core.handle.address()).await.is_err() {} })
        .await;
}
