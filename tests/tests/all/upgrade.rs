//! The release before this one and this one: after each other on one machine, forth and back, and
//! beside each other on one database. Whatever either began the other ends.

use std::{fs, path::Path, process::Command};

use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    machines::{Machine, Machines},
    previous::{self, Release},
    wait,
    workload::{Amount, Example, Run},
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

on_both! {
    a_machine_is_upgraded_and_goes_back,
}

/// Long enough that services are exchanged below it before it ends.
fn long_audit() -> Amount {
    Amount { files: 200, pace_ms: 40, ..Amount::default() }
}

async fn until_steps(run: &Run, count: usize) {
    wait::until(&format!("{} has run {count} steps", run.id), async || match run.steps_ran().len() {
        enough if enough >= count => Ok(()),
        so_far => Err(format!("{so_far} steps")),
    })
    .await;
}

/// One of each example: what runs, what computes, what waits for a signal.
async fn start_one_of_each(cluster: &Cluster, release: Release, prefix: &str) -> Vec<Run> {
    let mut runs = Vec::new();
    for example in Example::ALL {
        cluster.push_of(release, example.program()).await;
        let id = format!("{prefix}-{}", example.program());
        runs.push(Run::start(cluster, example, &id, &long_audit(), &[]).await);
    }
    runs
}

async fn until_under_way(cluster: &Cluster, runs: &[Run]) {
    for run in runs {
        match run.example {
            Example::Order => drop(cluster.until_suspended(&run.id).await),
            Example::Fixity => until_steps(run, 10).await,
            Example::Batch => {}
        }
    }
}

async fn finish(cluster: &Cluster, runs: &mut [Run]) {
    for run in runs.iter_mut() {
        run.approve(cluster).await;
    }
    for run in runs {
        run.check(cluster).await;
    }
}

async fn a_machine_is_upgraded_and_goes_back(database: Database) {
    let mut cluster = Cluster::up_with(Release::Previous, Layout::Together, database).await;
    let mut old = start_one_of_each(&cluster, Release::Previous, "old").await;
    until_under_way(&cluster, &old).await;
    let process = cluster.until_process("old-fixity").await;

    cluster.exchange(Release::This).await;
    assert_eq!(cluster.processes_of("old-fixity"), [(1, process)], "adopted, not launched again");
    finish(&cluster, &mut old).await;
    let mut new = start_one_of_each(&cluster, Release::This, "new").await;
    let mut old_sdk = start_one_of_each(&cluster, Release::Previous, "old-sdk").await;
    until_under_way(&cluster, &new).await;
    until_under_way(&cluster, &old_sdk).await;

    // Back again, on the schema that the new release has made.
    cluster.exchange(Release::Previous).await;
    finish(&cluster, &mut new).await;
    finish(&cluster, &mut old_sdk).await;
    let mut last = start_one_of_each(&cluster, Release::This, "last").await;
    finish(&cluster, &mut last).await;
    for id in ["old-fixity", "new-fixity", "last-fixity"] {
        assert_eq!(cluster.attempts(id).await, 1, "{id}: an exchange of services costs no attempt");
    }
}

/// A core and a node of each release. Each is killed and comes back; whatever was begun with the other
/// release's services or SDK goes on.
#[tokio::test]
async fn both_releases_share_a_database() {
    let mut machines = Machines::none().await;
    machines.add(2, 2);
    for old in [Machine::Core(0), Machine::Node(0)] {
        machines.set_release(old, Release::Previous);
    }
    machines.start_all().await;
    let mut runs = Vec::new();
    for (round, sdk) in [Release::Previous, Release::This].into_iter().enumerate() {
        for program in Example::ALL.map(Example::program) {
            machines.controller(round).push_of(sdk, program).await;
        }
        for node in [0, 1] {
            for example in Example::ALL {
                let id = format!("{}-{round}-by-{node}", example.program());
                let run = Run::start(machines.controller(node), example, &id, &long_audit(), &[]).await;
                runs.push((node, run));
            }
        }
    }
    for (_, run) in runs.iter().filter(|(_, run)| run.example == Example::Fixity) {
        until_steps(run, 5).await;
    }

    for machine in [Machine::Core(0), Machine::Node(0), Machine::Core(1), Machine::Node(1)] {
        machines.kill(machine);
        machines.start(machine).await;
    }
    for (node, run) in &mut runs {
        // The signal comes through the other release's node than the start did.
        let other = machines.controller(1 - *node);
        if run.example == Example::Order {
            other.until_suspended(&run.id).await;
        }
        run.approve(other).await;
    }
    for (node, run) in &runs {
        run.check(machines.controller(*node)).await;
    }
}

