//! Looks at a process from outside: did its instance leave anything behind?
//!
//! A process is used again only if everything that the kernel shows of it is as it was before its first instance:
//! threads, descriptors, children, signal handlers and masks, timers, limits, priority, user, umask. What the kernel
//! does not show (memory) is why reuse is off by default and never crosses tenants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::attempts::{AttemptDirectory, Stream};

/// Lines of `/proc/PID/status` that must not change.
const STATUS: [&str; 12] = [
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "SigBlk:",
    "SigIgn:",
    "SigCgt:",
    "CapEff:",
    "CapPrm:",
    "NoNewPrivs:",
    "Seccomp:",
    "Cpus_allowed:",
];

/// A process as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    threads: BTreeSet<i32>,
    children: BTreeSet<i32>,
    /// What each points at; standard output and error are told by their place alone.
    descriptors: BTreeMap<i32, PathBuf>,
    /// Whether standard output, standard error and the working directory are those of the process's directory.
    own: bool,
    status: Vec<String>,
    limits: String,
    timers: String,
    nice: String,
    files: Files,
}

/// The files that the process was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    /// Of the directory and all that was made in it: mode, owner, group, bytes of extended attributes.
    made: Vec<(u32, u32, u32, usize)>,
    /// How standard output and standard error are open.
    flags: [u32; 2],
    /// Something was written, made or linked.
    used: bool,
}

impl Files {
    fn at(pid: i32, directory: &AttemptDirectory) -> io::Result<Self> {
        let outputs = Stream::ALL.map(|stream| directory.stream(stream));
        let folders = [directory.path.clone(), directory.work(), directory.tmp()];
        let (mut made, mut used) = (Vec::new(), false);
        for path in outputs.iter().chain(&folders) {
            let file = fs::symlink_metadata(path)?;
            used |= file.is_file() && (file.len() > 0 || file.nlink() != 1);
            made.push((file.mode(), file.uid(), file.gid(), attributes(path)));
        }
        for (folder, entries) in folders.iter().zip([ENTRIES, 0, 0]) {
            used |= fs::read_dir(folder)?.count() != entries;
        }
        let flags =
            |fd| Ok::<_, io::Error>(open_flags(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?));
        Ok(Self { made, flags: [flags(1)?, flags(2)?], used })
    }
}

/// Entries of a directory as it is made: the record, two outputs, two folders.
const ENTRIES: usize = 5;

/// Bytes of the names of a file's extended attributes; none where there is no such thing.
fn attributes(path: &Path) -> usize {
    rustix::fs::llistxattr(path, &mut [0_u8; 0][..]).unwrap_or(0)
}

/// From the kernel's account of a descriptor, without what says nothing about the file: closed at an exec (the
/// process's own business) and large files (a matter of architecture).
fn open_flags(account: &str) -> u32 {
    const NOT_OF_THE_FILE: u32 = 0o2_100_000;
    let flags = account.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0) & !NOT_OF_THE_FILE
}

impl Look {
    /// At a process whose files are in `directory`. Blocking: reads `/proc`.
    pub(crate) fn at(pid: i32, directory: &AttemptDirectory) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let threads = numbers(&process.join("task"))?;
        let mut children = BTreeSet::new();
        for thread in &threads {
            // Not there on a kernel without CONFIG_PROC_CHILDREN: then nothing is used again.
            let text = fs::read_to_string(process.join(format!("task/{thread}/children")))?;
            children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        let mut descriptors = BTreeMap::new();
        for fd in numbers(&process.join("fd"))? {
            descriptors.insert(fd, fs::read_link(process.join(format!("fd/{fd}")))?);
        }
        let mut is = |fd, path: &Path| descriptors.remove(&fd).is_some_and(|target| target == path);
        let own = is(1, &directory.stream(Stream::Stdout))
            & is(2, &directory.stream(Stream::Stderr))
            & (fs::read_link(process.join("cwd"))? == directory.work());
        let status = fs::read_to_string(process.join("status"))?;
        let status = status.lines().filter(|line| STATUS.iter().any(|name| line.starts_with(name)));
        let stat = fs::read_to_string(process.join("stat"))?;
        // Field 19, where the text behind the name begins with field 3.
        let nice = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(16));
        Ok(Self {
            threads,
            children,
            descriptors,
            own,
            status: status.map(str::to_owned).collect(),
            limits: fs::read_to_string(process.join("limits"))?,
            // Not on every kernel.
            timers: fs::read_to_string(process.join("timers")).unwrap_or_default(),
            nice: nice.unwrap_or_default().to_owned(),
            files: Files::at(pid, directory)?,
        })
    }

    /// Whether its directory and its outputs can be the next instance's: nobody has used them, and they are what
    /// they were `before`.
    pub(crate) fn files_are_unused(&self, before: &Self) -> bool {
        !self.files.used && self.files == before.files
    }

    /// What is there now and was not there `before`, as the end of "it left …"; `None`: nothing.
    pub(crate) fn left_since(&self, before: &Self) -> Option<String> {
        if !self.own {
            return Some("its working directory or its output elsewhere".to_owned());
        }
        let threads = self.threads.difference(&before.threads).count();
        if threads > 0 {
            return Some(format!("{threads} threads"));
        }
        let children = self.children.difference(&before.children).count();
        if children > 0 {
            return Some(format!("{children} child processes"));
        }
        let open = self.descriptors.iter().find(|(fd, target)| before.descriptors.get(fd) != Some(target));
        if let Some((fd, target)) = open {
            return Some(format!("descriptor {fd} open ({})", target.display()));
        }
        if let Some(fd) = before.descriptors.keys().find(|fd| !self.descriptors.contains_key(fd)) {
            return Some(format!("descriptor {fd} closed"));
        }
        let changed = self.status.iter().zip(&before.status).find(|(now, then)| now != then);
        if let Some((now, _)) = changed {
            return Some(format!("a changed {}", now.replace(['\t', ':'], " ").trim()));
        }
        if self.status.len() != before.status.len() || self.limits != before.limits {
            return Some("changed limits".to_owned());
        }
        if self.timers != before.timers {
            return Some("a timer".to_owned());
        }
        (self.nice != before.nice).then(|| format!("its priority at {}", self.nice))
    }
}

