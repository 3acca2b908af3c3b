//! The table and the statements of the limits on databases: one row, or 64 set-wise and fenced. With one unique
//! index, as any store of named entries needs, and nothing else.

use std::fmt::Write as _;

/// Bytes of one row's data.
pub const DATA: usize = 1024;
/// Rows of one batch: an instance each.
pub const BATCH: usize = 64;

/// Bytes of one row's data where many are read.
pub const SMALL: usize = 200;

/// The tables on SQLite. A table without row ids is two to three times slower with rows of this size.
pub const SQLITE_TABLES: &str = "
    CREATE TABLE writer (instance INTEGER PRIMARY KEY, attempt INTEGER NOT NULL) STRICT;
    CREATE TABLE entry (
        instance INTEGER NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (instance, name)
    ) STRICT;
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 256)
    INSERT INTO writer (instance, attempt) SELECT n, 1 FROM number;";

/// The tables on PostgreSQL.
pub const POSTGRES_TABLES: &str = r#"
    CREATE TABLE writer (instance BIGINT PRIMARY KEY, attempt BIGINT NOT NULL);
    CREATE TABLE entry (
        instance BIGINT NOT NULL, name TEXT COLLATE "C" NOT NULL, data BYTEA NOT NULL, UNIQUE (instance, name)
    );
    INSERT INTO writer (instance, attempt) SELECT n, 1 FROM generate_series(1, 256) AS n;"#;

/// Instance, name, data.
pub const INSERT: &str = "INSERT INTO entry (instance, name, data) VALUES ($1, $2, $3)";

/// Keys as JSON, and the data of all in one blob. Fenced: a row of who is not the writer is not written. SQLite
/// has one writer, so a look is enough. (`?1`, for without a driver `$1` is whichever comes first.)
pub const SQLITE_INSERT_BATCH: &str = "
    INSERT INTO entry (instance, name, data)
    SELECT writer.instance, key.value ->> 2, substr(?2, key.value ->> 3, key.value ->> 4)
      FROM json_each(?1) AS key
      JOIN writer ON writer.instance = key.value ->> 0 AND writer.attempt = key.value ->> 1
     WHERE true
        ON CONFLICT DO NOTHING
 RETURNING instance";

/// Arrays of instances, attempts, names and data. Fenced: whoever would become the writer waits for the lock.
pub const POSTGRES_INSERT_BATCH: &str = "
    INSERT INTO entry (instance, name, data)
    SELECT writer.instance, key.name, key.data
      FROM unnest($1::BIGINT[], $2::BIGINT[], $3::TEXT[], $4::BYTEA[]) AS key (instance, attempt, name, data)
      JOIN writer ON writer.instance = key.instance AND writer.attempt = key.attempt
       FOR SHARE OF writer
        ON CONFLICT DO NOTHING
 RETURNING instance";

/// So many small rows of instance 1.
pub const SQLITE_FILL: &str = "
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < $1)
    INSERT INTO entry (instance, name, data) SELECT 1, 'step ' || n, zeroblob(200) FROM number";

/// The same.
pub const POSTGRES_FILL: &str = "
    INSERT INTO entry (instance, name, data)
    SELECT 1, 'step ' || n, decode(repeat('00', 200), 'hex') FROM generate_series(1, $1) AS n";

/// So many of them.
pub const READ: &str = "SELECT name, data FROM entry WHERE instance = 1 LIMIT $1";

/// The name of the entry with this number.
pub fn name(number: usize) -> String {
    format!("step {number}")
}

/// The keys of one batch: instance, attempt, name, and where its data begins and how long it is.
pub fn batch_keys(number: usize) -> String {
    let mut keys = String::from("[");
    for instance in 1..=BATCH {
        let comma = if instance == 1 { "" } else { "," };
        let from = (instance - 1) * DATA + 1;
        write!(keys, r#"{comma}[{instance},1,"{}",{from},{DATA}]"#, name(number))
            .expect("a string takes all");
    }
    keys + "]"
}
