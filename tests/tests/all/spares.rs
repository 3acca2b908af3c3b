//! Processes that stand ready, and processes that serve one instance after the other: what each instance finds,
//! what nothing of it reaches the next, and kill -9 at every point of a hand-over.

use std::{collections::HashSet, fs, path::Path};

use dormouse_management_sdk::{Code, ImageOptions, ImageRef, Payload, StartInstance, Status};
use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    controller::{Controller, chain},
    fault,
    machines::{Machine, Machines},
    previous::{self, Release},
    wait,
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
    what_was_not_written_to_goes_with_its_process,
    what_the_sdk_takes_back_reaches_nobody,
    spares_give_way_when_slots_are_short,
    an_image_whose_spares_end_at_once_is_a_problem_and_works,
    an_image_of_the_previous_release_cannot_stand_by,
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
    alarm: Option<u32>,
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
    spares_in(&cluster.data_dir())
}

fn spares_in(data_dir: &Path) -> HashSet<i32> {
    recorded_in(&data_dir.join("spares"))
}

fn recorded_in(folder: &Path) -> HashSet<i32> {
    let folder = fs::read_dir(folder).expect("the folder");
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
    until_spares_in(&cluster.data_dir(), count).await
}

async fn until_spares_in(data_dir: &Path, count: usize) -> HashSet<i32> {
    wait::until(&format!("{count} spares"), async || {
        let spares = spares_in(data_dir);
        let all_run = spares.iter().all(|pid| runs(*pid));
        // One that has served is none yet while its attempt's files are put away.
        let busy = recorded_in(&data_dir.join("attempts"));
        let none_serves = spares.is_disjoint(&busy);
        if spares.len() == count && all_run && none_serves { Ok(spares) } else { Err(format!("{spares:?}")) }
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
    for leave in [
        "thread",
        "file",
        "child",
        "orphan",
        "umask",
        "directory",
        "handler",
        "ignored",
        "mask",
        "timer",
        "limit",
        "nice",
    ] {
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
        "spare.moved_back",
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
            // Directories go with their process where nothing was written, and else stay.
            let leave = if n % 2 == 0 { "silent" } else { "nothing" };
            let start = start_of(&id, leave).env("DORMOUSE_TALLY_FILE", tally.display().to_string());
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

/// A directory in which nothing was written is the next instance's: under its own name, with its own outputs.
async fn what_was_not_written_to_goes_with_its_process(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 0, 100).await;
    let first = run(&cluster, "silent-1", "silent").await;
    let spare = until_spares(&cluster, 1).await;
    assert!(spare.contains(&first.pid), "{first:?}");
    let second = run(&cluster, "silent-2", "silent").await;
    until_spares(&cluster, 1).await;
    let third = run(&cluster, "loud", "nothing").await;
    until_spares(&cluster, 1).await;
    assert_eq!([first.pid, second.pid], [second.pid, third.pid], "one process serves all");
    for seen in [&first, &second, &third] {
        let own = format!("/attempts/{}.1/", seen.instance);
        assert!(seen.directory.contains(&own) && seen.tmpdir.contains(&own), "{seen:?}");
        assert_eq!(seen.files, 0, "{seen:?}");
    }
    assert_eq!(output(&cluster, "loud").await, "loud was here\n");
    for id in ["silent-1", "silent-2"] {
        let outputs = cluster.data_dir().join("outputs").join(id);
        assert!(!outputs.exists(), "it wrote nothing: {}", outputs.display());
    }
    // Who changed what it was given has used it: how its output is open, a second name of it.
    for leave in ["nonblocking", "linked"] {
        let pid = run(&cluster, leave, leave).await.pid;
        let spare = until_spares(&cluster, 1).await;
        assert!(spare.contains(&pid), "{leave}");
        let next = run(&cluster, &format!("after-{leave}"), "nothing").await;
        assert_eq!(next.pid, pid, "{leave}: that alone ends no process");
        until_spares(&cluster, 1).await;
        assert_eq!(output(&cluster, leave).await, format!("{leave} was here\n"));
    }
}

/// The SDK stops timers that would end the process; memory that was given back ends nobody.
async fn what_the_sdk_takes_back_reaches_nobody(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("guest").await;
    set(&cluster, 0, 100).await;
    let mut pids = HashSet::new();
    for (n, leave) in ["alarm", "memory", "nothing"].into_iter().enumerate() {
        let seen = run(&cluster, leave, leave).await;
        assert_eq!((seen.alarm, seen.attempt, seen.before), (None, 1, u32::try_from(n).expect("few")));
        pids.insert(seen.pid);
        until_spares(&cluster, 1).await;
    }
    assert_eq!(pids.len(), 1, "one process serves all");
}

async fn spares_give_way_when_slots_are_short(database: Database) {
    let mut cluster = Cluster::up(database).await;
    cluster.kill_services();
    cluster.set_variable("DORMOUSE_SLOTS", "2");
    cluster.start_services().await;
    cluster.push("guest").await;
    cluster.push("unready").await;
    set(&cluster, 2, 1).await;
    let stood = until_spares(&cluster, 2).await;
    let until = cluster.scratch().join("enough");
    let hold = |id: &str| {
        let input = Payload::json(&serde_json::json!({ "until": until })).expect("JSON");
        StartInstance::of("unready").id(id).payload(input)
    };
    // Not one of theirs: it waits for nobody, and they go.
    cluster.start(hold("one")).await;
    cluster.until("one", "runs", |i| i.status == Status::Running).await;
    let left = until_spares(&cluster, 1).await;
    assert!(left.is_subset(&stood));
    cluster.start(hold("two")).await;
    cluster.until("two", "runs", |i| i.status == Status::Running).await;
    until_spares(&cluster, 0).await;
    fs::write(&until, "").expect("written");
    for id in ["one", "two"] {
        let ended = cluster.until_ended(id, Status::Completed).await;
        assert_eq!(ended.attempt, 1, "nobody was ended for a spare");
    }
    assert!(until_spares(&cluster, 2).await.is_disjoint(&stood));
}

async fn an_image_whose_spares_end_at_once_is_a_problem_and_works(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("unready").await;
    let image: ImageRef = "unready".parse().expect("a name");
    let wished = |spares| ImageOptions { spares: Some(spares), reuse: None };
    cluster.client().set_image(&image, wished(2)).await.expect("its SDK can");
    let problems = async || cluster.client().health().await.expect("answered").problems;
    let told = wait::until("it is told", async || problems().await.pop().ok_or("no problem")).await;
    assert!(
        told.starts_with("spares of unready:1 do not stand by on this node (it ended before it stood by: it has no licence)"),
        "{told}"
    );
    assert!(told.ends_with("or say `dormouse image set unready:1 --spares 0`"), "{told}");
    let node = cluster.client().nodes().await.expect("listed").remove(0);
    assert!(node.in_force.iter().any(|phrase| phrase == "spares of 1 image do not stand by"), "{node:?}");
    // Launched without.
    let input = Payload::json(&serde_json::json!({ "until": "/" })).expect("JSON");
    cluster.start(StartInstance::of("unready").id("plain").payload(input)).await;
    assert_eq!(cluster.until_ended("plain", Status::Completed).await.attempt, 1);
    // Somebody else's image is nobody's problem but theirs.
    let token = cluster.token("other", "reader", dormouse_management_sdk::Role::Reader).await;
    let other = cluster.controller_with(&token, "other").await;
    assert_eq!(other.client().health().await.expect("answered").problems, Vec::<String>::new());
    cluster.client().set_image(&image, wished(0)).await.expect("set");
    wait::until("the problem is over", async || {
        let problems = problems().await;
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await;
}

async fn an_image_of_the_previous_release_cannot_stand_by(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push_of(Release::Previous, "order").await;
    let order: ImageRef = "order".parse().expect("a name");
    for options in
        [ImageOptions { spares: Some(1), reuse: None }, ImageOptions { spares: None, reuse: Some(2) }]
    {
        let refused = cluster.client().set_image(&order, options).await.expect_err("it cannot stand by");
        assert!(refused.refused_with(Code::FailedPrecondition), "{refused}");
        let said = refused.to_string();
        assert!(said.contains(&previous::release()), "{said}");
        assert!(said.contains("build it with 0.3.0 or newer"), "{said}");
    }
    assert!(spares(&cluster).is_empty());
}

/// What stood by for a lease that is lost is ended; those of the next lease prove themselves anew.
#[tokio::test]
async fn invariant_4_spares_end_with_their_lease() {
    let mut machines = Machines::none().await;
    machines.add(1, 2);
    let all: Vec<Machine> = machines.cores().chain(machines.nodes()).collect();
    for machine in all {
        machines.set_variable(machine, "DORMOUSE_LEASE", "3s");
    }
    machines.start_all().await;
    machines.push("guest").await;
    let asked = machines.controller(0);
    let options = ImageOptions { spares: Some(1), reuse: None };
    asked.client().set_image(&guest(), options).await.expect("the SDK can");
    let (lost, data_dir) = (Machine::Node(1), machines.data_dir(Machine::Node(1)));
    let before = until_spares_in(&data_dir, 1).await;

    machines.freeze(lost);
    let id = fs::read_to_string(data_dir.join("node")).expect("its id");
    let node = async |asked: &Controller| {
        let nodes = asked.client().nodes().await.map_err(chain)?;
        nodes.into_iter().find(|node| node.id == id.trim()).ok_or_else(|| "it is not listed".to_owned())
    };
    wait::until("the node has lost its lease", async || {
        let node = node(machines.controller(0)).await?;
        if node.lost { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    machines.thaw(lost);
    wait::until("the spare of the lost lease has ended", async || {
        if before.iter().any(|pid| runs(*pid)) { Err("it runs") } else { Ok(()) }
    })
    .await;
    let after = until_spares_in(&data_dir, 1).await;
    assert!(after.is_disjoint(&before));

    // Nobody but the node that came back may serve.
    let other = fs::read_to_string(machines.data_dir(Machine::Node(0)).join("node")).expect("its id");
    let asked = machines.controller(0);
    asked.client().drain_node(other.trim(), false).await.expect("asked");
    until_spares_in(&machines.data_dir(Machine::Node(0)), 0).await;
    let mut n = 0;
    loop {
        let ready = until_spares_in(&data_dir, 1).await;
        n += 1;
        let id = format!("after-{n}");
        asked.start(start_of(&id, "nothing")).await;
        let ended = asked.until_ended(&id, Status::Completed).await;
        let seen: Seen = serde_json::from_slice(&ended.output.expect("an output").data).expect("what it saw");
        assert_eq!(seen.attempt, 1, "its core takes it");
        if ready.contains(&seen.pid) {
            return;
        }
    }
}
