//! No answer before the flush: the system calls of core under load, beside what its clients received and when.
//!
//! An answer is encrypted, so what ties it to its row is the client: the name of each request stands in clear in what
//! core writes to the database, and the client notes when it had read the answer, and at which port. Core's flushes are
//! made slow, so an answer that does not wait for its own arrives before it, with certainty for some of hundreds.

use std::time::Duration;

use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    trace::{Call, Trace, Tracer},
    writers::{Receipt, Work, Writers},
};

const INSTANCES: usize = 16;
const REQUESTS: usize = 300;
const FLUSH_TAKES: Duration = Duration::from_millis(20);

/// Core under load; its system calls, and what it has acknowledged.
async fn traced(database: Database, calls: &'static str, flush_takes: Duration) -> (Cluster, Trace, Writers) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    let writers = Writers::start(&cluster, INSTANCES).await;
    writers.register(&cluster).await;
    cluster.kill(Part::Core);
    let tracer = Tracer::new(cluster.scratch().join("trace"), calls, flush_takes);
    cluster.trace_core(tracer.clone());
    cluster.launch_services();
    cluster.until_core_listens().await;
    for work in [Work::Saves, Work::Mixed] {
        writers.register(&cluster).await;
        writers.write_until(work, writers.until_acknowledged(REQUESTS)).await;
    }
    let core = cluster.service(Part::Core).pid().number();
    cluster.kill(Part::Core);
    let trace = tracer.until_ended(core).await;
    (cluster, trace, writers)
}

/// Each acknowledged request was durable before the datagram left that may have carried its answer, and before its
/// client had it. Answers how many requests were made durable together, on average.
fn assert_durable_first(trace: &Trace, writers: &Writers, durable: impl Fn(&Trace, &Receipt) -> Call) -> f64 {
    let mut moments = Vec::new();
    for receipt in writers.receipts() {
        let durable = durable(trace, &receipt);
        let Receipt { name, port, at } = &receipt;
        assert!(durable.to <= *at, "{name} was answered at {at}, before it was durable: {durable:?}");
        let sent = trace.first(durable.ended, |call| is_sent(call) && call.port() == Some(*port));
        let sent =
            sent.unwrap_or_else(|| panic!("{name}: nothing was sent to port {port} after {durable:?}"));
        assert!(
            sent.from <= *at,
            "{name} was answered at {at} without a datagram after it was durable: {sent:?}"
        );
        moments.push(durable.ended);
    }
    let requests = moments.len();
    moments.sort_unstable();
    moments.dedup();
    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
    let together = requests as f64 / moments.len() as f64;
    println!("{requests} requests became durable in {} moments", moments.len());
    together
}

fn is_sent(call: &Call) -> bool {
    ["sendmsg", "sendmmsg", "sendto"].contains(&call.name.as_str())
}

/// The end of the first flush of SQLite's log that began after the row had been written to it.
fn flushed(trace: &Trace, receipt: &Receipt) -> Call {
    let is_log = |call: &Call| call.descriptor().ends_with("-wal>");
    let written = trace.first(0, |call| {
        call.name.starts_with("pwrite") && is_log(call) && call.text.contains(&receipt.name)
    });
    let written = written.unwrap_or_else(|| panic!("{} was answered and never written", receipt.name));
    let flushed = trace.first(written.ended, |call| {
        ["fdatasync", "fsync"].contains(&call.name.as_str()) && is_log(call) && call.succeeded()
    });
    flushed.unwrap_or_else(|| panic!("{} was answered and never flushed: {written:?}", receipt.name)).clone()
}

#[tokio::test]
async fn invariant_1_sqlite_is_flushed_before_any_answer_leaves() {
    let calls = "pwrite64,pwritev,pwritev2,fdatasync,fsync,sendmsg,sendmmsg,sendto";
    let (cluster, trace, writers) = traced(Database::Sqlite, calls, FLUSH_TAKES).await;
    let together = assert_durable_first(&trace, &writers, flushed);
    assert!(together > 4.0, "{together} requests for a flush: hardly a batch, this shows little");
    writers.check(&cluster).await;
}

/// What the server sends once a statement outside of any transaction, or the COMMIT, is durable.
const READY_AND_IDLE: &str = r"Z\0\0\0\5I";

/// The end of the first answer of the server that says so, on the connection that the row went to it on.
fn committed(trace: &Trace, receipt: &Receipt) -> Call {
    let told = trace.first(0, |call| {
        ["sendto", "sendmsg", "write", "writev"].contains(&call.name.as_str())
            && call.port().is_none()
            && call.text.contains(&receipt.name)
    });
    let told = told.unwrap_or_else(|| panic!("{} was answered and never stored", receipt.name));
    let committed = trace.first(told.ended, |call| {
        ["recvfrom", "recvmsg", "read"].contains(&call.name.as_str())
            && call.descriptor() == told.descriptor()
            && call.text.contains(READY_AND_IDLE)
    });
    committed.unwrap_or_else(|| panic!("{} was answered and never committed: {told:?}", receipt.name)).clone()
}

#[tokio::test]
async fn invariant_1_postgresql_has_committed_before_any_answer_leaves() {
    let calls = "sendto,sendmsg,sendmmsg,write,writev,recvfrom,recvmsg,read";
    let (cluster, trace, writers) = traced(Database::Postgres, calls, Duration::ZERO).await;
    let together = assert_durable_first(&trace, &writers, committed);
    assert!(together > 1.2, "{together} requests for a commit: hardly a batch, this shows little");
    writers.check(&cluster).await;
}
