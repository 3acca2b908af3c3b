//! What every measurement gets: the counts, the disk, the databases, the programs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, bail};
use dormouse_tests::guard::Guard;

use crate::{args::Arguments, args::Stores, postgres, programs::Programs};

/// Kills what was told of the directory, then removes it.
const CLEAN_UP: &str = r#"
    for round in 1 2; do
        found=$(printf '%s/\n' "$dir" |
            grep -laF -f - /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3)
        for pid in $found; do kill -9 "$pid" 2>/dev/null; done
    done
    rm -rf "$dir""#;

/// A database that Dormouse runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Store {
    Sqlite,
    Postgres,
}

impl Store {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A database of its own: gone with the run.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    /// Not yet there.
    Sqlite(PathBuf),
    /// Made, and empty.
    Postgres { url: String },
}

/// Shared by all measurements of a run, which follow each other and never overlap.
pub(crate) struct Context {
    quick: bool,
    rounds: u32,
    stores: Vec<Store>,
    disk: PathBuf,
    numbers: AtomicU32,
    postgres: Option<postgres::Server>,
    programs: Programs,
    /// The last field: what still runs in the folder when the rest is dropped is killed.
    _guard: Guard,
}

impl Context {
    /// Makes the folder, starts PostgreSQL if it is asked for, and builds what will be run.
    pub(crate) fn prepare(arguments: &Arguments) -> anyhow::Result<Self> {
        let parent = arguments.disk.clone().unwrap_or_else(std::env::temp_dir);
        crate::machine::refuse_memory(&parent)?;
        let programs = Programs::prepare(arguments)?;
        let stores = match arguments.store {
            Stores::Sqlite => vec![Store::Sqlite],
            Stores::Postgres => vec![Store::Postgres],
            Stores::Both => vec![Store::Sqlite, Store::Postgres],
        };
        let parent = parent.canonicalize().with_context(|| format!("--disk {}", parent.display()))?;
        let disk = tempfile::Builder::new()
            .prefix("dormouse-bench.")
            .tempdir_in(&parent)
            .with_context(|| format!("--disk {}: no folder can be made there", parent.display()))?
            .keep();
        let guard = Guard::of(&disk, CLEAN_UP);
        // PostgreSQL may run as another user.
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o755))?;
        let wanted = stores.contains(&Store::Postgres);
        let postgres = wanted.then(|| postgres::Server::start(&disk)).transpose()?;
        let rounds = if arguments.quick { 1 } else { arguments.rounds };
        let numbers = AtomicU32::new(0);
        Ok(Self { quick: arguments.quick, rounds, stores, disk, numbers, postgres, programs, _guard: guard })
    }

    /// How many rounds to measure: at least three, one in a quick run.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    /// How many operations to measure.
    pub(crate) fn count(&self, full: u32, quick: u32) -> u32 {
        if self.quick { quick } else { full }
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    /// The databases of this run.
    pub(crate) fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// The programs of the release that is measured.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The server of this run, if it has one.
    pub(crate) fn postgres(&self) -> Option<&postgres::Server> {
        self.postgres.as_ref()
    }

    /// A new folder on the disk; gone with the run at the latest. Remove it when done: disks are small.
    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let folder = self.disk.join(format!("{name}.{number}"));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// A new, empty database. On SQLite in a folder of its own.
    pub(crate) async fn database(&self, store: Store) -> anyhow::Result<Database> {
        match (store, &self.postgres) {
            (Store::Sqlite, _) => Ok(Database::Sqlite(self.folder("sqlite")?.join("dormouse.db"))),
            (Store::Postgres, Some(server)) => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                Ok(Database::Postgres { url: server.make_database(&format!("bench_{number}")).await? })
            }
            (Store::Postgres, None) => bail!("this run has no PostgreSQL; say --store postgres or both"),
        }
    }

    /// Removes what [`Self::database`] made, when its clients are gone: the next round carries nothing of it.
    pub(crate) async fn remove(&self, database: &Database) -> anyhow::Result<()> {
        match (database, &self.postgres) {
            (Database::Sqlite(path), _) => {
                let folder = path.parent().context("it is in a folder of its own")?;
                fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
            }
            (Database::Postgres { url }, Some(server)) => server.drop_database(url).await,
            (Database::Postgres { .. }, None) => bail!("this run has no PostgreSQL"),
        }
    }

    /// The folder of the whole run, for its file system.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }
}
