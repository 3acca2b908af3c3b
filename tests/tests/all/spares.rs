//! Processes that stand ready, and processes that serve one instance after the other: what each instance finds,
//! what nothing of it reaches the next, and kill -9 at every point of a hand-over.

use std::{collections::HashSet, fs};

use dormouse_management_sdk::{Code, ImageOptions, ImageRef, Payload, StartInstance, Status};
use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    fault, wait,
};
use serde::Deserialize;

on_both! {
    a_spare_takes_an_attempt_and_is_replaced,
    a_process_serves_one_instance_after_the_other,
    nothing_reaches_the_next_instance,
    what_a_workflow_leaves_behind_ends_its_process,
    a_spare_that_died_costs_no_crash,
    killed_at_each_point_of_a_hand_over,
    a_killed_core_costs_no_attempt,
    nobody_stands_by_unasked,
}

/// What the program `guest` found.
#[derive(Debug, Deserialize)]
struct Seen {
    pid: i32,
    instance: String,
    attempt: u32,
    named: Option<String>,
    left_by_another: Option<String>,
    directory: String,
    tmpdir: String,
    files: usize,
    word: Option<String>,
    before: u32,
}

fn guest() -> ImageRef {
    "guest".parse().expect("a name")
}

async fn set(cluster: &Cluster, spares: u32, reuse: u32) {
    let options = ImageOptions { spares: Some(spares), reuse: Some(reuse) };
    let set = cluster.client().set_image(&guest(), options).await.expect("the SDK can");
    assert_eq!((set.spares, set.reuse), (spares, reuse));
}

fn start_of(id: &str, leave: &str) -> StartInstance {
    let input = Payload::json(&serde_json::json!({ "leave": leave })).expect("JSON");
    StartInstance::of("guest").id(id).payload(input)
}

async fn seen(cluster: &Cluster, id: &str) -> Seen {
    let ended = cluster.until_ended(id, Status::Completed).await;
    serde_json::from_slice(&ended.output.expect("an output").data).expect("what it saw")
}

async fn run(cluster: &Cluster, id: &str, leave: &str) -> Seen {
    cluster.start(start_of(id, leave)).await;
    seen(cluster, id).await
}

/// The processes that are recorded as spares.
fn spares(cluster: &Cluster) -> HashSet<i32> {
    let folder = fs::read_dir(cluster.data_dir().join("spares")).expect("the folder");
    let record = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("process.json")).ok()?;
        let record: serde_json::Value = serde_json::from_str(&text).ok()?;
        i32::try_from(record["pid"].as_i64()?).ok()
    };
    folder.filter_map(|entry| record(entry.ok()?)).collect()
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn until_spares(cluster: &Cluster, count: usize) -> HashSet<i32> {
    wait::until(&format!("{count} spares"), async || {
        let spares = spares(cluster);
        let all_run = spares.iter().all(|pid| runs(*pid));
        if spares.len() == count && all_run { Ok(spares) } else { Err(format!("{spares:?}")) }
    })
    .await
}

/// What the first attempt wrote, once it is put away.
async fn output(cluster: &Cluster, id: &str) -> String {
    let path = cluster.data_dir().join(format!("outputs/{id}/1.stdout"));
    wait::until(&format!("the output of {id} is kept"), async || fs::read_to_string(&path)).await
}

/// Starts instances until a spare served one: the first ones may come before it stands by.
async fn until_served_by_a_spare(cluster: &Cluster, name: &str) -> Seen {
    let mut n = 0;
    loop {
        let ready = until_spares(cluster, 1).await;
        n += 1;
        let seen = run(cluster, &format!("{name}-{n}"), "nothing").await;
        if ready.contains(&seen.pid) {
            return seen;
        }
    }
}

async fn a_spare_takes_an_attempt_and_is_replaced(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 1, 1).await;
    let first = until_served_by_a_spare(&cluster, "first").await;
    assert_eq!((first.attempt, first.before, first.files), (1, 0, 0));
    let attempts = cluster.data_dir().join("attempts");
    assert!(first.directory.starts_with(&*attempts.to_string_lossy()), "{}", first.directory);
    let second = until_served_by_a_spare(&cluster, "second").await;
    assert_ne!(first.pid, second.pid, "a spare served two attempts");
    assert_eq!(second.before, 0);
    // What it wrote is its instance's.
    assert_eq!(output(&cluster, &second.instance).await, format!("{} was here\n", second.instance));
}

