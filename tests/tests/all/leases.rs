//! Node leases: who keeps its processes, who loses them, and who goes on with the instances.

use std::{collections::BTreeMap, time::Duration};

use dormouse_management_sdk::{Drain, Node, StartInstance, Status, Timestamp};
use dormouse_tests::{
    binaries::binary,
    controller::{Controller, chain},
    fault,
    machines::{Machine, Machines},
    process::Pid,
    proxy::{Fault, Proxy},
    tally::{self, Tally},
    wait,
    workload::{Amount, Example, Run},
};
use serde_json::json;

/// The shortest that is allowed.
const LEASE: Duration = Duration::from_secs(3);
/// Longer than every lease, by far.
const OUTAGE: Duration = Duration::from_secs(10);

/// Work that goes on for longer than an outage, and than a lease that is lost in it is watched.
fn long() -> Amount {
    Amount { files: 400, pace_ms: 250, below: 4_000_000, block: 20_000, ..Amount::default() }
}

/// One core, two nodes with short leases, nothing started yet.
async fn two_nodes() -> Machines {
    let mut machines = Machines::none().await;
    machines.add(1, 2);
    let all: Vec<Machine> = machines.cores().chain(machines.nodes()).collect();
    for machine in all {
        machines.set_variable(machine, "DORMOUSE_LEASE", &format!("{}s", LEASE.as_secs()));
    }
    machines
}

/// The node of this machine, as another one sees it.
async fn seen(asked: &Controller, machines: &Machines, machine: Machine) -> Result<Node, String> {
    let id = std::fs::read_to_string(machines.data_dir(machine).join("node")).map_err(chain)?;
    let nodes = asked.client().nodes().await.map_err(chain)?;
    nodes.into_iter().find(|node| node.id == id.trim()).ok_or_else(|| "it is not listed".to_owned())
}

/// Pushes the examples and starts one of each on whichever node takes it; waits until all run.
async fn start_work(machines: &Machines, amount: &Amount) -> Vec<Run> {
    let asked = machines.controller(0);
    let both = [Example::Fixity, Example::Batch];
    for example in both {
        asked.push(example.program()).await;
    }
    let mut runs = Vec::new();
    for (number, example) in both.into_iter().cycle().take(4).enumerate() {
        runs.push(Run::start(asked, example, &format!("run-{number}"), amount, &[]).await);
    }
    for run in &runs {
        asked.until(&run.id, "runs", |instance| instance.status == Status::Running).await;
        asked.until_process(&run.id).await;
    }
    runs
}

fn processes(machines: &Machines) -> BTreeMap<String, (u32, Pid)> {
    machines.processes().into_iter().map(|found| (found.instance, (found.attempt, found.pid))).collect()
}

/// Everything ends in its first attempt, in the process that it had, on nodes that never lost a lease.
async fn an_outage(break_it: impl AsyncFnOnce(&Proxy)) {
    let mut machines = two_nodes().await;
    let proxy = Proxy::before(machines.database_url());
    let all: Vec<Machine> = machines.cores().chain(machines.nodes()).collect();
    for machine in all {
        machines.set_database(machine, &proxy.url());
    }
    machines.start_all().await;
    let runs = start_work(&machines, &long()).await;
    let before = processes(&machines);
    break_it(&proxy).await;
    // Some may have ended as they should, where the database was heard now and then.
    for (id, process) in processes(&machines) {
        assert_eq!(Some(&process), before.get(&id), "{id} runs in another process than before");
    }
    proxy.set(Fault::None);
    let asked = machines.controller(1);
    for run in &runs {
        run.check(asked).await;
        assert_eq!(asked.attempts(&run.id).await, 1, "{}", run.id);
    }
    for machine in machines.nodes() {
        let node = seen(asked, &machines, machine).await.expect("it is listed");
        assert!(!node.lost && node.not_claiming.is_none(), "{node:?}");
    }
}

/// Not a wait for a state: how long the fault lasts.
async fn outlast_every_lease() {
    tokio::time::sleep(OUTAGE).await;
}

