//! What the kernel offers: versions, system calls, buffers and limits. Read from `/proc` and
//! `/sys`, or asked by harmless calls.

use std::{fs, path::Path, time::SystemTime};

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, Verdict};
use crate::output::bytes;

/// What the design asks for.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// What a server asks the kernel for; see `dormouse_proto::limits`.
const BUFFER: u64 = dormouse_proto::limits::SOCKET_BUFFER_BYTES as u64;
/// Descriptors a node needs for its default slots, with room to spare.
const DESCRIPTORS_MIN: u64 = 4096;

#[expect(
    clippy::disallowed_methods,
    reason = "an expiry is compared with this machine's clock; nothing is stored"
)]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

pub(super) fn findings() -> Vec<Finding> {
    vec![
        kernel(),
        cores_and_memory(),
        socket_buffer("receive buffer", "/proc/sys/net/core/rmem_max", "net.core.rmem_max"),
        socket_buffer("send buffer", "/proc/sys/net/core/wmem_max", "net.core.wmem_max"),
        descriptors(),
        cgroup(),
        landlock(),
        seccomp(),
        user_namespaces(),
    ]
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    const WHAT: &str = "kernel";
    let Some(release) = read("/proc/sys/kernel/osrelease") else {
        return Finding::bad(
            WHAT,
            "no /proc/sys/kernel/osrelease",
            "run the services on Linux with /proc mounted",
        );
    };
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => {
            Finding::good(WHAT, format!("Linux {release}"))
        }
        _ => Finding::bad(
            WHAT,
            format!("Linux {release}"),
            format!("the services need Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1),
        ),
    }
}

fn cores_and_memory() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let memory = memory.map_or("memory unknown".to_owned(), |kib| bytes(kib * 1024));
    Finding::good("machine", format!("{cores} cores, {memory}"))
}

fn socket_buffer(what: &'static str, path: &str, key: &str) -> Finding {
    match read(path).and_then(|text| text.parse::<u64>().ok()) {
        Some(max) if max >= BUFFER => Finding::good(what, format!("{key} is {max}")),
        Some(max) => Finding::poor(
            what,
            format!("{key} is {max}: bursts of many instances may lose packets and be slower"),
            format!("sysctl -w {key}={BUFFER}"),
        ),
        None => Finding::poor(what, format!("{key} cannot be read"), ""),
    }
}

fn descriptors() -> Finding {
    const WHAT: &str = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= DESCRIPTORS_MIN => Finding::good(WHAT, format!("at most {hard}")),
        Ok((_, hard)) => Finding::poor(
            WHAT,
            format!("at most {hard}: a full node needs more"),
            format!("raise the hard limit to {DESCRIPTORS_MIN}: ulimit -Hn, or LimitNOFILE= of the unit"),
        ),
        Err(error) => Finding::poor(WHAT, format!("unknown: {error}"), ""),
    }
}

/// Isolation comes with a later release; what the machine would offer can be seen now.
fn isolation(what: &'static str, offered: bool, seen: String, remedy: &str) -> Finding {
    let verdict = if offered { Verdict::Good } else { Verdict::Poor };
    Finding { what, verdict, seen, remedy: if offered { String::new() } else { remedy.to_owned() } }
}

fn cgroup() -> Finding {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    let delegated = path.is_some_and(|path| {
        let dir = format!("/sys/fs/cgroup{path}");
        nix::unistd::access(Path::new(&dir), nix::unistd::AccessFlags::W_OK).is_ok()
    });
    match (v2, delegated) {
        (true, true) => isolation("cgroup v2", true, "delegated".to_owned(), ""),
        (true, false) => isolation(
            "cgroup v2",
            false,
            "there, but not delegated to us: no memory and CPU limits per instance".to_owned(),
            "run the services as a systemd unit with Delegate=yes",
        ),
        (false, _) => isolation(
            "cgroup v2",
            false,
            "not mounted: no memory and CPU limits per instance".to_owned(),
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

fn landlock() -> Finding {
    let modules = read("/sys/kernel/security/lsm").unwrap_or_default();
    let offered = modules.split(',').any(|module| module == "landlock");
    let seen = if offered { "offered" } else { "not offered by this kernel, or not to be seen" };
    isolation("landlock", offered, seen.to_owned(), "boot with lsm=landlock,… on Linux 5.13 or newer")
}

fn seccomp() -> Finding {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    let seen = if actions.is_some() { "offered" } else { "not offered by this kernel" };
    isolation("seccomp", actions.is_some(), seen.to_owned(), "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn user_namespaces() -> Finding {
    let most = read("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse::<u64>().ok());
    let forbidden = read("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0")
        || read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    let root = nix::unistd::geteuid().is_root();
    let offered = most.is_some_and(|most| most > 0) && (root || !forbidden);
    let seen = if offered { "offered" } else { "not allowed here" };
    isolation(
        "user namespaces",
        offered,
        seen.to_owned(),
        "sysctl -w user.max_user_namespaces=15000, or run the services as root",
    )
}
