//! The system calls of a service, as strace saw them: what was written, flushed and sent, in the order in which
//! the kernel was asked and had answered.
//!
//! strace holds a thread at the entry and at the end of a call until it has written that down. So the order of
//! two lines is the order of what they tell wherever one could have caused the other.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::wait;

/// How to have strace: it is a tool of the tests only.
const REMEDY: &str = "install it: apt-get install strace (./test does so by itself)";

/// Traces one program from its start.
#[derive(Clone, Debug)]
pub struct Tracer {
    output: PathBuf,
    calls: &'static str,
    flush_takes: Duration,
}

impl Tracer {
    /// Writes these calls (as for `strace -e trace=`) to a file. Every flush takes so much longer, so that whoever
    /// does not wait for it is seen.
    ///
    /// Panics, with what to do, where strace is missing or may not trace.
    pub fn new(output: PathBuf, calls: &'static str, flush_takes: Duration) -> Self {
        let look = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
        let look = look.unwrap_or_else(|error| panic!("strace cannot be run: {error}; {REMEDY}"));
        assert!(
            look.status.success(),
            "strace may not trace here: {}; allow ptrace: sysctl kernel.yama.ptrace_scope=1, and in a container \
             --cap-add=SYS_PTRACE",
            String::from_utf8_lossy(&look.stderr).trim()
        );
        Self { output, calls, flush_takes }
    }

    /// The command that starts a program so; the program itself stays the child of whoever runs it.
    pub(crate) fn command(&self, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let mut all: Vec<String> =
            ["-D", "-f", "-y", "-ttt", "-T", "-s", "65536", "-o"].map(str::to_owned).into();
        all.push(self.output.display().to_string());
        all.push(format!("--trace={}", self.calls));
        if !self.flush_takes.is_zero() {
            let micros = self.flush_takes.as_micros();
            all.push(format!("--inject=fdatasync,fsync:delay_enter={micros}"));
        }
        all.push(program.display().to_string());
        all.extend(arguments);
        ("strace".into(), all)
    }

    /// What it has seen, once the program with this number has ended.
    pub async fn until_ended(&self, number: i32) -> Trace {
        let last = [format!("{number} "), " +++ ".to_owned()];
        let text = wait::until("the trace is written to its end", async || {
            let text = fs::read(&self.output).map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&text).into_owned();
            let ended = text.lines().rev().any(|line| line.starts_with(&last[0]) && line.contains(&last[1]));
            if ended { Ok(text) } else { Err("it has no end yet".to_owned()) }
        })
        .await;
        Trace::parse(&text)
    }
}

/// A system call that has returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Its arguments and what it returned, as strace writes them.
    pub text: String,
    /// Where in the trace it began and ended.
    pub began: usize,
    /// See `began`.
    pub ended: usize,
    /// When it began and had ended, in seconds since 1970.
    pub from: f64,
    /// See `from`.
    pub to: f64,
}

impl Call {
    /// What is between its parentheses, first: a descriptor with its file.
    pub fn descriptor(&self) -> &str {
        self.text.split([',', ')']).next().unwrap_or_default()
    }

    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.text
            .rsplit_once(" = ")
            .is_some_and(|(_, result)| !result.starts_with('-') && !result.starts_with('?'))
    }

    /// The port that a datagram was sent to.
    pub fn port(&self) -> Option<u16> {
        let (_, rest) = self.text.split_once("port=htons(")?;
        rest.split(')').next()?.parse().ok()
    }
}

/// A trace.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// In the order in which they ended.
    pub calls: Vec<Call>,
}

impl Trace {
    /// Reads `PID TIME name(arguments) = result <DURATION>`, in one line or, where another thread came between, in two. A call
    /// that never returned is left out.
    pub fn parse(text: &str) -> Self {
        let mut unfinished: HashMap<&str, (usize, f64, String)> = HashMap::new();
        let mut calls = Vec::new();
        for (line, text) in text.lines().enumerate() {
            let mut words = text.splitn(2, ' ');
            let (Some(thread), Some(rest)) = (words.next(), words.next()) else { continue };
            let Some((time, told)) = rest.trim_start().split_once(' ') else { continue };
            let Ok(at) = time.parse::<f64>() else { continue };
            let (began, from, told) = if let Some(begun) = told.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread, (line, at, begun.to_owned()));
                continue;
            } else if let Some(resumed) = told.strip_prefix("<... ") {
                let Some((began, from, begun)) = unfinished.remove(thread) else { continue };
                let (_, rest) = resumed.split_once(" resumed>").expect("strace says which call");
                (began, from, begun + rest)
            } else {
                (line, at, told.to_owned())
            };
            // Signals and ends of threads have no parenthesis.
            if let Some((name, text)) = told.split_once('(') {
                let (text, took) = text.rsplit_once(" <").unwrap_or((text, ""));
                let to = from + took.trim_end_matches('>').parse().unwrap_or(0.0);
                let (name, text) = (name.to_owned(), text.to_owned());
                calls.push(Call { name, text, began, ended: line, from, to });
            }
        }
        Self { calls }
    }

    /// The first call behind line `from` that is such a one.
    pub fn first(&self, from: usize, is_it: impl Fn(&Call) -> bool) -> Option<&Call> {
        self.calls.iter().find(|call| call.began >= from && is_it(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_again() {
        let text = "7  1.5 pwrite64(5</d/x-wal>, \"a, b)\\0\", 4, 0) = 4 <0.25>\n\
                    7  1.6 fdatasync(5</d/x-wal> <unfinished ...>\n\
                    8  1.7 sendmsg(9<socket:[1]>, {msg_name={sin_port=htons(4711)}}, 0) = 30 <0.01>\n\
                    7  1.8 <... fdatasync resumed>) = 0 (DELAYED) <0.2>\n\
                    8  1.9 fsync(5</d/x-wal>) = -1 EIO (Input/output error) <0.1>\n\
                    8  2.0 fsync(5</d/x-wal> <unfinished ...>\n\
                    8  2.1 +++ killed by SIGKILL +++\n";
        let trace = Trace::parse(text);
        let told: Vec<_> =
            trace.calls.iter().map(|c| (c.name.as_str(), c.began, c.ended, c.succeeded())).collect();
        let expected = [
            ("pwrite64", 0, 0, true),
            ("sendmsg", 2, 2, true),
            ("fdatasync", 1, 3, true),
            ("fsync", 4, 4, false),
        ];
        assert_eq!(told, expected);
        assert_eq!(trace.calls[1].port(), Some(4711));
        assert_eq!(trace.calls[2].descriptor(), "5</d/x-wal>");
        let flushed = trace.first(1, |call| call.name == "fdatasync").expect("it is there");
        assert!((flushed.to - 1.8).abs() < 1e-6 && (trace.calls[0].to - 1.75).abs() < 1e-6, "{flushed:?}");
    }
}
