//! One text for both databases: statements, their arguments, rows, and the transaction.
//!
//! [`stmt!`] turns a text with fragments like `{for_update}` into one text per dialect when
//! the crate is compiled; an unknown fragment does not compile. [`Tx`] is the only thing that
//! begins and ends transactions. It decides nothing and knows no table.
//!
//! A limit is written `LIMIT 0 + $1`: SQLite's planner looks at the value of a bare one, and so prepares the
//! statement anew whenever one is bound.

use std::{borrow::Cow, io, time::Duration};

use sqlx::{
    Connection as _, PgConnection, Postgres, Row as _, Sqlite, SqliteConnection,
    postgres::{PgArguments, PgRow},
    sqlite::{SqliteArguments, SqliteRow},
};
use tokio::time::timeout;

use super::{
    Clock, Notice,
    error::{Error, Result},
};
use crate::domain::{
    access::{Role, TokenName},
    id::{Attempt, Digest, InstanceId, InstanceKey, Key, Name, NodeId, ReplicaId, Session, Tenant},
    time::Micros,
};

/// Which database a text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One machine, one file.
    Sqlite,
    /// A cluster's server.
    Postgres,
}

impl Kind {
    /// "sqlite" or "postgres".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// Fragments and what they mean on SQLite and on PostgreSQL. SQLite has one writer, so its
/// locks are empty.
pub(super) const FRAGMENTS: &[(&str, &str, &str)] = &[
    // A transition: nobody else may change the row or hang a checkpoint on it.
    ("{for_update}", "", "FOR NO KEY UPDATE"),
    // A checkpoint: the row must stay as it is, others may say the same.
    ("{for_share}", "", "FOR SHARE"),
    // The same of the table `n` alone, where others are joined.
    ("{for_share_of_n}", "", "FOR SHARE OF n"),
    // A claim: rows that somebody holds are somebody else's.
    ("{skip_locked}", "", "FOR NO KEY UPDATE SKIP LOCKED"),
    // A deletion: nobody may come to refer to the row either.
    ("{for_delete}", "", "FOR UPDATE"),
    ("{take_skip_locked}", "", "FOR UPDATE SKIP LOCKED"),
    // The elements of the JSON array `$1`, one row each: `value ->> 0` is the first entry of one that is an
    // array itself.
    ("{each}", "json_each($1)", "json_array_elements(CAST($1 AS json))"),
    // The numbers of the JSON array `$1`.
    (
        "{keys}",
        "SELECT value FROM json_each($1)",
        "SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST($1 AS json))",
    ),
    // Whether the server takes no writes: a standby, or an administrator's choice.
    ("{read_only}", "0", "CASE WHEN current_setting('transaction_read_only') = 'on' THEN 1 ELSE 0 END"),
    // The database's clock in microseconds; on SQLite it is the machine's and always an argument.
    ("{clock}", "NULL", "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"),
];

/// A statement in both dialects. Made by [`stmt!`], or of one text for each where several statements go in
/// one: separated by semicolons on SQLite, where all of them see the same arguments and their rows come one
/// after the other; parts of one statement (`WITH`) on PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stmt {
    pub(super) sqlite: &'static str,
    pub(super) postgres: &'static str,
}

/// Compiles a text with fragments for both databases.
macro_rules! stmt {
    ($text:expr) => {{
        const TEXT: &str = $text;
        const SQLITE: [u8; $crate::store::sql::expanded_len(TEXT, true)] =
            $crate::store::sql::expand(TEXT, true);
        const POSTGRES: [u8; $crate::store::sql::expanded_len(TEXT, false)] =
            $crate::store::sql::expand(TEXT, false);
        $crate::store::sql::Stmt {
            sqlite: $crate::store::sql::utf8(&SQLITE),
            postgres: $crate::store::sql::utf8(&POSTGRES),
        }
    }};
}
pub(super) use stmt;

/// The index of the fragment that begins at `at`.
const fn fragment_at(text: &[u8], at: usize) -> usize {
    let mut which = 0;
    while which < FRAGMENTS.len() {
        let name = FRAGMENTS[which].0.as_bytes();
        let mut same = 0;
        while same < name.len() && at + same < text.len() && text[at + same] == name[same] {
            same += 1;
        }
        if same == name.len() {
            return which;
        }
        which += 1;
    }
    panic!("unknown fragment in a statement: see FRAGMENTS")
}

