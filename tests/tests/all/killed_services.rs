//! kill -9 of the services, of the database server, of everything at once, and after each line of
//! the launcher: the examples end right, and a process that lives on is adopted, not repeated. So with images whose
//! processes are launched for each attempt, with spares, and with processes that serve one instance after the other.

use std::future::pending;

use dormouse_management_sdk::{ImageOptions, ImageRef, Status};
use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    fault, postgres,
    process::Pid,
    wait,
    workload::{Amount, Example, Run},
};

/// Which processes of an image are kept, where those of others are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nothing,
    /// Processes that wait for their first instance.
    Spares,
    /// The one whose instance has ended, for the next.
    Reuse,
}

const SPARES: u32 = 2;

impl Kept {
    /// Pushes the example, and waits until the process is there that its next instance will get, if one is kept.
    async fn push(self, cluster: &Cluster, example: Example) -> Vec<Pid> {
        cluster.push(example.program()).await;
        let image: ImageRef = example.program().parse().expect("a name");
        let (spares, reuse) = match self {
            Self::Nothing => return Vec::new(),
            Self::Spares => (SPARES, 1),
            Self::Reuse => (0, 1000),
        };
        let options = ImageOptions { spares: Some(spares), reuse: Some(reuse) };
        cluster.client().set_image(&image, options).await.expect("the SDK can");
        let before = cluster.spares().len();
        let first = Amount { files: 5, below: 100, block: 10, ..Amount::default() };
        match (self, example) {
            // An order suspends, and then its process leaves.
            (Self::Nothing, _) | (Self::Reuse, Example::Order) => Vec::new(),
            (Self::Spares, _) => cluster.until_spares(before + SPARES as usize).await,
            (Self::Reuse, _) => {
                let id = format!("before-{}", example.program());
                Run::start(cluster, example, &id, &first, &[]).await;
                cluster.until_ended(&id, Status::Completed).await;
                cluster.until_spares(before + 1).await
            }
        }
    }

    /// So many of these passes: where a process comes from makes no difference to most of them.
    fn of(self, passes: &[u32]) -> &[u32] {
        match self {
            Self::Nothing => passes,
            Self::Spares | Self::Reuse => &passes[1..2],
        }
    }
}

/// Each case with an image of which nothing is kept, with one that has spares, and with one whose processes are
/// used again.
macro_rules! whatever_is_kept {
    ($($case:ident),+ $(,)?) => {
        whatever_is_kept!(on_sqlite, Nothing, Sqlite: $($case),+);
        whatever_is_kept!(on_postgres, Nothing, Postgres: $($case),+);
        whatever_is_kept!(with_spares_on_sqlite, Spares, Sqlite: $($case),+);
        whatever_is_kept!(with_reuse_on_postgres, Reuse, Postgres: $($case),+);
    };
    ($module:ident, $kept:ident, $database:ident: $($case:ident),+) => {
        mod $module {
            $(#[tokio::test] async fn $case() {
                super::$case(super::Kept::$kept, dormouse_tests::cluster::Database::$database).await;
            })+
        }
    };
}

whatever_is_kept! {
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

async fn start_audit(kept: Kept, cluster: &Cluster, amount: &Amount) -> Run {
    let ready = kept.push(cluster, Example::Fixity).await;
    let run = Run::start(cluster, Example::Fixity, "audit", amount, &[]).await;
    until_steps(&run, 20).await;
    let process = cluster.until_process(&run.id).await;
    assert_eq!(kept != Kept::Nothing, ready.contains(&process), "{kept:?}: {process:?} of {ready:?}");
    run
}

async fn a_killed_core_costs_no_attempt(kept: Kept, database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(kept, &cluster, &long_audit()).await;
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

async fn a_killed_environment_finds_its_processes_again(kept: Kept, database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(kept, &cluster, &long_audit()).await;
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

async fn a_process_that_ended_meanwhile_is_settled(kept: Kept, database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(kept, &cluster, &Amount { files: 80, pace_ms: 20, ..Amount::default() }).await;
    cluster.kill(Part::Environment);
    cluster.until_no_process(&run.id).await;
    cluster.start_services().await;
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 1);
}

async fn a_process_that_was_killed_meanwhile_is_launched_again(kept: Kept, database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let run = start_audit(kept, &cluster, &long_audit()).await;
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
async fn both_services_killed_at_once(kept: Kept, database: Database) {
    let mut cluster = Cluster::up(database).await;
    let run = start_audit(kept, &cluster, &long_audit()).await;
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

async fn everything_killed_at_once(kept: Kept, database: Database) {
    let mut cluster = Cluster::up(database).await;
    for example in Example::ALL {
        kept.push(&cluster, example).await;
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
/// The same for a process that is launched to be kept, up to the moment when it has its instance.
const KEPT_POINTS: [&str; 6] = [
    "scheduler.claimed",
    "spare.spawned",
    "spare.recorded",
    "spare.named",
    "spare.moved",
    "spare.document_sent",
];
/// From the end of a process to the moment when nothing is left to do about it.
const EXIT_POINTS: [&str; 3] = ["supervisor.exit_seen", "supervisor.exit_told", "supervisor.put_away"];
/// The start of an environment, while processes of its last life run.
const START_POINTS: [&str; 3] = ["environment.leased", "environment.adopted", "environment.settled"];

async fn killed_after_each_line_of_the_launcher(kept: Kept, database: Database) {
    let points = match kept {
        Kept::Nothing => &LAUNCH_POINTS[..],
        // Whether the first attempt finds a spare is chance; how one is handed over is a test of its own.
        Kept::Spares => &KEPT_POINTS[..3],
        Kept::Reuse => &KEPT_POINTS[..],
    };
    killed_at_each(kept, database, points, &[1]).await;
}

async fn killed_while_an_exit_is_told(kept: Kept, database: Database) {
    killed_at_each(kept, database, &EXIT_POINTS, &[1]).await;
}

/// What is stored and not yet answered is asked for again.
async fn killed_before_an_answer(kept: Kept, database: Database) {
    killed_at_each(kept, database, &["core.registered"], &[1]).await;
    killed_at_each(kept, database, &["core.before_reply"], kept.of(&[1, 2, 4])).await;
}

/// Before: nothing is stored. After: everything is, and nobody was told.
async fn killed_around_each_commit(kept: Kept, database: Database) {
    killed_at_each(kept, database, &["store.before_commit", "store.committed"], kept.of(&[1, 2, 3, 5, 8]))
        .await;
}

async fn killed_at_each(kept: Kept, database: Database, points: &[&str], passes: &[u32]) {
    let mut cluster = Cluster::up(database).await;
    kept.push(&cluster, Example::Order).await;
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

async fn killed_while_it_starts(kept: Kept, database: Database) {
    let mut cluster = Cluster::up(database).await;
    let run = start_audit(kept, &cluster, &long_audit()).await;
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
    let run = start_audit(Kept::Nothing, &cluster, &long_audit()).await;
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