/// Controllers may be of the release before, too.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "runs the command as a person does")]
async fn the_command_of_the_previous_release_is_understood() {
    let cluster = Cluster::up(Database::Sqlite).await;
    let dormouse = |arguments: &[&str]| -> Vec<u8> {
        let mut command = Command::new(previous::binary("dormouse"));
        command.args(arguments).arg("--data-dir").arg(cluster.data_dir());
        let output = command.output().expect("it is built");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
        output.stdout
    };
    let order = previous::binary("order");
    let input =
        r#"{"number": "A-17", "item": "hazelnut", "quantity": 12, "amount_cents": 4200, "ledger": "LEDGER"}"#;
    let input = input.replace("LEDGER", &cluster.scratch().join("ledger").display().to_string());
    dormouse(&["health"]);
    dormouse(&["image", "push", &order.display().to_string(), "--name", "order"]);
    dormouse(&["start", "order", "--id", "order-1", "--input", &input]);
    cluster.until_suspended("order-1").await;
    dormouse(&["get", "order-1"]);
    dormouse(&["signal", "order-1", "approval", "--payload", r#"{"granted": true}"#]);
    let output = dormouse(&["wait", "order-1"]);
    let output: Value = serde_json::from_slice(&output).expect("its output is JSON");
    assert_eq!(output["status"], "shipped", "{output}");
    for arguments in [
        &["list"][..],
        &["count"],
        &["events", "order-1"],
        &["checkpoints", "order-1"],
        &["attempts", "order-1"],
        &["logs", "order-1"],
        &["node", "list"],
        &["image", "list"],
        &["delete", "order-1"],
    ] {
        dormouse(arguments);
    }
}

/// A schema says which release is the oldest that may work on it; each program, of this release and of
/// the one before, refuses to touch what is too new for it, and says so.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "runs programs that end by themselves")]
async fn a_release_that_is_too_old_for_the_schema_is_refused_by_name() {
    const NEEDS: &str = "99.0.0";
    let mut cluster = Cluster::up(Database::Postgres).await;
    cluster.kill(Part::Both);
    let url = cluster.database_url().expect("a server").to_owned();
    let mut connection = PgConnection::connect(&url).await.expect("the database is there");
    let row = format!("INSERT INTO migration VALUES (9999, 'far_ahead', '{NEEDS}', 0)");
    sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut connection).await.expect("the row is new");
    connection.close().await.expect("closed");

    let data_dir = cluster.data_dir();
    for (release, version) in
        [(Release::This, env!("CARGO_PKG_VERSION").to_owned()), (Release::Previous, previous::release())]
    {
        for arguments in [
            &["dormouse", "up", "--core", "127.0.0.1:0", "--environment", "127.0.0.1:0"][..],
            &["dormouse", "migrate"],
            &["dormouse-core"],
            &["dormouse-environment", "--listen", "127.0.0.1:0"],
        ] {
            let mut command = Command::new(release.binary(arguments[0]));
            command.args(&arguments[1..]).arg("--data-dir").arg(&data_dir).args(["--database", &url]);
            let output = command.output().expect("it is built");
            let said = String::from_utf8_lossy(&output.stderr);
            let who = format!("{version}'s {}", arguments.join(" "));
            assert_eq!(output.status.code(), Some(3), "{who}: {said}");
            assert!(said.contains(NEEDS) && said.contains(&version), "{who} names no release: {said}");
        }
    }
}

/// What was released is applied somewhere, and an edit would never get there. `migrations/released`
/// has the digests; this finds what somebody forgot to note there.
#[test]
fn the_previous_release_has_the_same_migrations() {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let theirs = previous::sources().join("migrations");
    let mut compared = 0;
    for database in ["sqlite", "postgres"] {
        for entry in fs::read_dir(theirs.join(database)).expect("it was extracted") {
            let path = entry.expect("readable").path();
            let same = ours.join(path.strip_prefix(&theirs).expect("below it"));
            let text = fs::read(&same).unwrap_or_else(|error| panic!("{}: {error}", same.display()));
            assert!(text == fs::read(&path).expect("readable"), "{} was edited since", same.display());
            compared += 1;
        }
    }
    assert!(compared >= 2, "the previous release had no migration");
}
