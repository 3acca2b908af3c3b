//! Connections to SQLite, its log, and notices between two processes on one file.
//!
//! WAL with `synchronous=FULL`: a commit is flushed before it is answered (invariant 1). One
//! writer; readers beside it on read-only connections. The log is copied back by a task of
//! its own, beside the writer, so that no commit pays for it; the little that is written meanwhile
//! the writer copies itself, between two batches. Then nothing is missing and the log begins anew: one
//! that only grows costs each commit new blocks of the disk and the file's new length.

use std::{
    fs::File,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::{
    net::UnixDatagram,
    sync::{Notify, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Error, Result},
    notices::{Hub, Notice, decode, encode, gather},
    sql::{Conn, Stmt, args, stmt},
};

/// How long a connection waits for another process's write.
const BUSY: Duration = Duration::from_secs(10);
/// Pages in the log, as estimated, after which it is copied back.
const LOG_PAGES: u64 = 4_000;
/// So many pages at most are left to the writer, if [`COPIES`] are enough for that: some milliseconds.
const LOG_PAGES_LEFT: i64 = 250;
/// Copies beside the writer, each of what was written during the one before.
const COPIES: usize = 4;
/// Pages in the log above which the writer is made to wait until it begins anew: it must not
/// grow without bound under a load that never pauses.
const LOG_PAGES_MAX: i64 = 32_000;
/// Rows that the driver's thread may be ahead of us: more than a batch answers, so that no commit waits until
/// its rows are read.
const ROWS_AHEAD: usize = 1_024;
/// How the sockets of notices are called.
const PREFIX: &str = "store-";
/// Longest notice between two processes.
const DATAGRAM: usize = 4096;

/// A database file.
#[derive(Debug)]
pub(super) struct SqliteFile {
    path: PathBuf,
    pages: AtomicU64,
    log_is_long: Notify,
    /// What is missing of the log is little, and for the writer to copy.
    log_is_nearly_copied: AtomicBool,
}

/// Takes what no reader needs, waits for nobody.
const COPY: Stmt = stmt!("PRAGMA wal_checkpoint(PASSIVE)");
/// Waits for the readers, and keeps the writer waiting.
const BEGIN_ANEW: Stmt = stmt!("PRAGMA wal_checkpoint(RESTART)");

impl SqliteFile {
    /// Makes the file, readable by its owner only, if it does not exist.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        made.map_err(|error| Error::Open {
            database: path.display().to_string(),
            problem: "check that its directory exists and is writable".to_owned(),
            source: Some(sqlx::Error::Io(error)),
        })?;
        Ok(Self {
            path: path.to_owned(),
            pages: AtomicU64::new(0),
            log_is_long: Notify::new(),
            log_is_nearly_copied: AtomicBool::new(false),
        })
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// `PATH-suffix`, beside the database.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    pub(super) async fn connect(&self, read_only: bool) -> Result<Conn, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(BUSY)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .statement_cache_capacity(256)
            .row_buffer_size(ROWS_AHEAD)
            // The log is copied back beside the writer, see `run_log`.
            .pragma("wal_autocheckpoint", "0")
            .pragma("query_only", if read_only { "ON" } else { "OFF" })
            .pragma("cache_size", "-16384")
            .disable_statement_logging();
        Ok(Conn::Sqlite(Box::new(options.connect().await?)))
    }

    /// A write of so many statements and bytes: each touches a few pages.
    pub(super) fn wrote(&self, writes: u64, bytes: u64) {
        let grown = writes * 4 + bytes / 4096;
        if self.pages.fetch_add(grown, Ordering::Relaxed) + grown >= LOG_PAGES {
            self.pages.store(0, Ordering::Relaxed);
            self.log_is_long.notify_one();
        }
    }

    /// Copies the log back into the file whenever it has grown, until `closing`.
    pub(super) async fn run_log(
        &self,
        mut conn: Conn,
        broken: CancellationToken,
        closing: CancellationToken,
    ) {
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                () = self.log_is_long.notified() => {}
            }
            if let Err(error) = self.copy_beside(&mut conn).await {
                not_copied(&error, &broken);
            }
            if broken.is_cancelled() {
                return;
            }
        }
        conn.close().await;
    }

    /// Copies beside the writer until little is missing.
    async fn copy_beside(&self, conn: &mut Conn) -> Result<()> {
        let mut before = 0;
        for _ in 0..COPIES {
            let row = conn.fetch(&COPY, args![]).await?.pop();
            let pages = row.map_or(Ok(0), |row| row.int("log"))?;
            if pages > LOG_PAGES_MAX {
                conn.fetch(&BEGIN_ANEW, args![]).await?;
                return Ok(());
            }
            if pages.saturating_sub(before) <= LOG_PAGES_LEFT {
                break;
            }
            before = pages;
        }
        self.log_is_nearly_copied.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Copies, on the writer's connection between two transactions, what is missing; the next one then begins the log
    /// anew, unless a reader is in the middle of it.
    pub(super) async fn finish_log(&self, conn: &mut Conn) -> Result<()> {
        if self.log_is_nearly_copied.swap(false, Ordering::Relaxed) {
            conn.fetch(&COPY, args![]).await?;
        }
        Ok(())
    }

    /// Takes the lock under which the schema is changed; released when it is dropped.
    pub(super) async fn migration_lock(&self) -> Result<std::fs::File> {
        let path = self.beside("-migrate");
        let locking = tokio::task::spawn_blocking(move || {
            let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            file.lock()?;
            Ok(file)
        });
        let locked = locking.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        locked.map_err(|error| Error::Open {
            database: self.name(),
            problem: "its directory must be writable, and on a disk that has file locks".to_owned(),
            source: Some(sqlx::Error::Io(error)),
        })
    }
}

