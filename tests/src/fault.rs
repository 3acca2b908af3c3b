//! The faults: kill -9, at a named point or at any moment.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid as Number,
};

use crate::{process::Pid, wait};

/// Kills a service at a named point (`name`, or `name:n` for the n-th pass).
pub const SERVICE_VARIABLE: &str = dormouse_core::fault::VARIABLE;
/// Kills a workflow's process at a named point of the SDK.
pub const WORKFLOW_VARIABLE: &str = "DORMOUSE_SDK_KILL_AT";

/// kill -9 of exactly this process, if it still lives.
pub fn kill_9(pid: Pid) {
    send(pid, Signal::SIGKILL);
}

/// Sends a signal to exactly this process, if it still lives.
pub fn send(pid: Pid, signal: Signal) {
    if pid.is_alive() {
        match kill(Number::from_raw(pid.number()), signal) {
            // It ended by itself between the two lines.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("cannot send {signal} to {pid:?}: {error}"),
        }
    }
}

/// The source of a test's random moments. Its seed is printed, and taken from
/// `DORMOUSE_TEST_SEED` if that is set.
pub fn random() -> fastrand::Rng {
    let seed = match env::var("DORMOUSE_TEST_SEED") {
        Ok(text) => text.parse().expect("DORMOUSE_TEST_SEED is a number"),
        Err(_) => fastrand::Rng::new().u64(..),
    };
    eprintln!("DORMOUSE_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// How often a test kills at random: 10 times, 50 in `./test --long`.
pub fn kills() -> usize {
    if is_long() { 50 } else { 10 }
}

/// Whether this is `./test --long`.
pub fn is_long() -> bool {
    env::var_os("DORMOUSE_TEST_LONG").is_some()
}

/// A random time, in milliseconds below `most`. Not a wait for a state: the moment of a fault.
pub fn up_to(random: &mut fastrand::Rng, most: u64) -> Duration {
    Duration::from_millis(random.u64(0..most))
}

/// Compiles a library that makes the disk fail for the programs that load it (`LD_PRELOAD`), as [`Disk`]
/// tells it.
pub fn faulty_disk(path: PathBuf) -> PathBuf {
    compiled(path, include_str!("faulty_disk.c"))
}

/// Faults of a disk that come and go while programs run.
#[derive(Debug)]
pub struct Disk {
    switches: PathBuf,
    library: PathBuf,
}

impl Disk {
    /// Without faults; its files are in `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        let switches = dir.join("disk-faults");
        fs::create_dir(&switches).expect("own directory");
        // The programs may be another user's, and answer there.
        fs::set_permissions(&switches, fs::Permissions::from_mode(0o777)).expect("own directory");
        Self { library: faulty_disk(dir.join("faulty_disk.so")), switches }
    }

    /// What a program needs to have its disk here.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        let (library, switches) = (self.library.display(), self.switches.display());
        [("LD_PRELOAD", library.to_string()), ("DISK_FAULTS", switches.to_string())]
    }

    /// No space is left for files whose path holds this.
    pub fn fill(&self, which: &str) {
        fs::write(self.switches.join("full"), which).expect("own directory");
    }

    /// Files whose path holds this are not flushed any more.
    pub fn stop_flushing(&self, which: &str) {
        fs::write(self.switches.join("unflushed"), which).expect("own directory");
    }

    /// Flushes of files whose path holds this do not return any more.
    pub fn hang(&self, which: &str) {
        fs::write(self.switches.join("hung"), which).expect("own directory");
    }

    /// Waits until a flush hangs.
    pub async fn until_hanging(&self) {
        let told = self.switches.join("hanging");
        wait::until("a flush hangs", async || if told.exists() { Ok(()) } else { Err("none does") }).await;
    }

    /// All is well again.
    pub fn heal(&self) {
        for switch in ["full", "unflushed", "hung", "hanging"] {
            drop(fs::remove_file(self.switches.join(switch)));
        }
    }
}

/// Compiles a library that shifts the machine's clock by `WRONG_BY_SECONDS`, and nothing else, for the
/// programs that load it (`LD_PRELOAD`).
pub fn wrong_clock(path: PathBuf) -> PathBuf {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <time.h>
        int clock_gettime(clockid_t id, struct timespec *at) {
            static int (*right)(clockid_t, struct timespec *);
            static long shift;
            if (!right) {
                const char *text = getenv("WRONG_BY_SECONDS");
                shift = text ? atol(text) : 0;
                right = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
            }
            int result = right(id, at);
            if (id == CLOCK_REALTIME) at->tv_sec += shift;
            return result;
        }
    "#;
    compiled(path, SOURCE)
}

fn compiled(path: PathBuf, text: &str) -> PathBuf {
    let source = path.with_extension("c");
    fs::write(&source, text).expect("own directory");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&path)
        .arg(&source)
        .arg("-ldl")
        .output();
    let output = output.expect("there is a C compiler: SQLite was built by it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// kill -9 of the process that has this number, if one has.
pub fn kill_number(pid: i32) {
    // It may be gone.
    let _gone = kill(Number::from_raw(pid), Signal::SIGKILL);
}
