//! Rows that no release has written: whoever asks for one hears where it is damaged, and nobody
//! else notices.

use std::time::Duration;

use dormouse_core::store::{Database, Expired, ListFilter, StartRequest};
use dormouse_proto::code::{Code, Coded as _};
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use crate::db::{self, TestDb, tenant};

contract! {
    a_damaged_instance_says_where_and_the_list_shows_the_others,
    a_damaged_wake_holds_up_no_other,
    a_damaged_start_holds_up_no_other,
    a_damaged_row_of_a_node_holds_up_no_settling,
    a_damaged_time_limit_holds_up_no_other,
    a_damaged_row_leaves_its_process_its_sense,
}

/// What a person does to a table, without the store.
async fn edit(db: &TestDb, statement: &'static str) {
    let edited = match &db.options.database {
        Database::Sqlite(path) => {
            let url = format!("sqlite:{}", path.display());
            let mut conn = SqliteConnection::connect(&url).await.expect("it opens");
            sqlx::raw_sql(statement).execute(&mut conn).await.expect("it is edited").rows_affected()
        }
        Database::Postgres(url) => {
            let mut conn = PgConnection::connect(url).await.expect("it answers");
            sqlx::raw_sql(statement).execute(&mut conn).await.expect("it is edited").rows_affected()
        }
    };
    assert_eq!(edited, 1, "{statement}");
}

const DAMAGE: &str = "UPDATE instance SET image_digest = 'no digest' WHERE id = 'damaged'";

async fn a_damaged_instance_says_where_and_the_list_shows_the_others(db: TestDb) {
    for id in ["one", "damaged", "two"] {
        db.start(id).await;
    }
    edit(&db, DAMAGE).await;
    let error = db.store.instance(&tenant(), &db::id("damaged")).await.expect_err("damaged");
    assert_eq!(error.code(), Code::Internal);
    let text = error.to_string();
    for part in ["table instance", "key Some(2)", "column image_digest", "no digest", "backup"] {
        assert!(text.contains(part), "{text} does not say {part}");
    }
    let (mut seen, mut told, mut before) = (Vec::new(), Vec::new(), None);
    loop {
        let filter = ListFilter { before, limit: 1, ..ListFilter::default() };
        let page = db.store.list(&tenant(), filter).await.expect("a page");
        seen.extend(page.instances.iter().map(|instance| instance.id.to_string()));
        told.extend(page.unreadable);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["two", "one"]);
    assert_eq!(told, [text]);
    assert_eq!(db.store.count(&tenant(), None).await.expect("counts")["PENDING"], 3);
}

async fn a_damaged_wake_holds_up_no_other(db: TestDb) {
    let lease = db.node("node-a").await;
    for id in ["damaged", "other"] {
        db.start(id).await;
    }
    edit(&db, DAMAGE).await;
    // It is the first in the queue, and takes the only place once.
    assert!(db.claim(&lease, 1).await.is_empty());
    assert_eq!(db.claim_one(&lease).await.id, db::id("other"));
    let idle = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a claim");
    assert!(idle.next_due_in > Duration::from_secs(1), "it is looked at again and again");
    edit(&db, "UPDATE instance SET image_digest = (SELECT digest FROM image) WHERE id = 'damaged'").await;
    db.advance(Duration::from_mins(5));
    let claims = db.claim(&lease, 10).await;
    assert!(claims.iter().any(|claim| claim.id == db::id("damaged")), "what was repaired is launched");
}

async fn a_damaged_start_holds_up_no_other(db: TestDb) {
    let lease = db.node("node-a").await;
    for id in ["damaged", "other"] {
        db.start(id).await;
    }
    edit(&db, "UPDATE instance_start SET env = '{' WHERE instance = 1").await;
    assert_eq!(db.claim_one(&lease).await.id, db::id("other"));
}

async fn a_damaged_row_of_a_node_holds_up_no_settling(db: TestDb) {
    let lease = db.node("node-a").await;
    for id in ["damaged", "other"] {
        db.start(id).await;
    }
    for claim in db.claim(&lease, 10).await {
        db.register(&claim).await;
    }
    edit(&db, "UPDATE instance SET tenant = '' WHERE id = 'damaged'").await;
    let returned = db.store.settle(&lease, &[]).await.expect("it settles");
    assert_eq!(returned.len(), 1, "the other is given back");
}

async fn a_damaged_time_limit_holds_up_no_other(db: TestDb) {
    for (id, limit) in [("damaged", 1), ("other", 2), ("later", 100)] {
        let limit = Some(Duration::from_secs(limit));
        db.store.start(StartRequest { limit, ..db::request(id) }).await.expect("a start");
    }
    edit(&db, "UPDATE instance SET tenant = '' WHERE id = 'damaged'").await;
    db.advance(Duration::from_secs(10));
    let Expired { ended, next_in } = db.store.expire().await.expect("it looks");
    assert_eq!(ended.len(), 1, "the other's time has passed");
    assert_eq!(next_in, Duration::from_secs(90), "the next one that can be ended");
}

async fn a_damaged_row_leaves_its_process_its_sense(db: TestDb) {
    let running = db.running("damaged").await;
    edit(&db, "UPDATE instance SET node = '' WHERE id = 'damaged'").await;
    // A checkpoint needs no more of the row than attempt and session.
    assert!(db::stored(db.store.save(&running.session, db::step("a", "1")).await));
    let error = db.store.end(&running.session, db::completed()).await.expect_err("damaged");
    assert_eq!(error.code(), Code::Internal, "{error}");
    assert!(error.to_string().contains("column node"), "{error}");
    edit(&db, "UPDATE instance SET node = 'node-a' WHERE id = 'damaged'").await;
    db.store.end(&running.session, db::completed()).await.expect("its session goes on");
}