#[tokio::test]
async fn invariant_4_and_7_a_database_that_refuses_for_longer_than_every_lease_costs_no_process() {
    an_outage(async |proxy| {
        proxy.set(Fault::Refuse);
        outlast_every_lease().await;
    })
    .await;
}

#[tokio::test]
async fn invariant_4_and_7_a_database_that_is_silent_for_longer_than_every_lease_costs_no_process() {
    an_outage(async |proxy| {
        proxy.set(Fault::SilentDatabase);
        outlast_every_lease().await;
    })
    .await;
}

/// What they said arrives at the database all at once, late.
#[tokio::test]
async fn invariant_4_and_7_services_that_are_not_heard_for_longer_than_every_lease_cost_no_process() {
    an_outage(async |proxy| {
        proxy.set(Fault::SilentServices);
        outlast_every_lease().await;
    })
    .await;
}

#[tokio::test]
async fn invariant_4_and_7_a_database_that_is_slow_for_longer_than_every_lease_costs_no_process() {
    an_outage(async |proxy| {
        proxy.set(Fault::Slow(LEASE / 3));
        outlast_every_lease().await;
    })
    .await;
}

#[tokio::test]
async fn invariant_4_and_7_connections_that_are_reset_again_and_again_cost_no_process() {
    an_outage(async |proxy| {
        for _ in 0..20 {
            proxy.reset_all();
            tokio::time::sleep(OUTAGE / 20).await;
        }
    })
    .await;
}

