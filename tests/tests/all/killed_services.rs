//! kill -9 of the services, of the database server, of everything at once, and after each line of
//! the launcher: the examples end right, and a process that lives on is adopted, not repeated.

use std::future::pending;

use dormouse_management_sdk::Status;
use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    fault, postgres, wait,
    workload::{Amount, Example, Run},
};

on_both! {
    a_killed_core_costs_no_attempt,
    a_killed_environment_finds_its_processes_again,
    a_process_that_ended_meanwhile_is_settled,
    a_process_that_was_killed_meanwhile_is_launched_again,
    both_services_killed_at_once,
    everything_killed_at_once,
    killed_after_each_line_of_the_launcher,
    killed_while_an_exit_is_told,
    killed_before_an_answer,
    killed_around_each_commit,
    killed_while_it_starts,
}

/// Long enough that a service is killed and back again before it ends.
fn long_audit() -> Amount {
    Amount { files: 300, pace_ms: 40, ..Amount::default() }
}

async fn until_steps(run: &Run, count: usize) {
    wait::until(&format!("{} has run {count} steps", run.id), async || match run.steps_ran().len() {
        enough if enough >= count => Ok(()),
        so_far => Err(format!("{so_far} steps")),
    })
    .await;
}

async fn start_audit(cluster: &Cluster, amount: &Amount) -> Run {
    cluster.push(Example::Fixity.program()).await;
    let run = Run::start(cluster, Example::Fixity, "audit", amount, &[]).await;
    until_steps(&run, 20).await;
    run
}

async fn a_killed_core_costs_no_attempt(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    for _ in 0..3 {
        cluster.kill(Part::Core);
        cluster.start_services().await;
        until_steps(&run, run.steps_ran().len() + 10).await;
    }
    assert_eq!(cluster.until_process(&run.id).await, process, "another process");
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1, "a lost connection ended an attempt");
}

async fn a_killed_environment_finds_its_processes_again(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    for _ in 0..3 {
        cluster.kill(Part::Environment);
        // It works on meanwhile: nobody needs the environment for that.
        until_steps(&run, run.steps_ran().len() + 10).await;
        cluster.start_services().await;
        assert_eq!(cluster.processes_of(&run.id), [(1, process)], "adopted, not launched again");
    }
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1);
}

async fn a_process_that_ended_meanwhile_is_settled(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(&cluster, &Amount { files: 80, pace_ms: 20, ..Amount::default() }).await;
    cluster.kill(Part::Environment);
    cluster.until_no_process(&run.id).await;
    cluster.start_services().await;
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1);
}

async fn a_process_that_was_killed_meanwhile_is_launched_again(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    cluster.kill(Part::Environment);
    fault::kill_9(process);
    cluster.start_services().await;
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 2);
    let exit = cluster.client().attempts(&run.id).await.expect("listed")[0].exit.clone().unwrap_or_default();
    assert!(exit.contains("environment was away"), "nobody can know how it ended, but it says {exit:?}");
}

/// `dormouse up` is one process: both go, the workflow's process stays.
async fn both_services_killed_at_once(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    for _ in 0..3 {
        cluster.kill(Part::Both);
        cluster.start_services().await;
        assert_eq!(cluster.processes_of(&run.id), [(1, process)], "adopted, not launched again");
        until_steps(&run, run.steps_ran().len() + 10).await;
    }
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1);
}

async fn everything_killed_at_once(database: Database) {
    let mut cluster = Cluster::up(database).await;
    for example in Example::ALL {
        cluster.push(example.program()).await;
    }
    let amount = Amount { files: 300, pace_ms: 40, below: 1_500_000, ..Amount::default() };
    let mut runs = Vec::new();
    for example in Example::ALL {
        runs.push(Run::start(&cluster, example, example.program(), &amount, &[]).await);
    }
    let mut random = fault::random();
    for _ in 0..3 {
        tokio::time::sleep(fault::up_to(&mut random, 1000)).await;
        cluster.kill_everything();
        cluster.start_services().await;
    }
    for run in &mut runs {
        run.approve(&cluster).await;
        run.check(&cluster).await;
        assert!(cluster.attempts(&run.id).await <= 4, "{} was launched more often than needed", run.id);
    }
}