async fn a_process_serves_one_instance_after_the_other(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 0, 3).await;
    let first = run(&cluster, "a-1", "nothing").await;
    until_spares(&cluster, 1).await;
    let second = run(&cluster, "a-2", "task").await;
    until_spares(&cluster, 1).await;
    let third = run(&cluster, "a-3", "nothing").await;
    assert_eq!([first.pid, second.pid], [second.pid, third.pid], "one process serves three");
    assert_eq!([first.before, second.before, third.before], [0, 1, 2]);
    wait::until("it has ended: three is enough", async || if runs(first.pid) { Err("runs") } else { Ok(()) })
        .await;
    let fourth = run(&cluster, "a-4", "nothing").await;
    assert!(fourth.pid != first.pid && fourth.before == 0);
}

/// Token, identity, environment, directories, signals, cancellation, output files, limits: each instance has its own.
async fn nothing_reaches_the_next_instance(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 0, 100).await;
    cluster.start(start_of("first", "wait").env("NAMED", "first").env("LEFT", "by the first")).await;
    cluster.until("first", "runs", |i| i.status == Status::Running).await;
    let client = cluster.client();
    // One that it never reads, and a cancellation that it feels.
    client.signal("first", "other", None).await.expect("sent");
    client.cancel("first").await.expect("asked");
    cluster.until_ended("first", Status::Cancelled).await;
    let spare = until_spares(&cluster, 1).await;

    cluster.start(start_of("second", "wait").env("NAMED", "second")).await;
    cluster.until("second", "runs", |i| i.status == Status::Running).await;
    client.signal("second", "go", Some(Payload::json("go").expect("JSON"))).await.expect("sent");
    let seen = seen(&cluster, "second").await;
    assert!(spare.contains(&seen.pid), "another process: {seen:?}");
    assert_eq!((seen.instance.as_str(), seen.attempt), ("second", 1));
    assert_eq!((seen.named.as_deref(), seen.left_by_another), (Some("second"), None));
    assert_eq!((seen.word, seen.files), (None, 0));
    for path in [&seen.directory, &seen.tmpdir] {
        assert!(path.contains("/second.1/"), "{path}");
    }
    for id in ["first", "second"] {
        assert_eq!(output(&cluster, id).await, format!("{id} was here\n"));
    }
    // Each attempt is told for itself.
    let attempts = client.attempts("second").await.expect("listed");
    assert_eq!(attempts.len(), 1);
}

async fn what_a_workflow_leaves_behind_ends_its_process(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 0, 100).await;
    for leave in ["thread", "file", "child", "orphan", "umask", "directory"] {
        let left = run(&cluster, &format!("{leave}-a"), leave).await;
        wait::until(&format!("{leave}: its process has ended"), async || {
            if runs(left.pid) { Err("it runs") } else { Ok(()) }
        })
        .await;
        let next = run(&cluster, &format!("{leave}-b"), "nothing").await;
        assert!(next.pid != left.pid && next.before == 0, "{leave}: {next:?}");
        let spare = until_spares(&cluster, 1).await;
        assert!(spare.contains(&next.pid), "{leave}: the next one is used again");
        // The next round begins with a process of its own.
        set(&cluster, 0, 1).await;
        until_spares(&cluster, 0).await;
        set(&cluster, 0, 100).await;
    }
}

async fn a_spare_that_died_costs_no_crash(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 2, 1).await;
    for n in 0..10 {
        let ready = until_spares(&cluster, 2).await;
        let id = format!("killed-{n}");
        // Before, while and after the claim.
        let start = cluster.start(start_of(&id, "nothing"));
        let kill = async {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
            for pid in &ready {
                fault::kill_number(*pid);
            }
        };
        tokio::join!(start, kill);
        seen_or_crashed(&cluster, &id).await;
    }
}