/// Waits until the node was given up, and everything that it ran has gone on elsewhere.
async fn until_taken_over(machines: &Machines, from: Machine, held: &[(String, u32)]) {
    let asked = machines.controller(0);
    wait::until("the node has lost its lease", async || {
        let node = seen(asked, machines, from).await?;
        if node.lost { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    for (id, attempt) in held {
        asked.until(id, "goes on elsewhere", |i| i.attempt > *attempt && i.status == Status::Running).await;
    }
}

/// What a machine runs: instances with their attempts, and their processes.
fn held_by(machines: &Machines, machine: Machine) -> (Vec<(String, u32)>, Vec<Pid>) {
    let all = machines.processes_on(machine).into_iter();
    all.map(|process| ((process.instance, process.attempt), process.pid)).unzip()
}

/// Waits until the node has ended its old processes, taken a new lease, and claims.
async fn until_well(machines: &Machines, machine: Machine, old: &[Pid]) {
    let asked = machines.controller(0);
    wait::until("the old processes are ended", async || {
        let alive = old.iter().filter(|pid| pid.is_alive()).count();
        if alive == 0 { Ok(()) } else { Err(format!("{alive} live")) }
    })
    .await;
    wait::until("it holds a new lease and claims", async || {
        let node = seen(asked, machines, machine).await?;
        if !node.lost && node.not_claiming.is_none() { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}

/// Each instance ends right; nothing of an older attempt came after a newer one.
async fn check_all(machines: &Machines, runs: &[Run]) {
    let asked = machines.controller(0);
    for run in runs {
        run.check(asked).await;
        let mut newest = 0;
        for checkpoint in asked.checkpoints(&run.id).await {
            assert!(checkpoint.attempt >= newest, "{}: attempt {} wrote late", run.id, checkpoint.attempt);
            newest = checkpoint.attempt;
        }
        let instance = asked.get(&run.id).await;
        assert_eq!(instance.crashes, 0, "{}: a lost lease is no crash", run.id);
    }
}

/// The whole machine stands still, until others have gone on with what it ran; then it goes on too.
#[tokio::test]
async fn invariant_2_4_and_7_a_node_that_stood_still_with_its_instances_is_replaced_and_ends_them() {
    let mut machines = two_nodes().await;
    machines.start_all().await;
    let (stopped, runs) = stop_first_node(&mut machines).await;
    machines.freeze_whole(stopped);
    let (held, old) = held_by(&machines, stopped);
    assert!(!held.is_empty(), "there is something to take over");
    until_taken_over(&machines, stopped, &held).await;
    machines.thaw_whole(stopped);
    until_well(&machines, stopped, &old).await;
    check_all(&machines, &runs).await;
}

/// Work that node 1 runs; the questions go to node 0.
async fn stop_first_node(machines: &mut Machines) -> (Machine, Vec<Run>) {
    let asked = machines.controller(0);
    let drained = seen(asked, machines, Machine::Node(0)).await.expect("listed").id;
    asked.client().drain_node(&drained, false).await.expect("asked");
    wait::until("node 0 has heard it", async || {
        let node = seen(asked, machines, Machine::Node(0)).await?;
        if node.draining { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    let runs = start_work(machines, &long()).await;
    asked.client().undrain_node(&drained).await.expect("asked");
    assert_eq!(machines.processes_on(Machine::Node(0)), []);
    (Machine::Node(1), runs)
}

/// Only its own way to the database is cut; its instances still talk to core.
#[tokio::test]
async fn invariant_2_4_and_7_a_node_that_is_cut_off_from_the_database_is_replaced_and_ends_its_processes() {
    let mut machines = two_nodes().await;
    let proxy = Proxy::before(machines.database_url());
    machines.set_database(Machine::Node(1), &proxy.url());
    machines.start_all().await;
    let (cut, runs) = stop_first_node(&mut machines).await;
    let (held, old) = held_by(&machines, cut);
    assert!(!held.is_empty(), "there is something to take over");
    proxy.set(Fault::SilentDatabase);
    until_taken_over(&machines, cut, &held).await;
    proxy.set(Fault::None);
    until_well(&machines, cut, &old).await;
    check_all(&machines, &runs).await;
}

/// Hours apart, and from the database: what is due, expired and in order is as the database's clock
/// says, and nobody takes the other for dead.
#[tokio::test]
async fn invariant_10_nodes_whose_clocks_differ_by_hours_wake_expire_and_order_rightly() {
    let mut machines = two_nodes().await;
    let library = fault::wrong_clock(machines.scratch().join("wrong-clock.so")).display().to_string();
    for (machine, wrong_by) in
        [(Machine::Core(0), "7200"), (Machine::Node(0), "21600"), (Machine::Node(1), "-21600")]
    {
        machines.set_variable(machine, "LD_PRELOAD", &library);
        machines.set_variable(machine, "WRONG_BY_SECONDS", wrong_by);
    }
    machines.start_all().await;
    machines.push("sleeper").await;
    let (asked, tally) = (machines.controller(0), Tally::in_dir(machines.scratch()));
    let now = asked.client().health().await.expect("it answers").now;
    assert!(now.since(wait::now()).max(wait::now().since(now)).as_secs() < 60, "health tells a wrong clock");
    for number in 0..6 {
        let start = StartInstance::of("sleeper").id(format!("nap-{number}"));
        let start = start.input(&json!({"sleeps": 2, "pause_ms": 5_000})).expect("JSON");
        // A limit that one of the clocks would break, and a start that the other would not wait for.
        let start = start.env(tally::VARIABLE, tally.value()).limit(Duration::from_mins(30));
        let at = Timestamp::from_micros(now.as_micros() + 4_000_000);
        asked.start(if number % 2 == 0 { start } else { start.start_at(at) }).await;
    }
    let late =
        StartInstance::of("sleeper").id("limited").input(&json!({"sleeps": 1, "pause_ms": 60_000_000}));
    asked.start(late.expect("JSON").env(tally::VARIABLE, tally.value()).limit(Duration::from_secs(8))).await;

    for number in 0..6 {
        let id = format!("nap-{number}");
        let ended = asked.until_ended(&id, Status::Completed).await;
        let attempts = asked.client().attempts(&id).await.expect("listed");
        assert_eq!(attempts.len(), tally.attempts()[&id].len(), "{id}");
        if number % 2 == 1 {
            assert!(attempts[0].claimed_at.expect("launched").since(now).as_secs() >= 4, "{id} began early");
        }
        let slept = ended.ended_at.expect("ended").since(attempts[0].claimed_at.expect("launched"));
        assert!(slept.as_secs() >= 10, "{id} was woken early: it slept {slept:?}");
        let times: Vec<_> =
            asked.events(&id).await.iter().map(|event| event.at.expect("dated").as_micros()).collect();
        assert!(times.is_sorted(), "the timeline of {id} is out of order: {times:?}");
    }
    let limited = asked.until_ended("limited", Status::Failed).await;
    let lived = limited.ended_at.expect("ended").since(limited.created_at.expect("created"));
    assert!((8..60).contains(&lived.as_secs()), "a limit of 8 s ended it after {lived:?}");
    for machine in machines.nodes() {
        let node = seen(asked, &machines, machine).await.expect("listed");
        assert!(!node.lost, "{node:?}");
    }
}

/// By the command, as an operator does it before maintenance.
#[tokio::test]
async fn a_drained_node_hands_back_what_it_runs_and_stays_drained_until_it_is_told() {
    let mut machines = two_nodes().await;
    machines.start_all().await;
    let (drained, runs) = stop_first_node(&mut machines).await;
    let id = seen(machines.controller(0), &machines, drained).await.expect("listed").id;
    let said = command(&machines, &["node", "drain", &id[..6], "--suspend", "--wait"]).await;
    assert!(said.contains("is drained: nothing runs there"), "{said}");
    assert_eq!(machines.processes_on(drained), []);
    machines.terminate(drained);
    assert!(machines.until_ended(drained).await.success());
    machines.start(drained).await;
    check_all(&machines, &runs).await;
    for run in &runs {
        assert_eq!(machines.controller(0).attempts(&run.id).await, 2, "{}", run.id);
    }
    // Asked of the node that no longer has its newest output.
    let (done, screen) = run_command(&machines, drained, &["get", &runs[0].id]).await;
    let there = seen(machines.controller(0), &machines, Machine::Node(0)).await.expect("listed");
    assert!(done && screen.contains("COMPLETED") && screen.contains(&there.address), "{screen}");
    let node = seen(machines.controller(0), &machines, drained).await.expect("listed");
    assert_eq!((node.drain, node.draining, node.running), (Drain::Suspend, true, 0), "{node:?}");
    assert!(node.not_claiming.is_some_and(|why| why.starts_with("drained: nothing runs here")));
    command(&machines, &["node", "undrain", &id]).await;
    until_well(&machines, drained, &[]).await;

    let refused = command_fails(&machines, &["node", "drain", "nobody"]).await;
    assert!(refused.contains("NOT_FOUND") && refused.contains(&id), "{refused}");
}

/// A data directory that was copied: the second service takes the lease, the first ends and says why.
#[tokio::test]
async fn invariant_4_of_two_services_with_one_nodes_id_one_ends() {
    let mut machines = two_nodes().await;
    machines.launch(Machine::Core(0));
    machines.until_answering(Machine::Core(0)).await;
    machines.start(Machine::Node(0)).await;
    let original = machines.data_dir(Machine::Node(0)).join("node");
    std::fs::copy(original, machines.data_dir(Machine::Node(1)).join("node")).expect("own files");
    machines.start(Machine::Node(1)).await;
    let log = machines.scratch().join("node-0.log");
    let status = machines.until_ended(Machine::Node(0)).await;
    assert_eq!(status.code(), Some(3), "refused, so that nobody starts it again and again");
    let said = std::fs::read_to_string(log).expect("its log");
    assert!(said.contains("if its data directory was copied, remove the file `node`"), "{said}");
}

/// Runs `dormouse` against node 0; answers what it said.
async fn command(machines: &Machines, arguments: &[&str]) -> String {
    let (done, said) = run_command(machines, Machine::Node(0), arguments).await;
    assert!(done, "{arguments:?}: {said}");
    said
}

async fn command_fails(machines: &Machines, arguments: &[&str]) -> String {
    let (done, said) = run_command(machines, Machine::Node(0), arguments).await;
    assert!(!done, "{arguments:?} was done: {said}");
    said
}

#[expect(clippy::disallowed_methods, reason = "a test runs the command as people do")]
async fn run_command(machines: &Machines, asked: Machine, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(binary("dormouse"));
    command.args(arguments).arg("--data-dir").arg(machines.data_dir(asked)).kill_on_drop(true);
    let output = command.output().await.expect("it can be run");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
