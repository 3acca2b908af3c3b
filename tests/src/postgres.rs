//! PostgreSQL servers of the tests' own: started in a temporary directory, reachable by a socket in
//! there only, killed and started again as a test likes, gone when the test process is gone.
//!
//! It never touches a server that the machine runs for others.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use dormouse_proto::endpoint::Identity;
use nix::unistd::{Uid, User};

use crate::{fault, guard::Guard, process::Pid, wait};

/// The URL of a running server's superuser; `./test` sets it.
pub const URL_VARIABLE: &str = "DORMOUSE_TEST_POSTGRES";
/// The directory of PostgreSQL's programs, if it is not where it usually is.
pub const BIN_VARIABLE: &str = "DORMOUSE_TEST_POSTGRES_BIN";

const OLDEST: u32 = 14;

/// Stops the server in `dir`, and removes the directory.
const STOP_AND_REMOVE: &str = r#"
    pid=$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
    for look in $(seq 200); do
        [ -e "$dir/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    rm -rf "$dir""#;

/// The URL of a server that every test may use: the one that [`URL_VARIABLE`] names, else one that
/// is started now and lives as long as this test process.
pub fn shared_url() -> &'static str {
    static SHARED: OnceLock<(String, Option<Server>)> = OnceLock::new();
    let (url, _) = SHARED.get_or_init(|| {
        if let Ok(url) = env::var(URL_VARIABLE) {
            return (url, None);
        }
        let server = Server::start();
        (server.url("postgres"), Some(server))
    });
    url
}

/// The path of a program that comes with the server, such as `pg_dump`. The server may be linked from
/// elsewhere, without its companions.
pub fn program(name: &str) -> PathBuf {
    let folder = find_programs();
    let server = folder.join("postgres").canonicalize().expect("it said its version");
    let beside = server.parent().expect("a file is in a folder");
    let found = [folder.join(name), beside.join(name)].into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not beside {}; install PostgreSQL's client programs", server.display())
    })
}

/// The same server, another database: `postgres://user@host/database?options`.
pub fn with_database(url: &str, database: &str) -> String {
    let (before, options) = url.split_once('?').map_or((url, ""), |(before, options)| (before, options));
    let (scheme, rest) = before.split_once("://").expect("a URL has a scheme");
    let host = rest.split('/').next().expect("a split has a first part");
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{scheme}://{host}/{database}{mark}{options}")
}

/// A server of its own, for a test that kills it.
#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    bin: PathBuf,
    variables: Vec<(String, String)>,
    /// Stops the server and removes the directory when the pipe to it closes: at the drop, and
    /// also when this process is killed.
    _guard: Guard,
}

impl Server {
    /// Makes and starts one. It flushes for real.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with variables of its own.
    pub fn start_with(variables: &[(&str, String)]) -> Self {
        let bin = find_programs();
        // Short, for a socket's path may have 107 bytes; in a place that another user may enter.
        let dir = tempfile::Builder::new().prefix("dormouse-pg.").tempdir_in("/tmp").expect("a directory");
        let dir = dir.keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("own directory");
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let server = Self { _guard: Guard::of(&dir, STOP_AND_REMOVE), dir, bin, variables };
        for folder in ["data", "socket"] {
            let path = server.dir.join(folder);
            fs::create_dir(&path).expect("own directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("own directory");
            if let Some(user) = server_user() {
                chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
            }
        }
        server.run(
            "initdb",
            &["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"],
        );
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 300\n",
            server.dir.join("socket").display()
        );
        let path = server.data().join("postgresql.conf");
        let defaults = fs::read_to_string(&path).expect("initdb wrote it");
        fs::write(&path, defaults + &settings).expect("own file");
        server.launch();
        server
    }

    /// One that also listens at a port, and encrypts if it is given a certificate.
    pub fn start_at_port(identity: Option<&Identity>) -> (Self, u16) {
        let server = Self::start();
        server.stop();
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a port is free").port();
        server.configure(&format!("listen_addresses = '127.0.0.1'\nport = {port}"));
        if let Some(identity) = identity {
            server.configure("ssl = on");
            for (name, text) in [("server.crt", &identity.certificate_pem), ("server.key", &identity.key_pem)]
            {
                let path = server.data().join(name);
                fs::write(&path, text).expect("own directory");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
                if let Some(user) = server_user() {
                    chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
                }
            }
        }
        server.start_again();
        (server, port)
    }

    /// Where clients connect.
    pub fn url(&self, database: &str) -> String {
        let host = self.dir.join("socket").display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{host}/{database}")
    }

