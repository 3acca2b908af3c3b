//! `probe-sqlite commit|batch FILE WARM-UP COUNT`: writes to a new SQLite database without any driver between,
//! one transaction after the other, and prints how long each took, in nanoseconds.
//!
//! It holds the only foreign calls of the benchmarks, and exists to show what a driver costs.

#![expect(unsafe_code, reason = "SQLite's own interface; each block says why it holds")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int},
    os::unix::ffi::OsStringExt as _,
    ptr::{self, null_mut},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dormouse_probes::entries;
use libsqlite3_sys as sqlite;

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let mut next = |name: &'static str| arguments.next().with_context(|| format!("{name} is missing"));
    let what = next("commit or batch")?;
    let database = Database::open(CString::new(next("FILE")?.into_vec())?.as_c_str())?;
    let mut count = |name| anyhow::Ok(next(name)?.to_string_lossy().parse::<usize>()?);
    let (warm_up, count) = (count("WARM-UP")?, count("COUNT")?);
    database.run("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    database.run(entries::SQLITE_TABLES)?;
    let times = match what.to_str() {
        Some("commit") => commit(&database, warm_up + count)?,
        Some("batch") => batch(&database, warm_up + count)?,
        _ => bail!("the first argument is none of commit, batch"),
    };
    for time in &times[warm_up..] {
        println!("{}", time.as_nanos());
    }
    Ok(())
}

fn commit(database: &Database, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut insert = database.prepare(entries::INSERT)?;
    let data = vec![7; entries::DATA];
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let name = entries::name(number);
        let began = Instant::now();
        insert.execute(&[Value::Integer(1), Value::Text(&name), Value::Blob(&data)])?;
        times.push(began.elapsed());
    }
    Ok(times)
}

fn batch(database: &Database, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut insert = database.prepare(entries::SQLITE_INSERT_BATCH)?;
    let data = vec![7; entries::DATA * entries::BATCH];
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let began = Instant::now();
        let written = insert.execute(&[Value::Text(&entries::batch_keys(number)), Value::Blob(&data)])?;
        times.push(began.elapsed());
        if written != entries::BATCH {
            bail!("{written} of {} rows were written", entries::BATCH);
        }
    }
    Ok(times)
}

/// An open database. Neither it nor its statements leave this thread.
struct Database(*mut sqlite::sqlite3);

impl Database {
    fn open(path: &CStr) -> anyhow::Result<Self> {
        let mut database = Self(null_mut());
        // SAFETY: the path ends with a NUL and lives through the call, which fills the pointer in.
        let code = unsafe { sqlite::sqlite3_open(path.as_ptr(), &raw mut database.0) };
        database.check(code)?;
        Ok(database)
    }

    /// Statements without results.
    fn run(&self, sql: &str) -> anyhow::Result<()> {
        let sql = CString::new(sql)?;
        // SAFETY: the database is open, the text ends with a NUL, and there is no callback to be called.
        let code = unsafe { sqlite::sqlite3_exec(self.0, sql.as_ptr(), None, null_mut(), null_mut()) };
        self.check(code)
    }

    fn prepare(&self, sql: &str) -> anyhow::Result<Statement<'_>> {
        let length = c_int::try_from(sql.len())?;
        let mut statement = Statement { database: self, handle: null_mut() };
        // SAFETY: the database is open, and the text is read for its length only, within the call.
        let code = unsafe {
            sqlite::sqlite3_prepare_v2(
                self.0,
                sql.as_ptr().cast::<c_char>(),
                length,
                &raw mut statement.handle,
                ptr::null_mut(),
            )
        };
        self.check(code)?;
        Ok(statement)
    }

    fn check(&self, code: c_int) -> anyhow::Result<()> {
        if code == sqlite::SQLITE_OK {
            return Ok(());
        }
        // SAFETY: also a database that failed to open has a message, valid until the next call.
        let message = unsafe { CStr::from_ptr(sqlite::sqlite3_errmsg(self.0)) };
        bail!("SQLite: {}", message.to_string_lossy())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: statements borrow the database, so none is left; nobody uses the pointer after this.
        unsafe { sqlite::sqlite3_close(self.0) };
    }
}

/// A parameter.
enum Value<'a> {
    Integer(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

struct Statement<'a> {
    database: &'a Database,
    handle: *mut sqlite::sqlite3_stmt,
}

impl Statement<'_> {
    /// Runs it to its end, and says how many rows it gave back.
    fn execute(&mut self, values: &[Value<'_>]) -> anyhow::Result<usize> {
        for (index, value) in (1..).zip(values) {
            self.bind(index, value)?;
        }
        let mut rows = 0;
        let last = loop {
            // SAFETY: the statement is prepared, and what is bound lives until the bindings are cleared below.
            match unsafe { sqlite::sqlite3_step(self.handle) } {
                sqlite::SQLITE_ROW => rows += 1,
                other => break other,
            }
        };
        // SAFETY: the statement is prepared; without bindings it no longer points at the values.
        let code = unsafe {
            sqlite::sqlite3_clear_bindings(self.handle);
            sqlite::sqlite3_reset(self.handle)
        };
        self.database.check(if last == sqlite::SQLITE_DONE { code } else { last })?;
        Ok(rows)
    }

    fn bind(&mut self, index: c_int, value: &Value<'_>) -> anyhow::Result<()> {
        // SAFETY: the statement is prepared and reset. Texts and blobs are not copied (no destructor): they
        // outlive `execute`, which alone binds, and which clears the bindings.
        let code = unsafe {
            match value {
                Value::Integer(value) => sqlite::sqlite3_bind_int64(self.handle, index, *value),
                Value::Text(text) => {
                    let length = c_int::try_from(text.len())?;
                    sqlite::sqlite3_bind_text(self.handle, index, text.as_ptr().cast(), length, None)
                }
                Value::Blob(blob) => {
                    let length = c_int::try_from(blob.len())?;
                    sqlite::sqlite3_bind_blob(self.handle, index, blob.as_ptr().cast(), length, None)
                }
            }
        };
        self.database.check(code)
    }
}

impl Drop for Statement<'_> {
    fn drop(&mut self) {
        // SAFETY: the statement is prepared, or null, which does nothing; nobody uses it after this.
        unsafe { sqlite::sqlite3_finalize(self.handle) };
    }
}
