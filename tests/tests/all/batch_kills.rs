//! kill -9 of core at every point of a batch of many: what was acknowledged is there, of the rest each request
//! wholly or not at all, nothing twice; and every instance goes on to its end.

use dormouse_management_sdk::Status;
use dormouse_tests::{
    cluster::{Cluster, Database, Layout, Part},
    fault,
    workload::{Amount, Example, Run},
    writers::{Work, Writers},
};

on_both! { invariant_1_killed_at_each_point_of_a_batch }

/// A point (`:n`: its n-th pass), what is written, and what is known of the requests of the batch that was killed there.
struct Case {
    point: &'static str,
    work: Work,
    batch: Batch,
}

enum Batch {
    /// None of them is stored.
    Absent,
    /// All are, and at most so many have been answered.
    Stored { answered: usize },
}

const fn absent(point: &'static str, work: Work) -> Case {
    Case { point, work, batch: Batch::Absent }
}

const fn stored(point: &'static str, work: Work, answered: usize) -> Case {
    Case { point, work, batch: Batch::Stored { answered } }
}

/// In the order in which a batch passes them. Checkpoints alone are a statement that commits by itself.
const CASES: [Case; 11] = [
    absent("store.taken:10", Work::Saves),
    stored("store.committed:10", Work::Saves, 0),
    stored("store.answered:1", Work::Saves, 1),
    stored("store.answered:3", Work::Saves, 3),
    absent("store.taken:10", Work::Mixed),
    absent("store.begun:10", Work::Mixed),
    absent("store.row:1", Work::Mixed),
    absent("store.row:3", Work::Mixed),
    absent("store.before_commit:10", Work::Mixed),
    stored("store.committed:10", Work::Mixed, 0),
    stored("store.answered:2", Work::Mixed, 2),
];

/// Instances that write, and the least batch that is killed. PostgreSQL has four writers, each with its share.
fn sizes(database: Database) -> (usize, usize) {
    match database {
        Database::Sqlite => (24, 8),
        Database::Postgres => (32, 4),
    }
}

async fn invariant_1_killed_at_each_point_of_a_batch(database: Database) {
    let (instances, least) = sizes(database);
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    // A workflow with the real SDK among them, which reconnects by itself.
    cluster.push(Example::Fixity.program()).await;
    let amount = Amount { files: 200, pace_ms: 20, ..Amount::default() };
    let audit = Run::start(&cluster, Example::Fixity, "audit", &amount, &[]).await;
    cluster.until(&audit.id, "runs", |instance| instance.status == Status::Running).await;
    cluster.kill(Part::Environment);
    cluster.set_variable("DORMOUSE_SLOTS", "64");
    cluster.start_services().await;
    let writers = Writers::start(&cluster, instances).await;
    writers.register(&cluster).await;
    for Case { point, work, batch } in CASES {
        cluster.kill(Part::Core);
        cluster.set_variable(fault::SERVICE_VARIABLE, &format!("{point}@{least}"));
        cluster.launch_services();
        cluster.until_core_listens().await;
        writers.register(&cluster).await;
        writers.write_until(work, cluster.until_killed()).await;

        let in_flight = writers.check(&cluster).await;
        assert_eq!(in_flight.stored + in_flight.absent, instances, "{point}: {in_flight:?}");
        let (known, of_batch) = match batch {
            Batch::Absent => (in_flight.absent, least),
            Batch::Stored { answered } => (in_flight.stored, least - answered),
        };
        assert!(known >= of_batch, "{point}, {work:?}: {in_flight:?}, but {of_batch} at least");
        cluster.unset_variable(fault::SERVICE_VARIABLE);
        cluster.start_services().await;
    }
    writers.register(&cluster).await;
    writers.check(&cluster).await;
    assert!(
        writers.acknowledged() > CASES.len() * least,
        "hardly anything was acknowledged: this shows little"
    );
    writers.complete(&cluster).await;
    audit.check(&cluster).await;
    assert_eq!(cluster.attempts(&audit.id).await, 1);
}
