//! Images in a cluster: pushed to one node, launched by every one.

use dormouse_management_sdk::{ImageRef, StartInstance, Status};
use dormouse_tests::{
    machines::{Machine, Machines},
    wait,
};
use serde_json::json;
use sqlx::{Connection, PgConnection};

const NODES: [Machine; 2] = [Machine::Node(0), Machine::Node(1)];

fn sleeper(id: &str) -> StartInstance {
    let start = StartInstance::of("sleeper").id(id).input(&json!({"sleeps": 0, "pause_ms": 0}));
    start.expect("JSON")
}

/// A core replica and two nodes, of which only the first was sent the image and only the second
/// runs. What a test does to the database it does before.
async fn pushed_to_the_other_one(disturb: &'static str) -> Machines {
    let mut machines = Machines::up(1, 2).await;
    machines.controller(0).push("sleeper").await;
    machines.kill(NODES[0]);
    let mut connection = PgConnection::connect(machines.database_url()).await.expect("a database");
    sqlx::raw_sql(disturb).execute(&mut connection).await.expect("a statement");
    machines
}

async fn file_of(machines: &Machines, node: Machine) -> std::path::PathBuf {
    let image: ImageRef = "sleeper".parse().expect("a name");
    let image = machines.client(1).image(&image).await.expect("it has a name");
    machines.data_dir(node).join("images").join(image.digest)
}

/// Waits until the instance says why it cannot be launched.
async fn until_given_back(machines: &Machines, id: &str, why: &str) {
    let instance = machines.controller(1);
    let instance = instance
        .until(id, why, |instance| instance.waiting_for.as_deref().is_some_and(|what| what.contains(why)))
        .await;
    assert_eq!(instance.crashes, 0, "it is not the instance's fault");
    let events = machines.controller(1).events(id).await;
    assert!(events.iter().any(|event| event.kind == "launch_failed" && event.message.contains(why)));
}

#[tokio::test]
async fn a_node_launches_what_another_was_sent() {
    let machines = pushed_to_the_other_one("SELECT 1").await;
    machines.controller(1).start(sleeper("far")).await;
    machines.controller(1).until_ended("far", Status::Completed).await;
    let [sent, fetched] = [file_of(&machines, NODES[0]).await, file_of(&machines, NODES[1]).await];
    assert_eq!(std::fs::read(sent).expect("sent"), std::fs::read(fetched).expect("fetched"));
}

/// Release 0.1.0 kept an image on the node that it was sent to, and nowhere else.
#[tokio::test]
async fn bytes_that_are_on_one_node_only_get_into_the_database_when_it_is_back() {
    let mut machines = pushed_to_the_other_one("UPDATE image SET chunks = 0; DELETE FROM image_chunk").await;
    machines.controller(1).start(sleeper("lost")).await;
    until_given_back(&machines, "lost", "its bytes are not in the database").await;
    // Others are not held up by it.
    machines.controller(1).push("probe").await;
    machines.start(NODES[0]).await;
    machines.controller(1).until_ended("lost", Status::Completed).await;
    // Perhaps the node that is back has launched it, and stores the bytes only now.
    let mut connection = PgConnection::connect(machines.database_url()).await.expect("a database");
    wait::until("every image is in the database", async || {
        let missing = sqlx::query("SELECT 1 FROM image WHERE chunks = 0").fetch_all(&mut connection).await;
        match missing.map_err(|error| error.to_string())?.len() {
            0 => Ok(()),
            n => Err(format!("{n} are not")),
        }
    })
    .await;
    machines.kill(NODES[0]);
    machines.controller(1).start(sleeper("found")).await;
    machines.controller(1).until_ended("found", Status::Completed).await;
}

#[tokio::test]
async fn bytes_that_were_damaged_are_not_executed_and_are_replaced() {
    let damage = "UPDATE image_chunk SET data = overlay(data PLACING '\\x00112233' FROM 5000)";
    let mut machines = pushed_to_the_other_one(damage).await;
    machines.controller(1).start(sleeper("damaged")).await;
    until_given_back(&machines, "damaged", "not in the database").await;
    assert!(!file_of(&machines, NODES[1]).await.exists(), "what is damaged gets no name");
    // The node that has the file stores it again.
    machines.start(NODES[0]).await;
    machines.controller(1).until_ended("damaged", Status::Completed).await;
}

#[tokio::test]
async fn an_image_for_other_machines_is_given_back() {
    let machines = pushed_to_the_other_one("UPDATE image SET architecture = 'pdp11'").await;
    machines.controller(1).start(sleeper("foreign")).await;
    until_given_back(&machines, "foreign", "is built for pdp11").await;
}
