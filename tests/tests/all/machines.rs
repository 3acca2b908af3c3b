//! Several core replicas and nodes on one database.

use dormouse_management_sdk::{StartInstance, Status};
use dormouse_tests::{
    machines::{Machine, Machines},
    tally::{self, Tally},
};
use serde_json::json;

/// Each sleep is longer than twice the idle time, so it suspends.
fn sleeper(id: &str, sleeps: u32, tally: &Tally) -> StartInstance {
    let start = StartInstance::of("sleeper").id(id).input(&json!({"sleeps": sleeps, "pause_ms": 5_000}));
    start.expect("JSON").env(tally::VARIABLE, tally.value())
}

/// The harness itself: machines are killed, stopped and started again, each alone.
#[tokio::test]
async fn machines_of_one_cluster_are_disturbed_one_by_one() {
    let mut machines = Machines::up(2, 2).await;
    machines.push("sleeper").await;
    let tally = Tally::in_dir(machines.scratch());
    for number in 0..4 {
        machines.controller(number % 2).start(sleeper(&format!("nap-{number}"), 2, &tally)).await;
    }
    machines.controller(0).until_suspended("nap-0").await;

    machines.freeze(Machine::Node(0));
    machines.thaw(Machine::Node(0));
    machines.kill(Machine::Core(0));
    machines.start(Machine::Core(0)).await;
    machines.terminate(Machine::Node(1));
    assert!(machines.until_ended(Machine::Node(1)).await.success());
    machines.start(Machine::Node(1)).await;

    for number in 0..4 {
        let id = format!("nap-{number}");
        machines.controller(1).until_ended(&id, Status::Completed).await;
        let attempts = machines.controller(0).attempts(&id).await;
        assert_eq!(tally.attempts()[&id].len(), usize::try_from(attempts).expect("few"), "{id}");
    }
}