/// Every line of the launcher behind which something is left that a restart must find.
const LAUNCH_POINTS: [&str; 5] = [
    "scheduler.claimed",
    "launch.directory_made",
    "launch.spawned",
    "launch.recorded",
    "launch.document_written",
];
/// From the end of a process to the moment when nothing is left to do about it.
const EXIT_POINTS: [&str; 3] = ["supervisor.exit_seen", "supervisor.exit_told", "supervisor.put_away"];
/// The start of an environment, while processes of its last life run.
const START_POINTS: [&str; 3] = ["environment.leased", "environment.adopted", "environment.settled"];

async fn killed_after_each_line_of_the_launcher(database: Database) {
    killed_at_each(database, &LAUNCH_POINTS, &[1]).await;
}

async fn killed_while_an_exit_is_told(database: Database) {
    killed_at_each(database, &EXIT_POINTS, &[1]).await;
}

/// What is stored and not yet answered is asked for again.
async fn killed_before_an_answer(database: Database) {
    killed_at_each(database, &["core.registered"], &[1]).await;
    killed_at_each(database, &["core.before_reply"], &[1, 2, 4]).await;
}

/// Before: nothing is stored. After: everything is, and nobody was told.
async fn killed_around_each_commit(database: Database) {
    killed_at_each(database, &["store.before_commit", "store.committed"], &[1, 2, 3, 5, 8]).await;
}

async fn killed_at_each(database: Database, points: &[&str], passes: &[u32]) {
    let mut cluster = Cluster::up(database).await;
    cluster.push(Example::Order.program()).await;
    for (number, point) in points.iter().enumerate() {
        for pass in passes {
            let id = format!("order-{number}-{pass}");
            let (mut run, start) = Run::prepare(&cluster, Example::Order, &id, &Amount::default(), &[]);
            cluster.kill(Part::Both);
            cluster.set_variable(fault::SERVICE_VARIABLE, &format!("{point}:{pass}"));
            // Sent, and repeated, while the services come up and die.
            let client = cluster.client().clone();
            cluster.launch_services();
            let sent = client.start(start.clone());
            let killed = cluster.until_killed();
            tokio::select! { () = killed => {}, () = async { drop(sent.await); pending().await } => {} }

            cluster.unset_variable(fault::SERVICE_VARIABLE);
            cluster.start_services().await;
            cluster.start(start).await;
            run.approve(&cluster).await;
            run.check(&cluster).await;
        }
    }
}

async fn killed_while_it_starts(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    for point in START_POINTS {
        cluster.kill(Part::Both);
        cluster.set_variable(fault::SERVICE_VARIABLE, point);
        cluster.launch_services();
        cluster.until_killed().await;
        cluster.unset_variable(fault::SERVICE_VARIABLE);
        cluster.start_services().await;
        assert_eq!(
            cluster.processes_of(&run.id),
            [(1, process)],
            "after {point}: adopted, not launched again"
        );
    }
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1);
}

/// PostgreSQL alone: the server itself is killed, the services and the workflow live.
#[tokio::test]
async fn postgresql_killed_and_started_again() {
    let server = postgres::Server::start();
    let mut cluster = Cluster::up_on(Layout::Together, &server).await;
    let run = start_audit(&cluster, &long_audit()).await;
    let process = cluster.until_process(&run.id).await;
    for _ in 0..3 {
        server.kill();
        server.start_again();
        until_steps(&run, run.steps_ran().len() + 10).await;
    }
    assert!(cluster.service(Part::Both).exit().is_none(), "the services gave up");
    assert_eq!(cluster.until_process(&run.id).await, process, "another process");
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1, "an outage of the database costs no attempt");
}

/// The same while the instance sleeps, and everything else is killed too.
#[tokio::test]
async fn postgresql_killed_with_everything_else() {
    let server = postgres::Server::start();
    let mut cluster = Cluster::up_on(Layout::Apart, &server).await;
    cluster.push(Example::Order.program()).await;
    let mut run = Run::start(&cluster, Example::Order, "order", &Amount::default(), &[]).await;
    cluster.until_suspended(&run.id).await;
    run.approve(&cluster).await;
    server.kill();
    cluster.kill_everything();
    server.start_again();
    cluster.start_services().await;
    run.check(&cluster).await;
    assert_eq!(cluster.get(&run.id).await.status, Status::Completed);
}
