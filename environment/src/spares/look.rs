//! Looks at a process from outside: did its instance leave anything behind?
//!
//! A process is used again only if everything that the kernel shows of it is as it was before its first instance:
//! threads, descriptors, children, signal handlers and masks, timers, limits, priority, user, umask. What the kernel
//! does not show (memory) is why reuse is off by default and never crosses tenants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
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
        })
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
}