/// The names of a folder that are numbers.
fn numbers(folder: &Path) -> io::Result<BTreeSet<i32>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempts::{Attempts, Retention};

    fn look() -> Look {
        Look {
            threads: [1, 2].into(),
            children: BTreeSet::new(),
            descriptors: [(0, "/dev/null".into()), (3, "socket:[7]".into())].into(),
            own: true,
            status: vec!["Umask:\t0022".to_owned(), "SigCgt:\t0".to_owned()],
            limits: "Max open files 10".to_owned(),
            timers: String::new(),
            nice: "0".to_owned(),
            files: Files { made: vec![(0o40700, 0, 0, 0)], flags: [0o2001; 2], used: false },
        }
    }

    #[test]
    fn each_thing_that_is_left_is_told() {
        let before = look();
        assert_eq!(look().left_since(&before), None);
        let fewer = Look { threads: [1].into(), ..look() };
        assert_eq!(fewer.left_since(&before), None, "a thread that went left nothing");
        let mut more = look();
        more.descriptors.insert(9, "/etc/passwd".into());
        let mut other = look();
        other.descriptors.insert(3, "socket:[8]".into());
        let mut closed = look();
        closed.descriptors.remove(&0);
        let cases = [
            (Look { threads: [1, 2, 9].into(), ..look() }, "1 threads"),
            (Look { children: [5].into(), ..look() }, "1 child processes"),
            (more, "descriptor 9 open (/etc/passwd)"),
            (other, "descriptor 3 open (socket:[8])"),
            (closed, "descriptor 0 closed"),
            (Look { own: false, ..look() }, "its working directory or its output elsewhere"),
            (
                Look { status: vec!["Umask:\t0077".to_owned(), "SigCgt:\t0".to_owned()], ..look() },
                "a changed Umask  0077",
            ),
            (Look { limits: "Max open files 9".to_owned(), ..look() }, "changed limits"),
            (Look { timers: "ID: 0".to_owned(), ..look() }, "a timer"),
            (Look { nice: "19".to_owned(), ..look() }, "its priority at 19"),
        ];
        for (now, told) in cases {
            assert_eq!(now.left_since(&before).as_deref(), Some(told));
        }
    }

    #[test]
    fn files_that_were_used_are_not_the_next_ones() {
        let before = look();
        assert!(look().files_are_unused(&before));
        let changed = [
            Files { used: true, ..before.files.clone() },
            Files { made: vec![(0o40755, 0, 0, 0)], ..before.files.clone() },
            Files { made: vec![(0o40700, 0, 0, 5)], ..before.files.clone() },
            Files { flags: [0o6001, 0o2001], ..before.files.clone() },
        ];
        for files in changed {
            let now = Look { files, ..look() };
            assert!(!now.files_are_unused(&before), "{now:?}");
            assert_eq!(now.left_since(&before), None, "what it was given, it may change");
        }
        assert_eq!(open_flags("pos:\t0\nflags:\t02102001\nmnt_id:\t7\n"), 0o2001);
    }

    #[test]
    fn a_directory_is_unused_until_something_is_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = Attempts::open(folder.path(), Retention::default()).expect("made");
        let directory = attempts.create_spare(1).expect("made");
        for path in [directory.record(), directory.stream(Stream::Stdout), directory.stream(Stream::Stderr)] {
            fs::write(path, "").expect("written");
        }
        let me = i32::try_from(std::process::id()).expect("small");
        let used = || Files::at(me, &directory).expect("readable").used;
        assert!(!used());
        for path in [directory.work().join("a"), directory.tmp().join("b"), directory.path.join("c")] {
            fs::write(&path, "").expect("written");
            assert!(used(), "{}", path.display());
            fs::remove_file(path).expect("removed");
        }
        fs::hard_link(directory.stream(Stream::Stdout), folder.path().join("link")).expect("linked");
        assert!(used(), "who has a link reads what the next one writes");
        fs::remove_file(folder.path().join("link")).expect("removed");
        fs::write(directory.stream(Stream::Stderr), "told").expect("written");
        assert!(used());
    }
}
