//! `./test` itself: it starts a server for itself alone, two runs beside each other share nothing,
//! and whatever ends a run, nothing of it is left.

#![expect(clippy::disallowed_methods, reason = "runs the script as a person does")]

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use dormouse_tests::{
    fault, postgres, previous,
    process::{Pid, with_variable},
    wait,
};
use nix::sys::signal::Signal;

/// Stands for cargo: says what it was given, then waits to be ended.
const CARGO: &str = r#"#!/bin/sh
[ "$1" = build ] && exit 0
echo "$DORMOUSE_TEST_POSTGRES" > "$CARGO_SAYS.draft"
echo "$TMPDIR" >> "$CARGO_SAYS.draft"
echo "$DORMOUSE_TEST_LONG" >> "$CARGO_SAYS.draft"
echo "$@" >> "$CARGO_SAYS.draft"
mv "$CARGO_SAYS.draft" "$CARGO_SAYS"
[ "$3" = fails ] && exit 7
exec sleep 1000
"#;

/// A run of `./test`, with that cargo.
struct Run {
    child: Child,
    says: PathBuf,
}

impl Run {
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let cargo = folder.join("cargo");
        fs::write(&cargo, CARGO).expect("own directory");
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("own file");
        let path = env::join_paths(
            [folder.to_path_buf()]
                .into_iter()
                .chain(env::split_paths(&env::var_os("PATH").expect("there is a PATH"))),
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../test");
        let says = folder.join(name);
        // Whoever started us in the background may have us ignore Ctrl-C, and so would our children.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=INT")
            .arg(script)
            .args(arguments)
            .env("PATH", path.expect("a PATH"))
            .env("CARGO_SAYS", &says);
        command.env_remove(postgres::URL_VARIABLE).env_remove("DORMOUSE_TEST_LONG").env_remove("TMPDIR");
        command.env(previous::VARIABLE, previous::directory());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Self { child: command.spawn().expect("the script is there"), says }
    }

    /// What cargo was given: the server, the temporary directory, whether long, its arguments.
    async fn said(&self) -> [String; 4] {
        let text = wait::until("cargo was called", async || fs::read_to_string(&self.says)).await;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.try_into().expect("four lines")
    }

    /// Ends it as a terminal or a person would; answers its exit code.
    async fn end(&mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::of(i32::try_from(self.child.id()).expect("a pid fits")).expect("it runs");
        fault::send(pid, signal);
        self.ended().await
    }

    async fn ended(&mut self) -> Option<i32> {
        wait::until("the script has ended", async || self.child.try_wait().ok().flatten().ok_or("it runs"))
            .await
            .code()
    }
}

#[tokio::test]
async fn two_runs_share_nothing_and_leave_nothing() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut first = Run::start(folder.path(), "first", &["--long", "-p", "one"]);
    let mut second = Run::start(folder.path(), "second", &["some_test"]);
    let ([url, tmp, long, arguments], other) = (first.said().await, second.said().await);
    assert_eq!((long.as_str(), arguments.as_str()), ("1", "test -p one"));
    assert_eq!((other[2].as_str(), other[3].as_str()), ("", "test --workspace some_test"));
    assert_ne!(url, other[0], "one server for both");
    assert_ne!(tmp, other[1], "one temporary directory for both");
    postgres::until_answering(&url).await;
    postgres::until_answering(&other[0]).await;

    // Ctrl-C of one, a kill of the other.
    assert_eq!(first.end(Signal::SIGINT).await, Some(130));
    nothing_is_left(&first, &tmp).await;
    postgres::until_answering(&other[0]).await;
    assert_eq!(second.end(Signal::SIGTERM).await, Some(143));
    nothing_is_left(&second, &other[1]).await;
}

#[tokio::test]
async fn a_failure_of_cargo_is_the_failure_of_the_run() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut run = Run::start(folder.path(), "run", &["fails"]);
    let [_, tmp, ..] = run.said().await;
    assert_eq!(run.ended().await, Some(7));
    nothing_is_left(&run, &tmp).await;
}

/// Neither the directory, nor the server in it, nor what cargo started.
async fn nothing_is_left(run: &Run, tmp: &str) {
    let scratch = Path::new(tmp).parent().expect("in the run's directory");
    assert!(scratch.starts_with("/tmp"), "{tmp}");
    assert!(!scratch.exists(), "{} is left", scratch.display());
    let says = run.says.display().to_string();
    wait::until("nothing that the run started is left", async || {
        let left: Vec<Pid> =
            with_variable("CARGO_SAYS").into_iter().filter(|(v, _)| *v == says).map(|(_, p)| p).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
