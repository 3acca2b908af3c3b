//! A shell that cleans up after this process, however it ends: kill -9 and Ctrl-C run no destructor.
//!
//! It waits for the end of a pipe whose other end this process holds. It never acts while that is open.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Anything but an absolute path, told whole, ends it without an effect.
const READ_DIRECTORY: &str = r"
    trap '' HUP INT TERM
    cd /
    IFS= read -r dir || exit
    case $dir in /*/*) ;; *) exit ;; esac";

/// Kills every process that was told of the directory, by its arguments or its environment. Twice, for
/// the first ones may have started others meanwhile. `grep` is told by its input: it would find itself.
const KILL_ALL_OF: &str = r#"
    for round in 1 2; do
        found=$(printf '%s/\n' "$dir" |
            grep -laF -f - /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3)
        for pid in $found; do kill -9 "$pid" 2>/dev/null; done
    done"#;

/// The shell. Dropped, it does its work and is waited for.
#[derive(Debug)]
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// When this process is gone, or at the drop, runs the script with the directory's path in `dir`.
    pub fn of(dir: &Path, script: &str) -> Self {
        assert!(
            dir.is_absolute() && dir.components().count() > 2,
            "{} is no directory of a test",
            dir.display()
        );
        // The path comes by the pipe: what tells of the directory in its arguments is killed.
        let script = format!("{READ_DIRECTORY}\nread -r dismissed && exit\n{script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.spawn().expect("there is a shell");
        let pipe = shell.stdin.as_mut().expect("it was asked for");
        writeln!(pipe, "{}", dir.display()).expect("the shell reads");
        Self { shell }
    }

    /// The same, and it kills the processes that belong to the directory.
    pub fn killing_all_of(dir: &Path) -> Self {
        Self::of(dir, KILL_ALL_OF)
    }

    /// Nothing is left for it to do.
    pub fn dismiss(mut self) {
        let pipe = self.shell.stdin.as_mut().expect("it is taken at the drop only");
        // A guard that is gone needs no word.
        drop(writeln!(pipe, "dismissed"));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        if let Err(error) = self.shell.wait() {
            eprintln!("a guard was lost: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Pid;

    #[test]
    fn it_kills_what_was_told_of_the_directory_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let sleeper = |variable: &str| {
            let child =
                Command::new("sleep").arg("1000").env("GUARDED", variable).spawn().expect("there is sleep");
            let pid = Pid::of(i32::try_from(child.id()).expect("a pid fits")).expect("it runs");
            (child, pid)
        };
        let (mut mine, mine_pid) = sleeper(&dir.path().join("x").display().to_string());
        let (mut other, other_pid) = sleeper("/nowhere/x");
        let guard = Guard::killing_all_of(dir.path());
        let before = [mine_pid.is_alive(), other_pid.is_alive()];
        drop(guard);
        let after = [mine_pid.is_alive(), other_pid.is_alive()];
        for child in [&mut mine, &mut other] {
            drop(child.kill());
            child.wait().expect("our child");
        }
        assert_eq!((before, after), ([true, true], [false, true]));
    }
}
