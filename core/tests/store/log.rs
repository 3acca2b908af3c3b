//! SQLite's log: it begins anew under writers that never pause, and does not grow with all that was ever written.

use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewCheckpoint, NewValue, Operation},
        id::Key,
        payload::{Encoding, Payload},
    },
    store::{Database, Saved},
};
use futures_util::future::join_all;

use crate::db::{self, Running, TestDb};

const WRITERS: usize = 4;
const SAVES: usize = 100;
const BYTES: usize = 256 << 10;

/// One after the other: with the others there is always something queued.
async fn save_many(db: &TestDb, running: Running) {
    for number in 0..SAVES {
        let payload =
            Payload { data: vec![7; BYTES].into(), encoding: Encoding::Raw, type_name: String::new() };
        let key = Key::parse(&number.to_string()).expect("a key");
        let checkpoint = NewCheckpoint {
            operation: Operation { name: db::name("part"), key, slot: 0 },
            kind: Kind::Checkpoint,
            value: NewValue::Payload(payload),
            note: String::new(),
        };
        let (saved, _) = db.store.save(&running.session, checkpoint).await.expect("saved");
        assert!(matches!(saved, Saved::Stored(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_begins_anew_while_everybody_writes() {
    let db = db::sqlite().await;
    let mut running = Vec::new();
    for writer in 0..WRITERS {
        running.push(db.running(&format!("w{writer}")).await);
    }
    join_all(running.into_iter().map(|running| save_many(&db, running))).await;

    let Database::Sqlite(path) = &db.options.database else { unreachable!("it is one") };
    let log = std::fs::metadata(path.with_extension("db-wal")).expect("a log").len();
    let written = (WRITERS * SAVES * BYTES) as u64;
    assert!(log < written / 2, "the log has {log} bytes of {written} that were written");
}
