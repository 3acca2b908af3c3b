//! Several saves as one statement: a text for each database, side by side, and their arguments.
//!
//! It stores what the scalar statement of `checkpoints` would store, one save after the other: the
//! same fence under the same row locks (invariant 2), nothing over what stands (invariant 3), numbers
//! of an instance without gaps. What it stores nothing for it leaves to the scalar one, which knows
//! why. The differential test holds both equal.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::{Arguments as _, postgres::PgArguments, sqlite::SqliteArguments};

use super::{
    checkpoints::{Columns, Save, Saved},
    error::Result,
    sql::{Kind, SetArgs, Stmt, Tx, stmt},
};
use crate::domain::{id::InstanceKey, time::Micros};

/// On SQLite the rows come as JSON (each an array, see [`Asked`]), their payloads as one blob. On
/// PostgreSQL an array for each column; the guards are locked in key order, each row once, and the
/// clock is read behind each lock.
const SAVE_SET: Stmt = Stmt { sqlite: SQLITE, postgres: POSTGRES };

/// The look for what stands is a scalar one, so that no plan reads more than an index's entry.
macro_rules! numbered {
    () => {
        "COALESCE((SELECT MAX(c.number) FROM checkpoint AS c WHERE c.instance = asked.instance), 0)
             + ROW_NUMBER() OVER (PARTITION BY asked.instance ORDER BY asked.ord) AS number"
    };
}
macro_rules! nothing_stands {
    () => {
        "(SELECT c.number FROM checkpoint AS c
            WHERE c.instance = asked.instance AND c.name = asked.name AND c.op_key = asked.op_key
              AND c.slot = asked.slot) IS NULL"
    };
}
macro_rules! target {
    () => {
        "INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, due_at, data, encoding,
                                 type_name, note, stored_at)"
    };
}
macro_rules! stored {
    () => {
        "RETURNING instance, name, op_key, slot, due_at, stored_at"
    };
}

const SQLITE: &str = stmt!(concat!(
    "WITH asked AS MATERIALIZED (
         SELECT key AS ord, value ->> 0 AS instance, value ->> 1 AS tenant, value ->> 2 AS attempt,
                value ->> 3 AS session, value ->> 4 AS name, value ->> 5 AS op_key, value ->> 6 AS slot,
                value ->> 7 AS kind, value ->> 8 AS due_at, value ->> 9 AS due_in, value ->> 10 AS start,
                value ->> 11 AS bytes, value ->> 12 AS encoding, value ->> 13 AS type_name,
                value ->> 14 AS note
           FROM json_each($1)),
     next AS (
         SELECT asked.*, ",
    numbered!(),
    " FROM asked CROSS JOIN instance AS i ON i.key = asked.instance
          WHERE i.tenant = asked.tenant AND i.state = 'RUNNING' AND i.attempt = asked.attempt
            AND i.session = asked.session AND ",
    nothing_stands!(),
    ") ",
    target!(),
    " SELECT instance, number, name, op_key, slot, kind, attempt, COALESCE(due_at, $3 + due_in),
             CASE WHEN encoding IS NOT NULL THEN substr($2, start, bytes) END, encoding, type_name, note, $3
        FROM next WHERE number <= $4 ",
    stored!()
))
.sqlite;

const POSTGRES: &str = stmt!(concat!(
    "WITH guard AS MATERIALIZED (
         SELECT key, tenant, attempt, session FROM instance
          WHERE key = ANY ($1) AND state = 'RUNNING' ORDER BY key {for_share}),
     held AS MATERIALIZED (
         SELECT key, tenant, attempt, session, COALESCE($15, {clock}) AS now FROM guard),
     next AS (
         SELECT asked.*, held.now, ",
    numbered!(),
    " FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) WITH ORDINALITY
               AS asked (instance, tenant, attempt, session, name, op_key, slot, kind, due_at, due_in, data,
                         encoding, type_name, note, ord)
           JOIN held ON held.key = asked.instance AND held.tenant = asked.tenant
                    AND held.attempt = asked.attempt AND held.session = asked.session
          WHERE ",
    nothing_stands!(),
    ") ",
    target!(),
    " SELECT instance, number, name, op_key, slot, kind, attempt, COALESCE(due_at, now + due_in), data,
             encoding, type_name, note, now
        FROM next WHERE number <= $16
          ON CONFLICT (instance, name, op_key, slot) DO NOTHING ",
    stored!()
))
.postgres;

