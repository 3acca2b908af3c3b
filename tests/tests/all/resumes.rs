//! A launch of an instance that has saved very much: it passes all of it, and holds it once.

use std::time::Duration;

use dormouse_management_sdk::{ListInstances, Status};
use dormouse_tests::{
    cluster::{Cluster, Database},
    load::{Load, fill},
};
use serde_json::Value;

const STEPS: u64 = 100_000;
/// Of each result.
const BYTES: u64 = 1000;
const IMAGE: &str = "dormouse-workload";

on_both! { a_hundred_thousand_steps_are_passed_and_held_once }

async fn a_hundred_thousand_steps_are_passed_and_held_once(database: Database) {
    let mut cluster = Cluster::up(database).await;
    cluster.push(IMAGE).await;
    cluster.kill_services();
    let load = Load {
        sleeping: 1,
        checkpoints: STEPS,
        checkpoint_bytes: BYTES,
        due_in: Duration::ZERO,
        image: Some((IMAGE.to_owned(), "1".to_owned())),
        workflow: "loaded".to_owned(),
        ..Load::default()
    };
    let file = cluster.data_dir().join("dormouse.db");
    fill(cluster.database_url().unwrap_or(file.to_str().expect("UTF-8")), &load).await.expect("it is filled");
    cluster.start_services().await;

    let all = cluster.client().instances(ListInstances::default()).await.expect("listed").instances;
    let [instance] = all.as_slice() else { panic!("one was loaded: {all:?}") };
    let ended = cluster.until_ended(&instance.id, Status::Completed).await;
    let passed: Value = ended.output.expect("it has one").decode().expect("JSON");
    assert_eq!(passed["steps"], STEPS, "a step that was done is never run again");
    let peak = passed["peak_bytes"].as_u64().expect("a number");
    assert!(peak < 2 * STEPS * BYTES, "its process held {peak} bytes at once, of {} stored", STEPS * BYTES);
    assert_eq!(cluster.attempts(&instance.id).await, 2);
}