const fn replacement(which: usize, sqlite: bool) -> &'static [u8] {
    if sqlite { FRAGMENTS[which].1.as_bytes() } else { FRAGMENTS[which].2.as_bytes() }
}

/// Bytes of `text` once its fragments are replaced.
pub(super) const fn expanded_len(text: &str, sqlite: bool) -> usize {
    let text = text.as_bytes();
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        if text[at] == b'{' {
            let which = fragment_at(text, at);
            len += replacement(which, sqlite).len();
            at += FRAGMENTS[which].0.len();
        } else {
            len += 1;
            at += 1;
        }
    }
    len
}

/// `text` with its fragments replaced.
pub(super) const fn expand<const N: usize>(text: &str, sqlite: bool) -> [u8; N] {
    let text = text.as_bytes();
    let mut out = [0; N];
    let (mut at, mut to) = (0, 0);
    while at < text.len() {
        if text[at] == b'{' {
            let which = fragment_at(text, at);
            let with = replacement(which, sqlite);
            let mut i = 0;
            while i < with.len() {
                out[to] = with[i];
                to += 1;
                i += 1;
            }
            at += FRAGMENTS[which].0.len();
        } else {
            out[to] = text[at];
            to += 1;
            at += 1;
        }
    }
    out
}

/// The text again.
pub(super) const fn utf8(bytes: &'static [u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("fragments are ASCII"),
    }
}

/// One argument of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    Int(Option<i64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
    Flag(Option<bool>),
}

/// The arguments `$1`, `$2` … of a statement.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Arg::from($value)),*] };
}
pub(super) use args;

macro_rules! arguments {
    ($($type:ty => |$value:ident| $arg:expr;)+) => {
        $(impl<'a> From<$type> for Arg<'a> {
            fn from($value: $type) -> Self { $arg }
        })+
    };
}

arguments! {
    i64 => |v| Self::Int(Some(v));
    Option<i64> => |v| Self::Int(v);
    u32 => |v| Self::Int(Some(i64::from(v)));
    Option<u32> => |v| Self::Int(v.map(i64::from));
    u8 => |v| Self::Int(Some(i64::from(v)));
    u64 => |v| Self::Int(Some(count(v)));
    Option<u64> => |v| Self::Int(v.map(count));
    bool => |v| Self::Flag(Some(v));
    Option<bool> => |v| Self::Flag(v);
    &'a str => |v| Self::Text(Some(v));
    Option<&'a str> => |v| Self::Text(v);
    &'a String => |v| Self::Text(Some(v));
    &'a Cow<'a, str> => |v| Self::Text(Some(v));
    &'a [u8] => |v| Self::Blob(Some(v));
    Option<&'a [u8]> => |v| Self::Blob(v);
    &'a Vec<u8> => |v| Self::Blob(Some(v));
    Micros => |v| Self::Int(Some(v.0));
    Option<Micros> => |v| Self::Int(v.map(|at| at.0));
    InstanceKey => |v| Self::Int(Some(v.0));
    Attempt => |v| Self::Int(Some(i64::from(v.0)));
    Session => |v| Self::Int(Some(i64::from(v.0)));
    &'a Tenant => |v| Self::Text(Some(v.as_str()));
    &'a TokenName => |v| Self::Text(Some(v.as_str()));
    Role => |v| Self::Text(Some(v.as_str()));
    &'a InstanceId => |v| Self::Text(Some(v.as_str()));
    &'a Name => |v| Self::Text(Some(v.as_str()));
    &'a Key => |v| Self::Text(Some(v.as_str()));
    &'a NodeId => |v| Self::Text(Some(v.as_str()));
    &'a ReplicaId => |v| Self::Text(Some(v.as_str()));
    Option<&'a NodeId> => |v| Self::Text(v.map(NodeId::as_str));
    Option<&'a Name> => |v| Self::Text(v.map(Name::as_str));
}

/// A count as a column; what is beyond i64 stays at its end.
pub(super) fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A text that people or programs wrote freely: NUL, which PostgreSQL cannot store, is shown.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// The arguments of a statement over many rows: each database has its own.
pub(super) enum SetArgs {
    Sqlite(SqliteArguments),
    Postgres(PgArguments),
}