/// Where a save goes. No set has two of one place: the second waits for the first's outcome.
type Place<'a> = (InstanceKey, &'a str, &'a str, u32);

/// Runs them as one statement. An answer for each; `None`: nothing was stored for it.
pub(super) async fn run(saves: &[&Save], tx: &mut Tx<'_>) -> Result<Vec<Option<(Saved, Micros)>>> {
    let mut places = HashMap::with_capacity(saves.len());
    let mut asked = Vec::with_capacity(saves.len());
    for (at, save) in saves.iter().enumerate() {
        let columns = save.columns();
        places.entry(place(&columns)).or_insert_with(|| {
            asked.push(columns);
            at
        });
    }
    let max = saves.iter().map(|save| save.max).min().unwrap_or(0);
    let args = match tx.kind() {
        Kind::Sqlite => SetArgs::Sqlite(sqlite_args(&asked, tx.given_now(), max)?),
        Kind::Postgres => SetArgs::Postgres(postgres_args(&asked, tx.given_now(), max)?),
    };
    let bytes = asked.iter().map(|columns| columns.data.map_or(0, <[u8]>::len)).sum();
    let mut answers: Vec<_> = saves.iter().map(|_| None).collect();
    for row in tx.write_set(&SAVE_SET, args, asked.len(), bytes).await? {
        let place = (row.instance("instance")?, row.str("name")?, row.str("op_key")?, row.small("slot")?);
        if let Some(&at) = places.get(&place) {
            answers[at] = Some(saves[at].stored(&row)?);
        }
    }
    Ok(answers)
}

fn place<'a>(columns: &Columns<'a>) -> Place<'a> {
    (columns.instance, columns.name, columns.op_key, columns.slot)
}

/// A row of SQLite's JSON.
#[derive(Serialize)]
struct Asked<'a>(
    i64,
    &'a str,
    u32,
    u32,
    &'a str,
    &'a str,
    u32,
    &'a str,
    Option<i64>,
    Option<i64>,
    usize,
    usize,
    Option<&'a str>,
    Option<&'a str>,
    &'a str,
);

fn sqlite_args(asked: &[Columns<'_>], now: Option<Micros>, max: u64) -> Result<SqliteArguments> {
    let mut blob = Vec::with_capacity(asked.iter().map(|c| c.data.map_or(0, <[u8]>::len)).sum());
    let rows = asked.iter().map(|c| {
        let start = blob.len() + 1; // substr counts from 1
        let data = c.data.unwrap_or_default();
        blob.extend_from_slice(data);
        Asked(
            c.instance.0,
            c.tenant,
            c.by.attempt.0,
            c.by.session.0,
            c.name,
            c.op_key,
            c.slot,
            c.kind,
            c.due_at,
            c.due_in,
            start,
            data.len(),
            c.encoding,
            c.type_name,
            &c.note,
        )
    });
    let rows: Vec<Asked<'_>> = rows.collect();
    let json = serde_json::to_string(&rows).expect("numbers and texts are JSON");
    let mut args = SqliteArguments::default();
    let added = args
        .add(json)
        .and_then(|()| args.add(blob))
        .and_then(|()| args.add(now.map(|now| now.0)))
        .and_then(|()| args.add(super::sql::count(max)));
    added.map_err(sqlx::Error::Encode)?;
    Ok(args)
}

fn postgres_args(asked: &[Columns<'_>], now: Option<Micros>, max: u64) -> Result<PgArguments> {
    let mut args = PgArguments::default();
    macro_rules! columns {
        ($($column:expr),+ $(,)?) => {
            Ok(())$(.and_then(|()| args.add(asked.iter().map($column).collect::<Vec<_>>())))+
        };
    }
    let added = columns!(
        |c| c.instance.0,
        |c| c.tenant,
        |c| i64::from(c.by.attempt.0),
        |c| i64::from(c.by.session.0),
        |c| c.name,
        |c| c.op_key,
        |c| i64::from(c.slot),
        |c| c.kind,
        |c| c.due_at,
        |c| c.due_in,
        |c| c.data,
        |c| c.encoding,
        |c| c.type_name,
        |c| c.note.as_ref(),
    )
    .and_then(|()| args.add(now.map(|now| now.0)))
    .and_then(|()| args.add(super::sql::count(max)));
    added.map_err(sqlx::Error::Encode)?;
    Ok(args)
}
