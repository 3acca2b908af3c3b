//! A PostgreSQL server of the run's own, in the run's folder: it flushes for real, is reachable by a socket
//! only, and is gone with the run. No server that the machine runs for others is touched.

use std::{
    env, fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, User};
use sqlx::{Connection as _, PgConnection};

const OLDEST: u32 = 14;

/// Dropped, it is stopped.
#[derive(Debug)]
pub(crate) struct Server {
    programs: PathBuf,
    data: PathBuf,
    /// In the system's folder for temporary files: the path of a socket may have 107 bytes.
    socket: tempfile::TempDir,
    user: Option<User>,
}

impl Server {
    pub(crate) fn start(disk: &Path) -> anyhow::Result<Self> {
        let programs = find_programs()?;
        let user = server_user()?;
        let socket = tempfile::Builder::new().prefix("dormouse-pg.").tempdir_in("/tmp").context("/tmp")?;
        let server = Self { programs, data: disk.join("postgres"), socket, user };
        fs::create_dir(&server.data)?;
        if let Some(user) = &server.user {
            for folder in [server.data.as_path(), server.socket.path()] {
                chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        server.run("initdb", &["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])?;
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 300\nfsync = on\nsynchronous_commit = on\n",
            server.socket.path().display()
        );
        let path = server.data.join("postgresql.conf");
        let defaults = fs::read_to_string(&path)?;
        fs::write(&path, defaults + &settings)?;
        let log = format!("--log={}", server.data.join("server.log").display());
        server.run("pg_ctl", &["start", "--silent", "--wait", "--timeout=120", &log])?;
        Ok(server)
    }

    /// Where clients of this database connect.
    pub(crate) fn url(&self, database: &str) -> String {
        let host = self.socket.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{host}/{database}")
    }

    /// Makes a database, and says where clients connect.
    pub(crate) async fn make_database(&self, name: &str) -> anyhow::Result<String> {
        self.administer(format!("CREATE DATABASE {name}")).await?;
        Ok(self.url(name))
    }

    /// Drops one that [`Self::make_database`] made, with whoever is still connected.
    pub(crate) async fn drop_database(&self, url: &str) -> anyhow::Result<()> {
        let (_, name) = url.rsplit_once('/').context("a URL of ours ends with the database")?;
        self.administer(format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    /// Names are our own: nothing to escape.
    async fn administer(&self, statement: String) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Version and durability, as the server itself says them.
    pub(crate) async fn describe(&self) -> anyhow::Result<String> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let mut parts = Vec::new();
        for name in ["server_version", "fsync", "synchronous_commit", "shared_buffers"] {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
            parts.push(format!("{name} {value}"));
        }
        connection.close().await?;
        Ok(parts.join(", "))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join(program));
        command.arg(format!("--pgdata={}", self.data.display())).args(arguments);
        // Not a pipe: the server would keep it open, and its end would never come.
        let output = self.socket.path().join(format!("{program}.out"));
        let file = fs::File::create(&output)?;
        command.current_dir("/").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let status = command.status().with_context(|| self.programs.join(program).display().to_string())?;
        if !status.success() {
            let said = fs::read_to_string(&output).unwrap_or_default();
            let log = fs::read_to_string(self.data.join("server.log")).unwrap_or_default();
            bail!("PostgreSQL's {program} failed, {status}: {said}{log}");
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.run("pg_ctl", &["stop", "--silent", "--wait", "--mode=immediate"]) {
            eprintln!("{error}");
        }
    }
}

/// PostgreSQL refuses to run as root.
fn server_user() -> anyhow::Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let named = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    Ok(Some(named.context("PostgreSQL does not run as root, and there is no user postgres or nobody")?))
}

/// The folder with the newest server that is new enough.
fn find_programs() -> anyhow::Result<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = debian.map(|entry| entry.path().join("bin"));
    let folders = Vec::into_iter(on_path).chain(debian);
    let newest = folders.filter_map(|folder| Some((version(&folder)?, folder))).max();
    match newest {
        Some((version, folder)) if version >= OLDEST => Ok(folder),
        _ => bail!(
            "no PostgreSQL {OLDEST} or newer was found; install it (apt-get install postgresql), put its programs on the PATH, or say --store sqlite"
        ),
    }
}

/// "postgres (PostgreSQL) 15.8 (Debian …)" is 15.
fn version(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number = text.split("(PostgreSQL) ").nth(1)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
