//! Connections to PostgreSQL, and notices between processes by LISTEN and NOTIFY.
//!
//! READ COMMITTED, with row locks as guards. `synchronous_commit` is set on each connection,
//! never inherited (invariant 1). NOTIFY runs after the commits, gathered, on a connection of
//! its own: inside writing transactions it would make them commit one at a time.

use std::{io, str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _, Executor as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Error, Result},
    notices::{Hub, Notice, decode, encode, gather},
    open::Connector,
    sql::{Conn, Plans, Stmt, args, stmt},
};

/// The channel of a database's stores.
const CHANNEL: &str = "dormouse";
/// Longest notice; PostgreSQL takes less than 8000 bytes.
const PAYLOAD: usize = 7000;
/// Pause before the next try to hear or tell peers.
const RETRY: Duration = Duration::from_secs(1);
/// Time for a new connection, and for one statement of those that nobody has given a time yet.
const CONNECT: Duration = Duration::from_secs(5);
/// Each statement walks an index in its order, whatever the statistics say of the tables at that moment: while a table is small everything costs the same, and the plan that is taken then is kept while
/// it grows. One plan is kept for all arguments; planning anew for each costs more than most statements
/// themselves. A plan that cannot do without what is off is priced so high that the server would compile it:
/// that costs more than it could win here.
const PLANNING: &str = "SET plan_cache_mode = force_generic_plan;
     SET enable_seqscan = off;
     SET enable_bitmapscan = off;
     SET enable_mergejoin = off;
     SET enable_material = off;
     SET max_parallel_workers_per_gather = 0;
     SET jit = off";
/// After so long without a notice the connection that hears them is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(10);

/// A server and a database on it.
#[derive(Debug)]
pub(super) struct PostgresServer {
    options: PgConnectOptions,
}

impl PostgresServer {
    pub(super) fn new(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url).map_err(|source| Error::Open {
            database: "postgres://…".to_owned(),
            problem: "its address is malformed; give postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned(),
            source: Some(source),
        })?;
        let options = options.application_name("dormouse").statement_cache_capacity(256);
        Ok(Self { options: options.disable_statement_logging() })
    }

    pub(super) fn name(&self) -> String {
        let database = self.options.get_database().unwrap_or_default();
        format!("postgres://{}:{}/{database}", self.options.get_host(), self.options.get_port())
    }

    pub(super) async fn connect(&self, read_only: bool) -> Result<Conn, sqlx::Error> {
        timeout(CONNECT, self.prepare(read_only)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn prepare(&self, read_only: bool) -> Result<Conn, sqlx::Error> {
        let conn = Box::new(self.options.connect().await?);
        let mut conn = Conn::Postgres { conn, answer_within: Some(CONNECT), plans: Plans::new() };
        // A time limit of the role would cancel a COMMIT that waits for its standby, which then succeeds with a mere
        // warning: our own limit gives the connection up instead.
        // A lock that somebody else never releases must not hold up everybody behind us; nor may
        // ours hold up others, should the network take us away in the middle of a transaction.
        conn.run(
            "SET synchronous_commit = on;
             SET statement_timeout = 0;
             SET default_transaction_isolation = 'read committed';
             SET lock_timeout = '20s';
             SET idle_in_transaction_session_timeout = '15s';
             SET tcp_keepalives_idle = 10;
             SET tcp_keepalives_interval = 5;
             SET tcp_keepalives_count = 3;
             SET client_min_messages = warning;
             SET TIME ZONE 'UTC'",
        )
        .await?;
        conn.run(PLANNING).await?;
        if read_only {
            conn.run("SET default_transaction_read_only = on").await?;
        }
        Ok(conn)
    }

    /// Hears the peers until `closing`. A lost connection is made anew, and everybody is told
    /// to look at everything.
    pub(super) async fn hear(&self, origin: &str, hub: &Hub, closing: &CancellationToken) {
        loop {
            let heard = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                heard = self.listen(origin, hub) => heard,
            };
            if let Err(error) = heard {
                tracing::warn!(%error, "hearing notices failed; polls go on");
            }
            hub.heard(Notice::Everything);
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn listen(&self, origin: &str, hub: &Hub) -> Result<(), sqlx::Error> {
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT);
        let pool = options.connect_lazy_with(self.options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        hub.heard(Notice::Everything); // what was told before we heard
        loop {
            match timeout(SILENCE, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    for notice in decode(origin, notification.payload()) {
                        hub.heard(notice);
                    }
                }
                // The connection was lost.
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                // A connection that was cut without a word is as quiet as an idle cluster.
                Err(_) => {
                    timeout(CONNECT, listener.execute("SELECT 1")).await.map_err(|_| late())??;
                }
            }
        }
    }
}

/// It did not answer in time.
fn late() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::TimedOut.into())
}

/// Tells the peers what this process committed, until `closing`.
pub(super) async fn tell(
    connector: Connector,
    origin: String,
    mut outbox: mpsc::Receiver<Notice>,
    closing: CancellationToken,
) {
    const NOTIFY: Stmt = stmt!("SELECT pg_notify($1, $2) IS NULL AS told");
    let mut conn: Option<Conn> = None;
    loop {
        let gathered = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            gathered = gather(&mut outbox) => gathered,
        };
        let Some(notices) = gathered else { break };
        let mut open = match conn.take() {
            Some(open) => open,
            None => match connector.connect(false).await {
                Ok(open) => open,
                // Peers poll; the next notice tries again.
                Err(error) => {
                    tracing::warn!(%error, "telling peers failed; they poll");
                    continue;
                }
            },
        };
        let mut told = Ok(());
        for text in encode(&origin, &notices, PAYLOAD) {
            told = open.fetch(&NOTIFY, args![CHANNEL, &text]).await.map(drop);
        }
        match told {
            Ok(()) => conn = Some(open),
            Err(error) => tracing::warn!(%error, "telling peers failed; they poll"),
        }
    }
    if let Some(conn) = conn {
        conn.close().await;
    }
}
