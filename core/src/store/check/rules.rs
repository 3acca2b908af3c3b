//! One statement for each thing that must hold of every instance, over a range of keys.
//!
//! Each finds what breaks it: `$1 <` key `<= $2`, in key order, with a number that its sentence
//! may show as `{}`.

use crate::store::sql::{Stmt, stmt};

/// One thing that must hold.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// The invariant that says so.
    pub(super) invariant: u8,
    /// What is wrong, and what to do.
    pub(super) sentence: &'static str,
    pub(super) stmt: Stmt,
    pub(super) scope: Scope,
}

/// Where and with what a rule is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// With the range alone.
    Always,
    /// `$3` is the moment before which something has lasted too long.
    Lasting,
    /// As `Always`, on PostgreSQL only.
    Cluster,
    /// As `Lasting`, on PostgreSQL only.
    LastingCluster,
}

/// Of rows of `instance AS i`.
macro_rules! of_instance {
    ($detail:literal, $broken:literal) => {
        stmt!(concat!(
            "SELECT i.key, i.tenant, i.id, CAST(",
            $detail,
            " AS BIGINT) AS detail FROM instance i WHERE i.key > $1 AND i.key <= $2 AND (",
            $broken,
            ") ORDER BY i.key"
        ))
    };
}

/// Numbers 1, 2, 3 … of a child table have a gap.
macro_rules! gaps {
    ($table:literal, $number:literal) => {
        stmt!(concat!(
            "SELECT i.key, i.tenant, i.id, g.top AS detail
               FROM (SELECT instance, COUNT(*) AS n, MAX(",
            $number,
            ") AS top FROM ",
            $table,
            " WHERE instance > $1 AND instance <= $2 GROUP BY instance) g
               JOIN instance i ON i.key = g.instance WHERE g.n <> g.top ORDER BY i.key"
        ))
    };
}

/// Rows of a child table whose instance is not there.
macro_rules! orphans {
    ($table:literal) => {
        stmt!(concat!(
            "SELECT c.instance AS key, '' AS tenant, '' AS id, COUNT(*) AS detail FROM ",
            $table,
            " c WHERE c.instance > $1 AND c.instance <= $2
                AND NOT EXISTS (SELECT 1 FROM instance i WHERE i.key = c.instance)
              GROUP BY c.instance ORDER BY c.instance"
        ))
    };
}

macro_rules! rules {
    ($($scope:ident $invariant:literal $stmt:expr, $sentence:literal;)+) => {
        pub(super) const RULES: &[Rule] = &[
            $(Rule { invariant: $invariant, sentence: $sentence, stmt: $stmt, scope: Scope::$scope }),+
        ];
    };
}

/// What an interrupted deletion has begun with: its instance breaks other rules for no other reason.
pub(super) const BEING_DELETED: Stmt = of_instance!(
    "0",
    "i.ended_at IS NOT NULL
     AND NOT EXISTS (SELECT 1 FROM event e WHERE e.instance = i.key AND e.number = 1)"
);
pub(super) const BEING_DELETED_SENTENCE: &str =
    "its deletion was begun and is not finished; if that stays, delete it again";

/// Unread signals of those that rest without a wake: none of them may be waited for.
pub(super) const UNREAD_AT_REST: Stmt = stmt!(
    "SELECT DISTINCT i.key, s.name FROM instance i JOIN signal s ON s.instance = i.key AND s.consumed_by IS NULL
      WHERE i.key > $1 AND i.key <= $2 AND i.state = 'SUSPENDED' AND i.wake_at IS NULL AND NOT i.open"
);

rules! {
    Always 7 of_instance!("0", "i.node IS NOT NULL AND NOT EXISTS (SELECT 1 FROM node n WHERE n.id = i.node)"),
        "it runs on a node that does not exist; stop the instance, or restore the table node from a backup";
    Lasting 7 of_instance!("0", "EXISTS (SELECT 1 FROM node n WHERE n.id = i.node AND n.lost AND n.renewed_at <= $3)"),
        "it runs on a node whose lease has been lost for long, and nobody took over; start a node";
    LastingCluster 7 of_instance!("0", "EXISTS (SELECT 1 FROM node n WHERE n.id = i.node AND NOT n.lost AND n.renewed_at <= $3)"),
        "it runs on a node that has given no sign of life for long, and nobody took over; start that node, or another";
    Lasting 7 of_instance!("0", "i.wake_at IS NOT NULL AND NOT i.paused AND i.wake_at <= $3
            AND NOT EXISTS (SELECT 1 FROM tenant t WHERE t.name = i.tenant AND t.max_running IS NOT NULL)
            AND EXISTS (SELECT 1 FROM node n WHERE NOT n.lost AND NOT n.draining AND n.not_claiming = ''
                           AND n.running < n.slots AND n.renewed_at > $3)"),
        "its wake has been due for long, and nodes with free slots do not claim it; look at the log of a node";
    Always 7 of_instance!("0", "i.ended_at IS NULL AND i.state <> 'RUNNING' AND i.wake_at IS NULL AND (i.state <> 'SUSPENDED' OR i.open)"),
        "it has no wake, so nothing will ever launch it; stop it, or restore the database from a backup";
    Always 7 of_instance!("0", "(i.state = 'RUNNING' OR i.open) AND i.node IS NULL"),
        "it runs or is being launched, and no node is named; stop it, or restore the database from a backup";
    Always 7 of_instance!("0", "NOT EXISTS (SELECT 1 FROM instance_start s WHERE s.instance = i.key)"),
        "what its start asked for is not there, so it cannot be launched; restore the database from a backup";
    Always 7 of_instance!("0", "i.ended_at IS NULL AND NOT EXISTS (SELECT 1 FROM image m WHERE m.digest = i.image_digest)"),
        "its image is not there, so it cannot be launched; push the same binary again";
    Cluster 7 of_instance!("0", "i.ended_at IS NULL AND EXISTS (SELECT 1 FROM image m WHERE m.digest = i.image_digest AND m.chunks = 0)"),
        "the bytes of its image are not in the database; start the node that it was pushed to, or push it again";
    Always 2 of_instance!("i.attempt", "EXISTS (SELECT 1 FROM checkpoint c WHERE c.instance = i.key AND c.attempt > i.attempt)"),
        "a checkpoint is of an attempt above {}, its newest; restore the database from a backup";
    Always 2 of_instance!("i.attempt", "EXISTS (SELECT 1 FROM attempt a WHERE a.instance = i.key AND a.attempt > i.attempt)"),
        "an attempt above {}, its newest, is recorded; restore the database from a backup";
    Always 2 of_instance!("i.attempt", "EXISTS (SELECT 1 FROM signal s WHERE s.instance = i.key AND s.consumed_by > i.attempt)"),
        "a signal was consumed by an attempt above {}, its newest; restore the database from a backup";
    Always 1 of_instance!("i.attempt", "i.attempt > 0 AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.instance = i.key AND a.attempt = i.attempt)"),
        "its attempt {} is not recorded, so it cannot register; restore the database from a backup";
    Always 1 gaps!("attempt", "attempt"),
        "of its attempts 1 to {} some are missing; restore the database from a backup";
    Always 1 gaps!("checkpoint", "number"),
        "of its checkpoints 1 to {} some are missing: their steps run again; restore the database from a backup";
    Always 1 gaps!("event", "number"),
        "of its events 1 to {} some are missing; restore the database from a backup";
    Always 5 gaps!("signal", "number"),
        "of its signals 1 to {} some are missing; send them again, or restore the database from a backup";
    Always 5 stmt!("SELECT i.key, i.tenant, i.id, g.newest AS detail
           FROM (SELECT instance, name, MAX(CASE WHEN consumed_by IS NULL THEN NULL ELSE number END) AS newest,
                        MIN(CASE WHEN consumed_by IS NULL THEN number END) AS unread
                   FROM signal WHERE instance > $1 AND instance <= $2 GROUP BY instance, name) g
           JOIN instance i ON i.key = g.instance WHERE g.unread < g.newest ORDER BY i.key"),
        "its signal {} was consumed before an older one of the same name; restore the database from a backup";
    Always 5 stmt!("SELECT i.key, i.tenant, i.id, g.n AS detail
           FROM (SELECT instance, COUNT(*) AS n FROM signal
                  WHERE instance > $1 AND instance <= $2 AND consumed_by IS NOT NULL GROUP BY instance) g
           JOIN instance i ON i.key = g.instance
          WHERE g.n > (SELECT COUNT(*) FROM checkpoint c
                        WHERE c.instance = g.instance AND c.kind = 'signal' AND c.data IS NOT NULL)
          ORDER BY i.key"),
        "{} signals were consumed, and fewer waits have saved one; restore the database from a backup";
    Always 6 of_instance!("0", "i.ended_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM instance_ending e WHERE e.instance = i.key)"),
        "it has ended, and what its ending said is not there; restore the database from a backup, or delete it";
    Always 6 of_instance!("0", "EXISTS (SELECT 1 FROM instance_ending e WHERE e.instance = i.key
            AND ((i.state = 'COMPLETED' AND e.output IS NULL) OR (i.state = 'FAILED' AND e.code IS NULL)))"),
        "its ending lacks the output or the failure that belongs to its state; restore the database from a backup, or delete it";
    Always 6 of_instance!("0", "i.ended_at IS NULL AND EXISTS (SELECT 1 FROM instance_ending e WHERE e.instance = i.key)"),
        "it has not ended, and an ending is stored: it can never end; restore the database from a backup";
    Always 1 orphans!("checkpoint"), "{} checkpoints belong to no instance; restore the database from a backup";
    Always 5 orphans!("signal"), "{} signals belong to no instance; restore the database from a backup";
    Always 1 orphans!("event"), "{} events belong to no instance; restore the database from a backup";
    Always 1 orphans!("attempt"), "{} attempts belong to no instance; restore the database from a backup";
    Always 1 orphans!("instance_start"), "{} start belongs to no instance; restore the database from a backup";
    Always 1 orphans!("instance_ending"), "{} ending belongs to no instance; restore the database from a backup";
}

/// Images whose chunks are not what `image.chunks` says; a page behind a digest.
pub(super) const IMAGES: Stmt = stmt!(
    "SELECT m.digest, m.chunks, m.size,
            (SELECT COUNT(*) FROM image_chunk c WHERE c.digest = m.digest) AS n,
            (SELECT COALESCE(MAX(number), 0) FROM image_chunk c WHERE c.digest = m.digest) AS top,
            (SELECT CAST(COALESCE(SUM(LENGTH(data)), 0) AS BIGINT) FROM image_chunk c WHERE c.digest = m.digest) AS bytes
       FROM image m WHERE m.digest > $1 ORDER BY m.digest LIMIT 0 + $2"
);
