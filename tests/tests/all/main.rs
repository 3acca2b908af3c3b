//! The whole system under test: real services and workflow processes, both databases, real faults.
//!
//! One binary, a module for each subject; `invariant_N` tries to break invariant N of the
//! architecture. A case is written once and runs on SQLite and on PostgreSQL.

/// Runs each case on both databases.
macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $case() { super::$case(dormouse_tests::cluster::Database::Sqlite).await; })+
        }
        mod on_postgres {
            $(#[tokio::test] async fn $case() { super::$case(dormouse_tests::cluster::Database::Postgres).await; })+
        }
    };
}

mod backup;
mod batch_flushes;
mod batch_kills;
mod batch_trace;
mod command;
mod configuration;
mod credentials;
mod encryption;
mod hostile_disk;
mod hostile_fields;
mod hostile_frames;
mod hostile_uploads;
mod images;
mod invariant_1;
mod invariant_10;
mod invariant_2;
mod invariant_3;
mod invariant_4;
mod invariant_5;
mod invariant_6;
mod invariant_7;
mod invariant_8;
mod invariant_9;
mod killed_services;
mod killed_workflow;
mod leases;
mod machines;
mod metrics;
mod postgres_states;
mod requests;
mod resumes;
mod retry;
mod signals;
mod sleeping;
mod spares;
mod tools;
mod upgrade;
mod wakes;
