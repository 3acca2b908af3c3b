//! Backups as `docs/operations.md` has them: taken while everything runs, restored after everything is
//! lost. What was stored by then goes on; what came later happens again.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::Command,
};

use dormouse_management_sdk::Status;
use dormouse_tests::{
    cluster::{Cluster, Database},
    postgres, wait,
    workload::{Amount, Example, Run},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

/// What a node needs besides the database; outputs are worth a backup only to whom they are.
const KEPT: [&str; 2] = ["images", "pki"];

on_both! {
    a_backup_of_running_services_is_whole_and_goes_on,
}

async fn a_backup_of_running_services_is_whole_and_goes_on(database: Database) {
    let mut cluster = Cluster::up(database).await;
    for example in [Example::Order, Example::Fixity] {
        cluster.push(example.program()).await;
    }
    // Some ten seconds of work: it must be in the middle of it when it is backed up.
    let amount = Amount { files: 400, pace_ms: 100, ..Amount::default() };
    let mut order = Run::start(&cluster, Example::Order, "order", &amount, &[]).await;
    cluster.until_suspended(&order.id).await;
    let audit = Run::start(&cluster, Example::Fixity, "audit", &amount, &[]).await;
    until_steps(&audit, 30).await;

    let backup = cluster.scratch().join("backup");
    back_up(&cluster, &backup).await;
    assert_eq!(cluster.get(&audit.id).await.status, Status::Running, "it was too quick to be backed up");

    // The world goes on, and is lost.
    until_steps(&audit, 60).await;
    let late = Run::start(&cluster, Example::Order, "late", &amount, &[]).await;
    cluster.kill_everything();
    fs::remove_dir_all(cluster.data_dir()).expect("own directory");
    restore(&cluster, &backup).await;

    cluster.start_services().await;
    order.approve(&cluster).await;
    order.check(&cluster).await;
    audit.check(&cluster).await;
    assert_eq!(
        cluster.get(&audit.id).await.attempt,
        2,
        "the process is gone, its steps up to the backup are not"
    );
    assert!(cluster.client().instance(&late.id).await.is_err(), "it was started after the backup");
    assert_eq!(cluster.get(&order.id).await.status, Status::Completed);
}

async fn until_steps(run: &Run, count: usize) {
    wait::until(&format!("{} has run {count} steps", run.id), async || match run.steps_ran().len() {
        enough if enough >= count => Ok(()),
        so_far => Err(format!("{so_far} steps")),
    })
    .await;
}

async fn back_up(cluster: &Cluster, backup: &Path) {
    DirBuilder::new().mode(0o700).create(backup).expect("own directory");
    match cluster.database_url() {
        None => {
            let file = SqliteConnectOptions::new().filename(cluster.data_dir().join("dormouse.db"));
            let mut connection = SqliteConnection::connect_with(&file).await.expect("it is a database");
            let statement = format!("VACUUM INTO '{}'", backup.join("dormouse.db").display());
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("it is copied");
        }
        Some(url) => {
            let dump = backup.join("dormouse.dump");
            run("pg_dump", &["--format=custom", "--file", &dump.display().to_string(), url]);
        }
    }
    // After the database: an image that a row names is there then.
    for folder in KEPT {
        copy(&cluster.data_dir().join(folder), &backup.join(folder));
    }
    fs::copy(cluster.data_dir().join("node"), backup.join("node")).expect("own directory");
}

async fn restore(cluster: &Cluster, backup: &Path) {
    if let Some(url) = cluster.database_url() {
        let mut connection = PgConnection::connect(url).await.expect("the server runs");
        let empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
        sqlx::raw_sql(empty).execute(&mut connection).await.expect("own database");
        connection.close().await.expect("closed");
        let dump = backup.join("dormouse.dump");
        run("pg_restore", &["--exit-on-error", "--dbname", url, &dump.display().to_string()]);
        fs::remove_file(dump).expect("own file");
    }
    fs::rename(backup, cluster.data_dir()).expect("own directory");
}

#[expect(clippy::disallowed_methods, reason = "runs programs that end by themselves")]
fn run(program: &str, arguments: &[&str]) {
    let output =
        Command::new(postgres::program(program)).args(arguments).output().expect("it is beside the server");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Modes stay: keys are their owner's alone.
fn copy(from: &Path, to: &Path) {
    DirBuilder::new().mode(0o700).create(to).expect("own directory");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("readable").path();
        fs::copy(&path, to.join(path.file_name().expect("an entry has a name"))).expect("own directory");
    }
}
