//! One instance from its start to each of its endings.

use std::time::Duration;

use dormouse_core::{domain::instance::Status, domain::outcome::Outcome, store::Suspension};

use crate::db::{self, TestDb};

contract! { a_whole_life }

async fn a_whole_life(db: TestDb) {
    let running = db.running("a").await;
    let id = running.id().clone();
    assert_eq!(db.status(&id).await, Status::Running);
    assert!(db::stored(db.store.save(&running.session, db::step("one", "1")).await));
    assert!(!db::stored(db.store.save(&running.session, db::step("one", "2")).await));

    let due = db::START + Duration::from_mins(1);
    let slept = db.store.suspend(&running.session, db::sleep_until(due)).await.expect("suspends");
    assert_eq!(slept.0, Suspension::Suspended);
    assert_eq!(db.wake_at(&id).await, Some(due));
    assert!(db.claim(&running.lease, 10).await.is_empty());

    db.clock.set(due);
    let claim = db.claim_one(&running.lease).await;
    let again = db.register(&claim).await;
    assert_eq!(again.page.checkpoints.len(), 1);
    let outcome = db.store.end(&again.session, db::completed()).await.expect("ends");
    assert_eq!(outcome, Outcome::Completed);
    assert_eq!(
        db.timeline(&id).await,
        ["started", "claimed", "registered", "suspended", "claimed", "registered", "completed"]
    );
    let detail = db.store.instance_detail(&db::tenant(), &id).await.expect("a view");
    assert_eq!(detail.output.expect("an output").data.as_ref(), b"42");
    db.store.close().await;
}
