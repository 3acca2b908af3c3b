//! Thousands of wakes on two nodes and two core replicas, one of each killed in the middle and started
//! again later: each wake starts exactly one attempt, and all instances end (invariants 4 and 7).
//!
//! Which attempt was started for what is read from the rows, which attempts ran from lines that the
//! workflow writes outside. An attempt more than there were wakes must follow one of the killed node's.

use std::collections::BTreeMap;

use dormouse_management_sdk::StartInstance;
use dormouse_tests::{
    fault,
    machines::{Machine, Machines},
    tally::{self, Tally},
    wait,
};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, Row as _};

/// Sleeps of each instance: with its start so many wakes and one.
const SLEEPS: u32 = 10;
/// Idle time before a process suspends, and how long it sleeps: much longer, so that a busy machine
/// does not find the sleep over before it suspends.
const IDLE: &str = "50ms";
const PAUSE_MS: u64 = 2_000;
/// Processes of one node at a time: so few that a process gets its turn of two processors soon.
const SLOTS: &str = "12";

#[tokio::test]
async fn invariant_4_each_of_thousands_of_wakes_starts_one_attempt_whoever_is_killed() {
    let instances = if fault::is_long() { 2_000 } else { 200 };
    let mut machines = Machines::none().await;
    machines.add(2, 2);
    for node in [Machine::Node(0), Machine::Node(1)] {
        machines.set_arguments(node, &["--slots", SLOTS, "--idle-before-suspend", IDLE]);
    }
    machines.start_all().await;
    machines.push("sleeper").await;
    let tally = Tally::in_dir(machines.scratch());
    start(&machines, instances, &tally).await;

    let quarter = instances * usize::try_from(SLEEPS).expect("small") / 4;
    until_ran(&tally, quarter).await;
    machines.kill(Machine::Core(0));
    machines.kill(Machine::Node(0));
    let killed = node_id(&machines, Machine::Node(0));
    until_ran(&tally, 2 * quarter).await;
    machines.start(Machine::Core(0)).await;
    machines.start(Machine::Node(0)).await;

    let mut rows = PgConnection::connect(machines.database_url()).await.expect("the database answers");
    until_all_ended(&mut rows, instances).await;
    let attempts = attempts(&mut rows).await;
    let suspensions = suspensions(&mut rows).await;
    let mut ran = tally.attempts();
    for (id, attempts) in &attempts {
        let suspensions = suspensions.get(id).copied().unwrap_or(0);
        check(id, attempts, suspensions, &killed, &ran.remove(id).unwrap_or_default());
    }
    assert_eq!((attempts.len(), ran.len()), (instances, 0), "others ran than were started");
    let wakes = instances + suspensions.values().sum::<usize>();
    eprintln!("{wakes} wakes, {} attempts", attempts.values().map(Vec::len).sum::<usize>());
    assert!(wakes >= instances * 10, "only {wakes} wakes: the sleeps are too short for this machine");
}

async fn start(machines: &Machines, instances: usize, tally: &Tally) {
    let input = json!({"sleeps": SLEEPS, "pause_ms": PAUSE_MS});
    let starts = (0..instances).map(|number| {
        let start = StartInstance::of("sleeper").id(format!("nap-{number:05}")).input(&input).expect("JSON");
        let start = start.env(tally::VARIABLE, tally.value());
        async move { drop(machines.controller(number % 2).start(start).await) }
    });
    let starts: Vec<_> = starts.collect();
    let mut starts = starts.into_iter();
    loop {
        let some: Vec<_> = starts.by_ref().take(50).collect();
        if some.is_empty() {
            return;
        }
        join_all(some).await;
    }
}

/// Waits until so many attempts have run, as long as there are more and more of them.
async fn until_ran(tally: &Tally, count: usize) {
    let mut seen = 0;
    while seen < count {
        seen = wait::until("another attempt has run", async || match tally.count() {
            more if more > seen => Ok(more),
            same => Err(format!("{same} have, of {count}")),
        })
        .await;
    }
}

/// Waits until every instance has ended, as long as there are more and more of them or more events.
async fn until_all_ended(rows: &mut PgConnection, instances: usize) {
    let (mut ended, mut events) = (0, 0);
    while ended < instances {
        (ended, events) = wait::until("something has happened to an instance", async || {
            let row = sqlx::query(
                "SELECT (SELECT COUNT(*) FROM instance WHERE state = 'COMPLETED'), (SELECT COUNT(*) FROM event)",
            );
            let row = row.fetch_one(&mut *rows).await.map_err(|error| error.to_string())?;
            let now = (number(row.get(0)), number(row.get(1)));
            if now == (ended, events) { Err(format!("{ended} of {instances} have completed")) } else { Ok(now) }
        })
        .await;
    }
}

fn number(count: i64) -> usize {
    usize::try_from(count).expect("a count")
}

/// An attempt as its row has it.
struct Attempt {
    number: u32,
    reason: String,
    node: String,
}

async fn attempts(rows: &mut PgConnection) -> BTreeMap<String, Vec<Attempt>> {
    let found = sqlx::query(
        "SELECT i.id, a.attempt, a.wake_reason, a.node FROM attempt a JOIN instance i ON i.key = a.instance
          ORDER BY i.id, a.attempt",
    );
    let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    for row in found.fetch_all(rows).await.expect("the rows") {
        let number = u32::try_from(row.get::<i64, _>(1)).expect("small");
        let attempt = Attempt { number, reason: row.get(2), node: row.get(3) };
        attempts.entry(row.get(0)).or_default().push(attempt);
    }
    attempts
}

async fn suspensions(rows: &mut PgConnection) -> BTreeMap<String, usize> {
    let found = sqlx::query(
        "SELECT i.id, COUNT(*) FROM event e JOIN instance i ON i.key = e.instance
          WHERE e.kind = 'suspended' GROUP BY i.id",
    );
    let found = found.fetch_all(rows).await.expect("the rows");
    found.iter().map(|row| (row.get(0), number(row.get(1)))).collect()
}

fn node_id(machines: &Machines, node: Machine) -> String {
    let text = std::fs::read_to_string(machines.data_dir(node).join("node")).expect("a node has an id");
    text.trim().to_owned()
}

fn check(id: &str, attempts: &[Attempt], suspensions: usize, killed: &str, ran: &[u32]) {
    let story = || {
        let said = attempts.iter().map(|a| format!("{} {} on {}", a.number, a.reason, a.node));
        format!("{id}, {suspensions} suspensions, ran {ran:?}: {:#?}", said.collect::<Vec<_>>())
    };
    let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (1..=u32::try_from(attempts.len()).expect("few")).collect::<Vec<_>>(), "{}", story());
    let of = |reason: &str| attempts.iter().filter(|attempt| attempt.reason == reason).count();
    assert_eq!((of("start"), of("due")), (1, suspensions), "one attempt for each wake; {}", story());

    let mut sorted = ran.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), ran.len(), "an attempt ran twice; {}", story());
    for (at, attempt) in attempts.iter().enumerate() {
        let again = attempts.get(at + 1).is_some_and(|next| next.reason != "due");
        if again {
            assert_eq!(attempt.node, killed, "nobody killed that node; {}", story());
        } else {
            assert!(sorted.contains(&attempt.number), "{} never ran; {}", attempt.number, story());
        }
    }
    assert!(sorted.iter().all(|ran| numbers.contains(ran)), "it ran without a row; {}", story());
}
