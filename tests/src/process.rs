//! Processes as the kernel shows them, and the services that a test runs.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::wait;

/// One process: its number and when it started, so that a number that was given again is not
/// mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pid {
    number: i32,
    /// In ticks since the boot.
    started: u64,
}

impl Pid {
    /// The process that has this number now.
    pub fn of(number: i32) -> Option<Self> {
        let (_, started) = stat(number)?;
        Some(Self { number, started })
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.number
    }

    /// Whether it still runs. A process that ended and was not waited for does not.
    pub fn is_alive(self) -> bool {
        stat(self.number)
            .is_some_and(|(state, started)| started == self.started && state != 'Z' && state != 'X')
    }

    /// Where it works, under the name that the directory has now.
    pub fn directory(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/cwd", self.number)).ok()
    }

    /// Its children.
    pub fn children(self) -> Vec<Self> {
        let all = numbers();
        all.into_iter().filter(|number| parent(*number) == Some(self.number)).filter_map(Self::of).collect()
    }
}

/// Every living process that was started with this variable, with its value.
pub fn with_variable(name: &str) -> Vec<(String, Pid)> {
    let value_and_pid = |number| Some((variable(number, name)?, Pid::of(number)?));
    numbers().into_iter().filter_map(value_and_pid).filter(|(_, pid)| pid.is_alive()).collect()
}

fn variable(number: i32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{number}/environ")).ok()?;
    let variables = environment.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    variables
        .filter_map(|entry| entry.split_once('='))
        .find(|(n, _)| *n == name)
        .map(|(_, value)| value.to_owned())
}

fn numbers() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// State and start time, out of `/proc/N/stat`; the name in it may hold anything.
fn stat(number: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn parent(number: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    text.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// A program that a test runs and kills. Its output goes to a file.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Service {
    /// Starts a program; what it prints is appended to `log`. In a process group of its own, so
    /// that Ctrl-C at the terminal ends the test, and the test ends it.
    pub fn start(program: &Path, arguments: &[String], variables: &[(String, String)], log: &Path) -> Self {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(log).expect("own directory");
        let mut command = Command::new(program);
        command.args(arguments).envs(variables.iter().cloned());
        // Nothing of the developer's own set-up.
        for variable in ["DORMOUSE_DATA_DIR", "DORMOUSE_SERVER", "DORMOUSE_DATABASE"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let child =
            command.process_group(0).spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let number = i32::try_from(child.id()).expect("a pid fits");
        let pid = Pid::of(number).expect("it was not waited for");
        Self { name, child, pid, log: log.to_owned() }
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits until it has ended by itself.
    pub async fn until_ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait::until(&format!("{name} has ended"), async || self.exit().ok_or("it runs")).await
    }

    /// kill -9, and waited for.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        if self.child.kill().is_ok() {
            self.child.wait().expect("it is our child");
        }
    }

    /// The end of what it has printed.
    pub fn log_tail(&self) -> String {
        const MOST: i64 = 16 * 1024;
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let length = file.metadata().map_or(0, |metadata| i64::try_from(metadata.len()).unwrap_or(0));
            let read = file.seek(SeekFrom::End(-MOST.min(length))).and_then(|_| file.read_to_end(&mut text));
            if let Err(error) = read {
                return format!("{}: {error}", self.log.display());
            }
        }
        format!("--- the end of {}'s log\n{}", self.name, String::from_utf8_lossy(&text))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