/// The log was not copied back. If the disk has not flushed, the store is over.
pub(super) fn not_copied(error: &Error, broken: &CancellationToken) {
    if matches!(error, Error::FlushFailed(_)) {
        tracing::error!(%error, "the disk did not flush the database; the store ends");
        return broken.cancel();
    }
    // Nothing is lost: the log still holds it, the next round tries again.
    tracing::warn!(%error, cause = ?std::error::Error::source(error), "copying the log back failed");
}

/// Tells other processes on the same file, and hears them, by datagrams between sockets in a
/// directory beside the database.
pub(super) struct Peers {
    directory: File,
    path: PathBuf,
    name: String,
    socket: UnixDatagram,
    /// The others' sockets, and the directory's time when they were listed.
    others: Vec<String>,
    listed: Option<SystemTime>,
}

/// A directory that changed so shortly before it was listed may change again without a later time: it is
/// listed again at the next notice.
const SETTLED: Duration = Duration::from_secs(1);

impl Peers {
    /// Binds this process's socket. `origin` is unique to this store.
    pub(super) fn bind(file: &SqliteFile, origin: &str) -> std::io::Result<Self> {
        let path = file.beside("-notices");
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let directory = File::open(&path)?;
        let name = format!("{PREFIX}{origin}");
        let socket = UnixDatagram::bind(address(&directory, &name))?;
        Ok(Self { directory, path, name, socket, others: Vec::new(), listed: None })
    }

    /// Serves both directions until `closing`, then removes its socket.
    pub(super) async fn run(
        mut self,
        origin: String,
        hub: Hub,
        mut outbox: mpsc::Receiver<Notice>,
        closing: CancellationToken,
    ) {
        let mut buffer = [0; DATAGRAM];
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                received = self.socket.recv(&mut buffer) => match received {
                    Ok(len) => {
                        let text = String::from_utf8_lossy(&buffer[..len]);
                        for notice in decode(&origin, &text) {
                            hub.heard(notice);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "receiving a notice failed"),
                },
                notices = gather(&mut outbox) => match notices {
                    Some(notices) => self.tell(&encode(&origin, &notices, DATAGRAM)),
                    None => break,
                },
            }
        }
        let _ = std::fs::remove_file(self.path.join(&self.name));
    }

    /// Sends to each other socket; removes those that nobody holds any more.
    fn tell(&mut self, texts: &[String]) {
        self.list();
        for name in &self.others {
            for text in texts {
                match self.socket.try_send_to(text.as_bytes(), address(&self.directory, name)) {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                        let _ = std::fs::remove_file(self.path.join(name));
                    }
                    // A full socket: the peer polls.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    /// Looks who is there, unless nothing has changed: each commit has notices, and most are alone.
    fn list(&mut self) {
        let changed = self.directory.metadata().and_then(|directory| directory.modified()).ok();
        if changed.is_some() && changed == self.listed {
            return;
        }
        let settled = |at: &SystemTime| at.elapsed().is_ok_and(|age| age > SETTLED);
        self.listed = changed.filter(settled);
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        self.others = names.filter(|name| *name != self.name && name.starts_with(PREFIX)).collect();
    }
}

/// The socket's path through the directory's descriptor: a socket's path may have 107 bytes
/// only, a data directory's may have more.
fn address(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}
