//! A PostgreSQL server that has no connection left, that only reads, that is restarted under load: the
//! services say so in words, and go on by themselves when it does.

use dormouse_management_sdk::{Code, StartInstance, Status};
use dormouse_tests::{
    cluster::{Cluster, Layout, Part},
    postgres::Server,
    tally::{self, Tally},
    wait,
};
use sqlx::{Connection, PgConnection};

async fn assert_served(cluster: &Cluster, id: &str) {
    let input = serde_json::json!({ "sleeps": 1, "pause_ms": 1 });
    cluster.start(StartInstance::of("sleeper").id(id).input(&input).expect("JSON")).await;
    cluster.until_ended(id, Status::Completed).await;
}

/// Waits until the services name this problem of theirs.
async fn until_problem(cluster: &Cluster, says: &str) {
    wait::until(&format!("health says {says:?}"), async || {
        let problems = cluster.client().health().await.map_err(|error| error.to_string())?.problems;
        if problems.iter().any(|problem| problem.contains(says)) { Ok(()) } else { Err(problems.join("; ")) }
    })
    .await;
}

async fn until_healthy(cluster: &Cluster) {
    wait::until("health names no problem", async || {
        let problems = cluster.client().health().await.map_err(|error| error.to_string())?.problems;
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    })
    .await;
}

/// Takes every connection that is left.
async fn take_all_connections(server: &Server) -> Vec<PgConnection> {
    let mut taken = Vec::new();
    loop {
        match PgConnection::connect(&server.url("postgres")).await {
            Ok(connection) => taken.push(connection),
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code().map(String::from));
                assert_eq!(code.as_deref(), Some("53300"), "{error}");
                return taken;
            }
        }
    }
}

#[tokio::test]
async fn a_server_without_a_connection_left_is_named_and_waited_for() {
    let server = Server::start();
    server.configure("max_connections = 30");
    server.stop();
    server.start_again();
    let mut cluster = Cluster::up_on(Layout::Together, &server).await;
    cluster.push("sleeper").await;
    assert_served(&cluster, "before").await;

    // Services that start wait for a connection, and say so.
    cluster.kill_services();
    let taken = take_all_connections(&server).await;
    cluster.launch_services();
    wait::until("the starting service says what it waits for", async || {
        let tail = cluster.service(Part::Both).log_tail();
        if tail.contains("limit of connections; raise max_connections") { Ok(()) } else { Err(tail) }
    })
    .await;
    drop(taken);
    cluster.start_services().await;
    assert_served(&cluster, "started").await;

    // Services that run lose theirs and get none.
    let mut taken = take_all_connections(&server).await;
    let ours =
        "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'dormouse'";
    sqlx::raw_sql(ours).execute(&mut taken[0]).await.expect("a superuser may");
    taken.extend(take_all_connections(&server).await);
    until_problem(&cluster, "limit of connections; raise max_connections").await;
    let error = cluster.client().start(StartInstance::of("sleeper").id("meanwhile")).await;
    if let Err(error) = error {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
    drop(taken);
    until_healthy(&cluster).await;
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn a_server_that_only_reads_is_named_and_its_promotion_is_enough() {
    let server = Server::start();
    let mut cluster = Cluster::up_on(Layout::Together, &server).await;
    cluster.push("sleeper").await;
    assert_served(&cluster, "before").await;
    server.stop();
    server.become_standby();
    server.start_again();
    until_problem(&cluster, "the database is read-only").await;
    // What it has is read; what would change it is refused in words.
    assert_eq!(cluster.get("before").await.status, Status::Completed);
    let error = cluster.client().cancel("nobody").await.expect_err("there is none");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    // Services that start there say so too.
    cluster.kill_services();
    cluster.launch_services();
    wait::until("the starting service says what it waits for", async || {
        let tail = cluster.service(Part::Both).log_tail();
        if tail.contains("the database is read-only") { Ok(()) } else { Err(tail) }
    })
    .await;
    server.promote();
    cluster.start_services().await;
    until_healthy(&cluster).await;
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn a_server_that_is_restarted_under_load_loses_and_doubles_nothing() {
    const INSTANCES: u32 = 30;
    let server = Server::start();
    let cluster = Cluster::up_on(Layout::Together, &server).await;
    cluster.push("sleeper").await;
    let tally = Tally::in_dir(cluster.scratch());
    let input = serde_json::json!({ "sleeps": 3, "pause_ms": 400 });
    for number in 0..INSTANCES {
        let start = StartInstance::of("sleeper").id(format!("i{number}"));
        let start = start.env(tally::VARIABLE, tally.value()).input(&input).expect("JSON");
        cluster.start(start).await;
        if number % 10 == 5 {
            server.stop();
            server.start_again();
        }
    }
    for number in 0..INSTANCES {
        cluster.until_ended(&format!("i{number}"), Status::Completed).await;
    }
    until_healthy(&cluster).await;
    for (instance, attempts) in tally.attempts() {
        let mut once = attempts.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), attempts.len(), "an attempt of {instance} ran twice: {attempts:?}");
    }
    assert_eq!(tally.attempts().len(), usize::try_from(INSTANCES).expect("few"));
}