/// A connection that its task owns for life.
#[derive(Debug)]
pub(super) enum Conn {
    Sqlite(Box<SqliteConnection>),
    Postgres {
        conn: Box<PgConnection>,
        /// How long one statement may take; none: for ever. A connection that is cut without a
        /// word would otherwise hold up its task until the system gives up, for many minutes.
        answer_within: Option<Duration>,
        plans: Plans,
    },
}

/// When a connection to PostgreSQL plans anew.
///
/// The server plans a prepared statement once, for the tables as they are then, and keeps the plan until
/// their statistics are gathered again. Made while a table had five rows, it may read over all of them, and
/// that would be what everybody waits for a minute later. So a connection forgets its plans each time it has run
/// twice as many statements as before: whatever it fills has then at most doubled under one plan.
#[derive(Debug)]
pub(super) struct Plans {
    run: u64,
    forget_at: u64,
}

impl Plans {
    /// Statements after which plans are forgotten for the first time.
    const FIRST: u64 = 256;

    pub(super) fn new() -> Self {
        Self { run: 0, forget_at: Self::FIRST }
    }

    fn ran(&mut self) {
        self.run += 1;
    }

    /// Whether it is time; then the next time is twice as far.
    fn are_old(&mut self) -> bool {
        let old = self.run >= self.forget_at;
        if old {
            self.forget_at = self.run.saturating_mul(2);
        }
        old
    }
}

