//! Flushes that fail or hang while many write: nothing is acknowledged that was not flushed, whoever asks is told
//! why, and all goes on when the disk does.

use std::{fs, os::unix::fs::PermissionsExt as _};

use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    fault::Disk,
    postgres::Server,
    wait,
    writers::{Work, Writers},
};

on_both! {
    invariant_1_a_batch_that_is_not_flushed_is_not_acknowledged,
    invariant_1_nothing_is_acknowledged_while_a_flush_hangs,
}

const INSTANCES: usize = 16;
/// Acknowledged before the fault, and after it.
const REQUESTS: usize = 100;

/// Services whose database has a disk that fails when the test says so.
struct Scene {
    cluster: Cluster,
    disk: Disk,
    /// What the path of the database's log has in it.
    log: &'static str,
    /// With a disk of its own. None: the file is the services'.
    server: Option<Server>,
    /// For the disk's switches, where the server's user reads them.
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(database: Database) -> Self {
        let dir = tempfile::Builder::new().prefix("dormouse-disk.").tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
        let disk = Disk::in_dir(dir.path());
        match database {
            Database::Sqlite => {
                let mut cluster = Cluster::up(Database::Sqlite).await;
                cluster.kill_services();
                for (name, value) in disk.variables() {
                    cluster.set_variable(name, &value);
                }
                cluster.start_services().await;
                Self { cluster, disk, log: "/dormouse.db-wal", server: None, _dir: dir }
            }
            Database::Postgres => {
                let server = Server::start_with(&disk.variables());
                // It would start anew until the disk is well again, at some moment of its own.
                server.configure("restart_after_crash = off");
                server.stop();
                server.start_again();
                let cluster = Cluster::up_on(Layout::Together, &server).await;
                Self { cluster, disk, log: "/pg_wal/", server: Some(server), _dir: dir }
            }
        }
    }
}

async fn invariant_1_a_batch_that_is_not_flushed_is_not_acknowledged(database: Database) {
    let mut scene = Scene::new(database).await;
    let writers = Writers::start(&scene.cluster, INSTANCES).await;
    writers.register(&scene.cluster).await;
    let mut before = 0;
    let fault = async {
        writers.until_acknowledged(REQUESTS).await;
        scene.disk.stop_flushing(scene.log);
        before = writers.acknowledged();
        match &scene.server {
            // It ends: what the kernel has of that write, nobody knows.
            None => drop(scene.cluster.service(Part::Both).until_ended().await),
            // All are told: there is no server.
            Some(_) => std::future::pending().await,
        }
    };
    writers.write_until(Work::Saves, fault).await;
    let after = writers.acknowledged() - before;
    assert!(after <= INSTANCES, "{after} were acknowledged without a flush: more than were on their way");
    let refusals = writers.refusals();
    assert!(!refusals.is_empty(), "nobody was told");
    for refusal in &refusals {
        assert!(refusal.retryable, "{refusal:?}");
        let words = [
            "did not flush",
            "did not confirm",
            "does not answer",
            "shut down",
            "is shutting down",
            "starting",
        ];
        assert!(words.iter().any(|word| refusal.message.contains(word)), "{}", refusal.message);
    }
    scene.disk.heal();
    match &scene.server {
        None => {
            assert!(refusals.iter().any(|r| r.message.contains("the disk did not flush")), "{refusals:?}");
            let service = scene.cluster.service(Part::Both);
            assert_eq!(service.until_ended().await.code(), Some(3), "{}", service.log_tail());
            scene.cluster.start_services().await;
        }
        Some(server) => {
            assert_eq!(refusals.len(), INSTANCES, "{refusals:?}");
            server.until_down().await;
            server.start_again();
            wait::until("the services have a database again", async || {
                let health = scene.cluster.client().health().await.map_err(|error| error.to_string())?;
                if health.problems.is_empty() { Ok(()) } else { Err(health.problems.join("; ")) }
            })
            .await;
        }
    }
    writers.check(&scene.cluster).await;
    go_on(&scene.cluster, &writers).await;
}

async fn invariant_1_nothing_is_acknowledged_while_a_flush_hangs(database: Database) {
    let scene = Scene::new(database).await;
    let writers = Writers::start(&scene.cluster, INSTANCES).await;
    writers.register(&scene.cluster).await;
    let fault = async {
        writers.until_acknowledged(REQUESTS).await;
        scene.disk.hang(scene.log);
        scene.disk.until_hanging().await;
        // What is read meanwhile is what was flushed: nobody has an answer to anything else.
        for _ in 0..3 {
            let in_flight = writers.check(&scene.cluster).await;
            assert_eq!(in_flight.stored + in_flight.absent, INSTANCES, "each waits for an answer");
        }
        scene.disk.heal();
        // All of them, and more.
        writers.until_acknowledged(REQUESTS).await;
    };
    writers.write_until(Work::Mixed, fault).await;
    assert!(writers.refusals().is_empty(), "{:?}", writers.refusals());
    go_on(&scene.cluster, &writers).await;
}

/// To the end of each, with nothing lost and nothing twice.
async fn go_on(cluster: &Cluster, writers: &Writers) {
    writers.register(cluster).await;
    writers.check(cluster).await;
    writers.complete(cluster).await;
}
