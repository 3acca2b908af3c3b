//! SQL migrations of the Dormouse store, for SQLite and PostgreSQL, embedded in the binary.
//!
//! One file per database and number, `sqlite/NNNN_name.sql` and `postgres/NNNN_name.sql`,
//! with equal numbers and names. Each says in its first line which release is the oldest that
//! may still work on the schema once it is applied: `-- min-release: 0.1.0`. A released file
//! is never edited: the next change is the next number.
//!
//! This crate only carries the texts; the store applies them.

/// One step of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3 … without gaps.
    pub number: u32,
    /// What the step does, as in its file's name.
    pub name: &'static str,
    /// Its text for SQLite.
    pub sqlite: &'static str,
    /// Its text for PostgreSQL.
    pub postgres: &'static str,
}

impl Migration {
    /// The oldest release that may work on a database where this step is applied.
    pub fn min_release(&self) -> &'static str {
        let first_line = self.sqlite.lines().next().unwrap_or_default();
        first_line.strip_prefix("-- min-release: ").unwrap_or("0.0.0").trim()
    }
}

macro_rules! migrations {
    ($($number:literal $name:literal),+ $(,)?) => {
        &[$(Migration {
            number: parse_number($number),
            name: $name,
            sqlite: include_str!(concat!("../sqlite/", $number, "_", $name, ".sql")),
            postgres: include_str!(concat!("../postgres/", $number, "_", $name, ".sql")),
        }),+]
    };
}

/// Every step, in order.
pub const ALL: &[Migration] = migrations!["0001" "initial", "0002" "cluster", "0003" "speed"];

/// "0001" is 1.
const fn parse_number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("a migration's number has four digits"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn numbers_have_no_gaps() {
        let numbers: Vec<u32> = ALL.iter().map(|migration| migration.number).collect();
        let expected: Vec<u32> = (1..).take(ALL.len()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn both_databases_name_the_same_oldest_release() {
        for migration in ALL {
            let line = format!("-- min-release: {}", migration.min_release());
            for text in [migration.sqlite, migration.postgres] {
                assert_eq!(text.lines().next(), Some(line.as_str()), "first line of {}", migration.name);
            }
        }
    }

    #[test]
    fn every_file_is_embedded() {
        let listed: BTreeSet<String> =
            ALL.iter().map(|step| format!("{:04}_{}.sql", step.number, step.name)).collect();
        for folder in ["sqlite", "postgres"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            let files: BTreeSet<String> = fs::read_dir(&path)
                .expect("the folder is part of the crate")
                .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
                .collect();
            assert_eq!(files, listed, "files in {folder}/ and the list in lib.rs");
        }
    }

    /// The same tables with the same columns in the same order; only types differ.
    #[test]
    fn both_databases_have_the_same_columns() {
        for migration in ALL {
            assert_eq!(columns(migration.sqlite), columns(migration.postgres), "{}", migration.name);
        }
    }

    fn columns(text: &str) -> Vec<String> {
        let mut table = None;
        let mut found = Vec::new();
        let mut add = |table: &str, column: &str| {
            let name = column.split(' ').next().unwrap_or_default();
            let bound = if column.contains("NOT NULL") { "NOT NULL" } else { "" };
            found.push(format!("{table}.{name} {bound}"));
        };
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("CREATE TABLE ") {
                table = Some(name.trim_end_matches(" ("));
            } else if line.starts_with(')') {
                table = None;
            } else if let Some((table, column)) =
                line.strip_prefix("ALTER TABLE ").and_then(|rest| rest.split_once(" ADD COLUMN "))
            {
                add(table, column);
            } else if let (Some(table), Some(column)) = (table, line.strip_prefix("    "))
                // Deeper lines continue the one before; a table's constraints begin with a capital C.
                && !column.starts_with([' ', 'C'])
            {
                add(table, column);
            }
        }
        found
    }
}
