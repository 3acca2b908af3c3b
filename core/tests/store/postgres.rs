//! The PostgreSQL server of the tests, and a schema on it for each test: a database each would
//! cost a second, mostly of flushing.

#![expect(clippy::disallowed_methods, reason = "a test fixture: it reads its variable and starts a server")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{LazyLock, OnceLock},
};

use sqlx::{ConnectOptions as _, Connection as _, Executor as _, postgres::PgConnectOptions};

/// The URL of a superuser's connection, if the caller has a server.
const VARIABLE: &str = "DORMOUSE_TEST_POSTGRES";

/// A schema that is this test's alone.
pub(crate) struct TestDatabase {
    url: String,
    /// Dropped at the end, if the server outlives us.
    drop: Option<(String, String)>,
}

impl TestDatabase {
    pub(crate) async fn create() -> Self {
        let given = std::env::var(VARIABLE).ok().filter(|url| !url.is_empty());
        let admin = given.clone().unwrap_or_else(|| own_server().to_owned());
        let options: PgConnectOptions = admin.parse().expect("the administrator's URL is a URL");
        let mut conn = options.connect().await.unwrap_or_else(|error| {
            panic!("PostgreSQL does not answer at the address in {VARIABLE}: {error}")
        });
        let name = format!("dormouse_test_{:x}_{:016x}", std::process::id(), random());
        let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {name}"));
        conn.execute(create).await.expect("a superuser creates schemas");
        conn.close().await.expect("a connection closes");
        // The URL that options become leaves this one out.
        let url = format!("{}&options[search_path]={name}", options.to_url_lossy());
        Self { url, drop: given.map(|admin| (admin, name)) }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some((admin, name)) = self.drop.take() else { return };
        // A test's runtime may be gone or busy: one of our own, on a thread of its own.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let options: PgConnectOptions = admin.parse().expect("parsed before");
                let Ok(mut conn) = options.connect().await else { return };
                let drop = sqlx::AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE"));
                if let Err(error) = conn.execute(drop).await {
                    eprintln!("schema {name} stays behind: {error}");
                }
            });
        });
        let _ = dropping.join();
    }
}

/// A server of this test process. Its keeper, a shell, waits for the end of a pipe that we hold:
/// however we end, it then stops the server and removes its directory.
struct OwnServer {
    url: String,
    _keeper: Child,
}

fn own_server() -> &'static str {
    static SERVER: LazyLock<OwnServer> = LazyLock::new(start_server);
    &SERVER.url
}

/// Initialises, starts, says so, waits for the end of its input, stops, removes.
const KEEPER: &str = r#"
trap '' INT TERM HUP
set -e
cd "$DIR"
clean() { "$BIN/pg_ctl" -D "$DIR/data" -m immediate -w stop >/dev/null 2>&1 || true; rm -rf "$DIR"; }
trap clean EXIT
"$BIN/initdb" -D "$DIR/data" -U postgres -A trust -E UTF8 --no-sync >"$DIR/log" 2>&1 || { cat "$DIR/log"; exit 1; }
"$BIN/pg_ctl" -D "$DIR/data" -l "$DIR/log" -w start \
    -o "-k $DIR -c listen_addresses='' -c max_connections=500 -c fsync=on" >/dev/null 2>&1 || { cat "$DIR/log"; exit 1; }
echo ready
cat >/dev/null
"#;

fn start_server() -> OwnServer {
    let binaries = binaries();
    // Short: a socket's path may have 107 bytes.
    let directory = PathBuf::from(format!("/tmp/dormouse-pg-{:x}-{:016x}", std::process::id(), random()));
    std::fs::create_dir(&directory).expect("a directory for the server");
    let mut command = if is_root() {
        // PostgreSQL refuses to run as root.
        let owned = Command::new("chown").arg("postgres").arg(&directory).status();
        assert!(owned.is_ok_and(|status| status.success()), "root can chown to postgres");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-c", KEEPER]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER]);
        command
    };
    command.env("DIR", &directory).env("BIN", &binaries).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut keeper = command.spawn().expect("a shell starts");
    let mut output = BufReader::new(keeper.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the keeper speaks");
    if line != "ready\n" {
        let _ = output.read_to_string(&mut line);
        panic!("the tests' PostgreSQL server did not start: {line}");
    }
    let host = directory.to_string_lossy().replace('/', "%2F");
    OwnServer { url: format!("postgres://postgres@{host}/postgres"), _keeper: keeper }
}

/// Tells runs apart that go on at once.
fn random() -> u64 {
    getrandom::u64().expect("the kernel has random bytes")
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The newest PostgreSQL of this machine.
fn binaries() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
            let mut installed: Vec<(u32, PathBuf)> = versions
                .filter_map(|entry| {
                    Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
                })
                .filter(|(version, path)| *version >= 14 && path.join("initdb").exists())
                .collect();
            installed.sort();
            let on_path = || {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).find(|path| path.join("initdb").exists())
            };
            installed.pop().map(|(_, path)| path).or_else(on_path).unwrap_or_else(|| {
                panic!(
                    "PostgreSQL is not installed; install it with `apt-get install postgresql`, \
                     or set {VARIABLE} to the URL of a superuser's connection"
                )
            })
        })
        .clone()
}