    /// kill -9 of the server and of every process it started.
    pub fn kill(&self) {
        let postmaster = self.postmaster();
        let backends = postmaster.children();
        fault::kill_9(postmaster);
        for backend in &backends {
            fault::kill_9(*backend);
        }
        wait::until_blocking("the server's processes are gone", || {
            let alive = backends.iter().chain([&postmaster]).filter(|pid| pid.is_alive()).count();
            if alive == 0 { Ok(()) } else { Err(format!("{alive} are alive")) }
        });
        // Until its parent has waited for it, a killed process has a number, and the next server
        // would take it for one that runs.
        for lock in ["data/postmaster.pid", "socket/.s.PGSQL.5432.lock"] {
            fs::remove_file(self.dir.join(lock)).expect("the killed server left it");
        }
    }

    /// Starts it again after a kill; it recovers from its log.
    pub fn start_again(&self) {
        self.launch();
    }

    /// Waits until it has ended by itself.
    pub async fn until_down(&self) {
        let running = self.data().join("postmaster.pid");
        wait::until("the server has ended", async || if running.exists() { Err("it runs") } else { Ok(()) })
            .await;
    }

    /// Stops it in order, with its clients connected.
    pub fn stop(&self) {
        self.run("pg_ctl", &["stop", "--silent", "--wait", "--mode=fast"]);
    }

    /// Adds a line to its configuration, for its next start.
    pub fn configure(&self, line: &str) {
        let path = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).expect("initdb wrote it");
        fs::write(&path, format!("{before}\n{line}\n")).expect("own file");
    }

    /// From its next start on it is a standby: it reads, and takes no writes.
    pub fn become_standby(&self) {
        fs::write(self.data().join("standby.signal"), "").expect("own directory");
    }

    /// Ends its being a standby.
    pub fn promote(&self) {
        self.run("pg_ctl", &["promote", "--silent", "--wait", "--timeout=120"]);
    }

    fn launch(&self) {
        let log = format!("--log={}", self.data().join("server.log").display());
        self.run("pg_ctl", &["start", "--silent", "--wait", "--timeout=120", &log]);
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn postmaster(&self) -> Pid {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).expect("the server runs");
        let number = text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a pid");
        Pid::of(number).expect("the server runs")
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(self.bin.join(program));
        command.arg(format!("--pgdata={}", self.data().display())).args(arguments);
        // Not a pipe: the server would keep it open, and its end would never come.
        let output = self.dir.join(format!("{program}.out"));
        let file = fs::File::create(&output).expect("own directory");
        command
            .current_dir("/")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file);
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let status =
            command.status().unwrap_or_else(|error| panic!("{}: {error}", self.bin.join(program).display()));
        if !status.success() {
            let said = fs::read_to_string(&output).unwrap_or_default();
            let log = fs::read_to_string(self.data().join("server.log")).unwrap_or_default();
            panic!("{program} failed, {status}: {said}\n{log}");
        }
    }
}

/// PostgreSQL refuses to run as root.
fn server_user() -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    let named = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    Some(named.expect("there is a user postgres or nobody"))
}

/// The directory with the newest server that is new enough.
fn find_programs() -> PathBuf {
    let told = env::var_os(BIN_VARIABLE).map(PathBuf::from);
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = debian.map(|entry| entry.path().join("bin"));
    let folders: Vec<PathBuf> = told.into_iter().chain::<Vec<_>>(on_path).chain(debian).collect();
    let newest = folders.into_iter().filter_map(|folder| Some((version(&folder)?, folder))).max();
    match newest {
        Some((version, folder)) if version >= OLDEST => folder,
        _ => panic!(
            "no PostgreSQL {OLDEST} or newer was found; run ./test, which installs one, or set {BIN_VARIABLE} to the directory of its programs"
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

/// Waits until the server answers. For a test that started it again by another way.
pub async fn until_answering(url: &str) {
    wait::until("PostgreSQL answers", async || {
        use sqlx::Connection as _;
        let connection = tokio::time::timeout(Duration::from_secs(2), sqlx::PgConnection::connect(url)).await;
        match connection {
            Ok(Ok(connection)) => connection.close().await.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(elapsed) => Err(elapsed.to_string()),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced_and_the_rest_stays() {
        for (url, expected) in [
            ("postgres://me@%2Ftmp%2Fx/postgres", "postgres://me@%2Ftmp%2Fx/mine"),
            ("postgres://me:pw@h:5433/postgres?host=/tmp/x", "postgres://me:pw@h:5433/mine?host=/tmp/x"),
            ("postgres://h", "postgres://h/mine"),
        ] {
            assert_eq!(with_database(url, "mine"), expected);
        }
    }

    #[tokio::test]
    async fn a_killed_server_starts_again_and_a_dropped_one_leaves_nothing() {
        let server = Server::start();
        let url = server.url("postgres");
        until_answering(&url).await;
        server.kill();
        server.start_again();
        until_answering(&url).await;

        let (dir, postmaster) = (server.dir.clone(), server.postmaster());
        drop(server);
        assert!(!dir.exists(), "the directory is left");
        assert!(!postmaster.is_alive(), "the server is left");
    }
}