/// Waits for one answer. Late is the same as lost: the connection is of no more use, since the
/// answer may still come, and a commit that was asked for has an unknown outcome.
async fn answered<T>(
    within: Option<Duration>,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(within) = within else { return call.await };
    timeout(within, call).await.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

macro_rules! bound {
    ($db:ty, $text:expr, $args:expr) => {{
        let mut query = sqlx::query::<$db>($text);
        for arg in $args {
            query = match *arg {
                Arg::Int(value) => query.bind(value),
                Arg::Text(value) => query.bind(value),
                Arg::Blob(value) => query.bind(value),
                Arg::Flag(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Conn {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres { .. } => Kind::Postgres,
        }
    }

    /// How long one statement may take from now on; a file is not waited for.
    pub(super) fn set_answer_within(&mut self, limit: Option<Duration>) {
        if let Self::Postgres { answer_within, .. } = self {
            *answer_within = limit;
        }
    }

    /// Forgets plans that were made for much smaller tables. Between transactions only.
    pub(super) async fn refresh_plans(&mut self) -> Result<(), sqlx::Error> {
        let old = match self {
            Self::Postgres { plans, .. } => plans.are_old(),
            Self::Sqlite(_) => false,
        };
        if old { self.run("DISCARD PLANS").await } else { Ok(()) }
    }

    /// Runs a text without arguments, perhaps of several statements.
    pub(super) async fn run(&mut self, text: &'static str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(conn) => sqlx::raw_sql(text).execute(&mut **conn).await.map(drop),
            Self::Postgres { conn, answer_within, .. } => {
                answered(*answer_within, sqlx::raw_sql(text).execute(&mut **conn)).await.map(drop)
            }
        }
    }

    pub(super) async fn execute(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<u64, sqlx::Error> {
        match self {
            Self::Sqlite(conn) => {
                Ok(bound!(Sqlite, stmt.sqlite, args).execute(&mut **conn).await?.rows_affected())
            }
            Self::Postgres { conn, answer_within, plans } => {
                plans.ran();
                let call = bound!(Postgres, stmt.postgres, args).execute(&mut **conn);
                Ok(answered(*answer_within, call).await?.rows_affected())
            }
        }
    }

    pub(super) async fn fetch(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Vec<Row>, sqlx::Error> {
        let text = stmt.sqlite;
        match self {
            Self::Sqlite(conn) => {
                let rows = bound!(Sqlite, stmt.sqlite, args).fetch_all(&mut **conn).await?;
                Ok(rows.into_iter().map(|row| Row { cells: Cells::Sqlite(row), text }).collect())
            }
            Self::Postgres { conn, answer_within, plans } => {
                plans.ran();
                let call = bound!(Postgres, stmt.postgres, args).fetch_all(&mut **conn);
                let rows = answered(*answer_within, call).await?;
                Ok(rows.into_iter().map(|row| Row { cells: Cells::Postgres(row), text }).collect())
            }
        }
    }

    /// As [`Self::fetch`], over many rows. Arguments of the other database are a defect.
    async fn fetch_set(&mut self, stmt: &Stmt, args: SetArgs) -> Result<Vec<Row>, sqlx::Error> {
        let text = stmt.sqlite;
        match (self, args) {
            (Self::Sqlite(conn), SetArgs::Sqlite(args)) => {
                let rows = sqlx::query_with(stmt.sqlite, args).fetch_all(&mut **conn).await?;
                Ok(rows.into_iter().map(|row| Row { cells: Cells::Sqlite(row), text }).collect())
            }
            (Self::Postgres { conn, answer_within, plans }, SetArgs::Postgres(args)) => {
                plans.ran();
                let call = sqlx::query_with(stmt.postgres, args).fetch_all(&mut **conn);
                let rows = answered(*answer_within, call).await?;
                Ok(rows.into_iter().map(|row| Row { cells: Cells::Postgres(row), text }).collect())
            }
            (Self::Sqlite(_), SetArgs::Postgres(_)) | (Self::Postgres { .. }, SetArgs::Sqlite(_)) => {
                Err(sqlx::Error::Encode("arguments of another database".into()))
            }
        }
    }

    /// Says goodbye to the database; errors do not matter any more.
    pub(super) async fn close(self) {
        let closed = match self {
            Self::Sqlite(conn) => conn.close().await,
            Self::Postgres { conn, answer_within, .. } => answered(answer_within, conn.close()).await,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "closing a database connection failed");
        }
    }
}

enum Cells {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// One row of an answer. Reading a column that is not what it should be names table, key and
/// column.
pub(super) struct Row {
    cells: Cells,
    text: &'static str,
}

macro_rules! read {
    ($row:expr, $type:ty, $column:expr) => {
        match &$row.cells {
            Cells::Sqlite(row) => row.try_get::<$type, _>($column),
            Cells::Postgres(row) => row.try_get::<$type, _>($column),
        }
        .map_err(|error| $row.unreadable($column, error.to_string()))
    };
}

impl Row {
    pub(super) fn int(&self, column: &'static str) -> Result<i64> {
        read!(self, i64, column)
    }

    pub(super) fn opt_int(&self, column: &'static str) -> Result<Option<i64>> {
        read!(self, Option<i64>, column)
    }

    pub(super) fn flag(&self, column: &'static str) -> Result<bool> {
        read!(self, bool, column)
    }

    pub(super) fn opt_flag(&self, column: &'static str) -> Result<Option<bool>> {
        read!(self, Option<bool>, column)
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String> {
        read!(self, String, column)
    }

    pub(super) fn str(&self, column: &'static str) -> Result<&str> {
        read!(self, &str, column)
    }

    pub(super) fn opt_text(&self, column: &'static str) -> Result<Option<String>> {
        read!(self, Option<String>, column)
    }

    pub(super) fn blob(&self, column: &'static str) -> Result<Vec<u8>> {
        read!(self, Vec<u8>, column)
    }

    pub(super) fn opt_blob(&self, column: &'static str) -> Result<Option<Vec<u8>>> {
        read!(self, Option<Vec<u8>>, column)
    }

    pub(super) fn at(&self, column: &'static str) -> Result<Micros> {
        self.int(column).map(Micros)
    }

    pub(super) fn opt_at(&self, column: &'static str) -> Result<Option<Micros>> {
        Ok(self.opt_int(column)?.map(Micros))
    }

    pub(super) fn instance(&self, column: &'static str) -> Result<InstanceKey> {
        self.int(column).map(InstanceKey)
    }

    pub(super) fn attempt(&self, column: &'static str) -> Result<Attempt> {
        self.small(column).map(Attempt)
    }

    pub(super) fn small(&self, column: &'static str) -> Result<u32> {
        let value = self.int(column)?;
        u32::try_from(value).map_err(|error| self.unreadable(column, error.to_string()))
    }

    pub(super) fn number(&self, column: &'static str) -> Result<u64> {
        let value = self.int(column)?;
        u64::try_from(value).map_err(|error| self.unreadable(column, error.to_string()))
    }

    pub(super) fn name(&self, column: &'static str) -> Result<Name> {
        self.parsed(column, |text| Name::parse(column, text).ok())
    }

    pub(super) fn tenant(&self, column: &'static str) -> Result<Tenant> {
        self.parsed(column, |text| Tenant::parse(text).ok())
    }

    pub(super) fn digest(&self, column: &'static str) -> Result<Digest> {
        self.parsed(column, |text| Digest::parse(text).ok())
    }

    /// A text column through its type's `parse`.
    pub(super) fn parsed<T>(&self, column: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = self.str(column)?;
        parse(text).ok_or_else(|| self.unreadable(column, format!("unexpected value {text:?}")))
    }

    /// A column holds what no release of ours has written.
    pub(super) fn unreadable(&self, column: &'static str, problem: String) -> Error {
        let key = ["key", "instance"].into_iter().find_map(|column| match &self.cells {
            Cells::Sqlite(row) => row.try_get::<i64, _>(column).ok(),
            Cells::Postgres(row) => row.try_get::<i64, _>(column).ok(),
        });
        Error::Unreadable { table: table_of(self.text).to_owned(), key, column: column.to_owned(), problem }
    }
}

/// The table that a text is about: the word behind its first FROM, INTO or UPDATE.
fn table_of(text: &str) -> &str {
    let mut words = text.split_ascii_whitespace();
    while let Some(word) = words.next() {
        if matches!(word, "FROM" | "INTO" | "UPDATE") {
            return words.next().unwrap_or("?");
        }
    }
    "?"
}

/// What a request works in: a transaction of a writer, or a reader's look.
///
/// Nobody else begins or ends transactions. The writer task owns the connection for life, so
/// that no dropped future can leave one open.
pub(super) struct Tx<'c> {
    conn: &'c mut Conn,
    clock: &'c Clock,
    /// Statements that may have written.
    pub(super) writes: u64,
    /// Bytes bound to those statements: how much the log grows.
    pub(super) written_bytes: u64,
    /// To be told once the transaction is durable.
    pub(super) notices: Vec<Notice>,
}

impl<'c> Tx<'c> {
    /// Works on a connection outside of any transaction: each statement commits alone.
    pub(super) fn single(conn: &'c mut Conn, clock: &'c Clock) -> Self {
        Self { conn, clock, writes: 0, written_bytes: 0, notices: Vec::new() }
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once: one that
    /// began by reading could not be upgraded once another process has written.
    pub(super) async fn begin(conn: &'c mut Conn, clock: &'c Clock) -> Result<Self, sqlx::Error> {
        match conn.kind() {
            Kind::Sqlite => conn.run("BEGIN IMMEDIATE").await?,
            Kind::Postgres => conn.run("BEGIN").await?,
        }
        Ok(Self::single(conn, clock))
    }

    /// Begins a transaction that sees one moment of the database and writes nothing.
    pub(super) async fn begin_read(conn: &'c mut Conn, clock: &'c Clock) -> Result<Self, sqlx::Error> {
        match conn.kind() {
            Kind::Sqlite => conn.run("BEGIN").await?,
            Kind::Postgres => conn.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
        }
        Ok(Self::single(conn, clock))
    }

    /// Makes everything durable; returns what is to be told then. After an error the outcome
    /// is unknown.
    pub(super) async fn commit(self) -> Result<Vec<Notice>, sqlx::Error> {
        self.conn.run("COMMIT").await?;
        Ok(self.notices)
    }

    /// Takes back whatever is open on a connection. An error means that it is of no more use.
    pub(super) async fn roll_back(conn: &mut Conn) -> Result<(), sqlx::Error> {
        conn.run("ROLLBACK").await
    }

    /// The database's clock. A transition asks after it locked its row.
    pub(super) async fn now(&mut self) -> Result<Micros> {
        const NOW: Stmt = stmt!("SELECT {clock} AS now");
        match self.given_now() {
            Some(now) => Ok(now),
            None => self.fetch_one(&NOW, args![]).await?.at("now"),
        }
    }

    /// The clock as an argument for `COALESCE($n, {clock})`: none where the database's own counts.
    pub(super) fn given_now(&self) -> Option<Micros> {
        match (self.clock, self.conn.kind()) {
            (Clock::Manual(clock), _) => Some(clock.now()),
            (Clock::Database, Kind::Sqlite) => Some(super::clock::machine_now()),
            (Clock::Database, Kind::Postgres) => None,
        }
    }

    /// Runs a statement that writes; answers how many rows it touched.
    pub(super) async fn execute(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<u64> {
        self.count_write(args);
        Ok(self.conn.execute(stmt, args).await?)
    }

    /// As [`Self::execute`], for a statement that must touch exactly one row: anything else
    /// means that the store is broken, and everything is rolled back.
    pub(super) async fn execute_one(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<()> {
        match self.execute(stmt, args).await? {
            1 => Ok(()),
            rows => Err(Error::Broken { table: table_of(stmt.sqlite).to_owned(), rows }),
        }
    }

    /// Runs a statement that writes and answers rows.
    pub(super) async fn write_fetch(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Vec<Row>> {
        self.count_write(args);
        Ok(self.conn.fetch(stmt, args).await?)
    }

    /// Runs a statement that writes one row (`true`), or nothing.
    pub(super) async fn execute_if(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<bool> {
        match self.conn.execute(stmt, args).await? {
            0 => Ok(false),
            1 => {
                self.count_write(args);
                Ok(true)
            }
            rows => Err(Error::Broken { table: table_of(stmt.sqlite).to_owned(), rows }),
        }
    }

    /// Runs a statement that writes one row and answers it, or writes nothing.
    pub(super) async fn write_if(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Option<Row>> {
        let row = self.conn.fetch(stmt, args).await?.pop();
        if row.is_some() {
            self.count_write(args);
        }
        Ok(row)
    }

    /// Runs a statement that writes up to so many rows, with so many bytes of payload, and answers
    /// those that it wrote.
    pub(super) async fn write_set(
        &mut self,
        stmt: &Stmt,
        args: SetArgs,
        rows: usize,
        bytes: usize,
    ) -> Result<Vec<Row>> {
        self.writes += rows as u64;
        self.written_bytes += bytes as u64;
        Ok(self.conn.fetch_set(stmt, args).await?)
    }

    /// Which database it is.
    pub(super) fn kind(&self) -> Kind {
        self.conn.kind()
    }

    /// Reads rows.
    pub(super) async fn fetch(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Vec<Row>> {
        Ok(self.conn.fetch(stmt, args).await?)
    }

    /// Reads at most one row.
    pub(super) async fn fetch_optional(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Option<Row>> {
        Ok(self.conn.fetch(stmt, args).await?.pop())
    }

    /// Reads exactly one row.
    pub(super) async fn fetch_one(&mut self, stmt: &Stmt, args: &[Arg<'_>]) -> Result<Row> {
        let row = self.fetch_optional(stmt, args).await?;
        row.ok_or_else(|| Error::Broken { table: table_of(stmt.sqlite).to_owned(), rows: 0 })
    }

    /// Tells everybody once this is durable.
    pub(super) fn notify(&mut self, notice: Notice) {
        if !self.notices.contains(&notice) {
            self.notices.push(notice);
        }
    }

    fn count_write(&mut self, args: &[Arg<'_>]) {
        self.writes += 1;
        let bytes: usize = args
            .iter()
            .map(|arg| match arg {
                Arg::Text(text) => text.map_or(0, str::len),
                Arg::Blob(blob) => blob.map_or(0, <[u8]>::len),
                Arg::Int(_) | Arg::Flag(_) => 8,
            })
            .sum();
        self.written_bytes += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: Stmt = stmt!("SELECT {clock} AS now FROM instance WHERE key = $1 {for_update}");

    #[test]
    fn fragments_become_each_dialect() {
        assert_eq!(LOCK.sqlite, "SELECT NULL AS now FROM instance WHERE key = $1 ");
        assert_eq!(
            LOCK.postgres,
            "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now \
             FROM instance WHERE key = $1 FOR NO KEY UPDATE"
        );
    }

    #[test]
    fn plans_are_forgotten_each_time_twice_as_much_was_run() {
        let mut plans = Plans::new();
        let mut forgotten = Vec::new();
        for n in 1..=2_000 {
            plans.ran();
            if plans.are_old() {
                forgotten.push(n);
            }
        }
        assert_eq!(forgotten, [256, 512, 1024]);
    }

    #[test]
    fn a_statement_knows_its_table() {
        assert_eq!(table_of(LOCK.sqlite), "instance");
        assert_eq!(table_of("INSERT INTO event (number)"), "event");
    }

    #[test]
    fn nul_is_shown_instead_of_stored() {
        assert_eq!(storable("a\0b"), "a\u{fffd}b");
    }
}