/// One that was killed as its instance's process is a crash like any other; one that was killed before is none.
async fn seen_or_crashed(cluster: &Cluster, id: &str) {
    let seen = seen(cluster, id).await;
    let crashed = cluster.events(id).await.iter().filter(|event| event.kind == "crashed").count();
    assert_eq!(u32::try_from(crashed).expect("few") + 1, seen.attempt, "{id}: a lost spare is no attempt");
}

async fn killed_at_each_point_of_a_hand_over(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    cluster.push("guest").await;
    set(&cluster, 2, 5).await;
    let tally = cluster.scratch().join("tally");
    for point in [
        "spare.spawned",
        "spare.recorded",
        "spare.named",
        "spare.moved",
        "spare.document_sent",
        "spare.refit_recorded",
        "supervisor.exit_seen",
        "supervisor.exit_told",
        "supervisor.put_away",
    ] {
        cluster.kill(Part::Environment);
        cluster.set_variable(fault::SERVICE_VARIABLE, point);
        cluster.launch_services();
        cluster.unset_variable(fault::SERVICE_VARIABLE);
        // It may be killed before it can be asked: whatever of these is accepted must end.
        let mut accepted = Vec::new();
        for n in 0..6 {
            let id = format!("{point}-{n}").replace('.', "-");
            let start = start_of(&id, "nothing").env("DORMOUSE_TALLY_FILE", tally.display().to_string());
            accepted.push((id, start));
        }
        let starts = async {
            for (_, start) in &accepted {
                // Repeated until it is answered, by the next life of the service at the latest.
                cluster.client().start(start.clone()).await.expect("accepted in the end");
            }
        };
        drop(tokio::time::timeout(std::time::Duration::from_secs(2), starts).await);
        cluster.until_killed().await;
        cluster.start_services().await;
        for (id, start) in accepted {
            cluster.start(start).await;
            seen(&cluster, &id).await;
        }
    }
    // No attempt ran twice.
    let tally = fs::read_to_string(tally).expect("written");
    let mut lines: Vec<&str> = tally.lines().collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "an attempt ran twice");
    set(&cluster, 0, 1).await;
    until_spares(&cluster, 0).await;
}

async fn a_killed_core_costs_no_attempt(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    cluster.push("guest").await;
    set(&cluster, 1, 100).await;
    let first = until_served_by_a_spare(&cluster, "before").await;
    for n in 0..3 {
        cluster.kill(Part::Core);
        cluster.start(start_of(&format!("during-{n}"), "nothing")).await;
        cluster.start_services().await;
        assert_eq!(seen(&cluster, &format!("during-{n}")).await.attempt, 1);
    }
    assert_eq!(first.attempt, 1);
}

async fn nobody_stands_by_unasked(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    run(&cluster, "plain", "nothing").await;
    assert!(spares(&cluster).is_empty());
    set(&cluster, 3, 1).await;
    let stood = until_spares(&cluster, 3).await;
    set(&cluster, 1, 1).await;
    assert!(until_spares(&cluster, 1).await.is_subset(&stood));
    let node = cluster.client().nodes().await.expect("listed").remove(0);
    cluster.client().drain_node(&node.id, false).await.expect("asked");
    until_spares(&cluster, 0).await;
    cluster.client().undrain_node(&node.id).await.expect("asked");
    let stood = until_spares(&cluster, 1).await;
    cluster.client().delete_image(&guest()).await.expect("deleted");
    until_spares(&cluster, 0).await;
    wait::until("its process has ended", async || {
        if stood.iter().any(|pid| runs(*pid)) { Err("it runs") } else { Ok(()) }
    })
    .await;

    // A program whose SDK cannot.
    cluster.push("probe").await;
    let options = ImageOptions { spares: Some(1), reuse: None };
    let probe: ImageRef = "probe".parse().expect("a name");
    let refused = cluster.client().set_image(&probe, options).await.expect_err("it cannot stand by");
    assert!(refused.refused_with(Code::FailedPrecondition), "{refused}");
    assert!(refused.to_string().contains("build it with 0.3.0 or newer"), "{refused}");
}
