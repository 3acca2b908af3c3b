//! The system calls that std, nix and rustix do not offer safely. All `unsafe` of this crate.
//!
//! - [`spawn`]: `clone(CLONE_VM | CLONE_VFORK | CLONE_PIDFD)` and `execveat` by descriptor. A
//!   plain fork would copy the page tables of the whole service for each launch; this one
//!   borrows its memory until the exec, as `posix_spawn` does, and returns a pidfd at once.
//! - [`reap`], [`exit_of_stranger`]: how a process ended, with what it used.
//! - [`keep_children_waitable`]: an inherited `SIGCHLD = ignore` would lose every status.
//!
//! It never decides what is launched: it gets a finished [`Plan`].

#![expect(unsafe_code, reason = "the one place of this crate for system calls; each block says why it holds")]

use std::{
    ffi::{CString, c_char, c_int, c_long, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
};

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{Interest, unix::AsyncFd};

/// Where the child finds its descriptors; everything from [`CLOSED_FROM`] on is closed.
pub(super) const DOCUMENT_FD: RawFd = 3;
/// The core replicas' addresses.
pub(super) const ADDRESSES_FD: RawFd = 4;
/// The image, close-on-exec.
const IMAGE_FD: RawFd = 5;
const CLOSED_FROM: RawFd = 6;

/// Every descriptor of a [`Plan`] is this or higher.
pub(super) const RAISED_FROM: RawFd = 10;

/// Everything that the child does, ready made: after the clone nothing is allocated.
pub(super) struct Plan<'a> {
    /// The verified file. This and the other descriptors are not below [`RAISED_FROM`], so that
    /// none is overwritten while the child arranges its own.
    pub(super) image: BorrowedFd<'a>,
    /// Become 0, 1, 2, 3 and 4.
    pub(super) descriptors: [BorrowedFd<'a>; 5],
    /// The working directory.
    pub(super) directory: BorrowedFd<'a>,
    /// `argv`, with the name first.
    pub(super) arguments: &'a [CString],
    /// `NAME=value` each.
    pub(super) environment: &'a [CString],
    /// Resource, soft and hard limit.
    pub(super) limits: &'a [(Limit, u64)],
}

/// A resource whose soft and hard limit are set to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Bytes of a core dump.
    Core,
    /// Highest number of open descriptors.
    OpenFiles,
}

/// A child that runs the image.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Blocking signals or cloning.
    Clone,
    /// Its own session and process group.
    Session,
    /// Its descriptors.
    Descriptors,
    /// Its working directory.
    Directory,
    /// Its resource limits.
    Limits,
    /// Running the image.
    Exec,
}

impl Step {
    const ALL: [Self; 6] =
        [Self::Clone, Self::Session, Self::Descriptors, Self::Directory, Self::Limits, Self::Exec];

    fn number(self) -> u32 {
        match self {
            Self::Clone => 0,
            Self::Session => 1,
            Self::Descriptors => 2,
            Self::Directory => 3,
            Self::Limits => 4,
            Self::Exec => 5,
        }
    }

    fn of(number: u32) -> Self {
        Self::ALL.into_iter().find(|step| step.number() == number).unwrap_or(Self::Clone)
    }

    /// Half a sentence: "… failed".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clone => "making the process",
            Self::Session => "giving it a session of its own",
            Self::Descriptors => "arranging its descriptors",
            Self::Directory => "entering its working directory",
            Self::Limits => "setting its resource limits",
            Self::Exec => "executing the image",
        }
    }
}

/// Why no process runs.
#[derive(Debug, thiserror::Error)]
#[error("{} failed", step.as_str())]
pub struct SpawnError {
    /// Where.
    pub step: Step,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// What the child reads and, when it fails, writes: plain memory, shared until the exec.
struct Shared {
    image: c_int,
    descriptors: [c_int; 5],
    directory: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    limits: *const (c_long, libc::rlimit64),
    n_limits: usize,
    failed_step: AtomicU32,
    failed_errno: AtomicI32,
}

/// Small: the child calls a handful of system calls, and perhaps the dynamic linker once.
const STACK_BYTES: usize = 64 * 1024;

/// Launches the plan. Blocks until the image runs (below a millisecond) or has failed to; in the
/// latter case no process is left. To be called off the async threads.
pub(super) fn spawn(plan: &Plan<'_>) -> Result<Spawned, SpawnError> {
    let all = plan.descriptors.iter().chain([&plan.image, &plan.directory]);
    if all.map(AsRawFd::as_raw_fd).any(|fd| fd < RAISED_FROM) {
        return Err(SpawnError { step: Step::Descriptors, source: io::ErrorKind::InvalidInput.into() });
    }
    let arguments = pointers(plan.arguments);
    let environment = pointers(plan.environment);
    let limits: Vec<_> = plan.limits.iter().map(|(limit, value)| rlimit(*limit, *value)).collect();
    let shared = Shared {
        image: plan.image.as_raw_fd(),
        descriptors: plan.descriptors.map(|fd| fd.as_raw_fd()),
        directory: plan.directory.as_raw_fd(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        limits: limits.as_ptr(),
        n_limits: limits.len(),
        failed_step: AtomicU32::new(0),
        failed_errno: AtomicI32::new(0),
    };
    let cloned = clone_child(&shared).map_err(|source| SpawnError { step: Step::Clone, source })?;
    match shared.failed_errno.load(Ordering::Acquire) {
        0 => Ok(cloned),
        errno => {
            // It has left already: nothing is waited for but the kernel.
            wait_out(&cloned.pidfd);
            let step = Step::of(shared.failed_step.load(Ordering::Acquire));
            Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) })
        }
    }
}

/// The null-terminated array that exec wants; valid as long as `texts` is.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

fn rlimit(limit: Limit, value: u64) -> (c_long, libc::rlimit64) {
    let resource = match limit {
        Limit::Core => libc::RLIMIT_CORE,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
    };
    (c_long::from(resource), libc::rlimit64 { rlim_cur: value, rlim_max: value })
}

fn clone_child(shared: &Shared) -> io::Result<Spawned> {
    // A handler of this process must not run in the child, on memory that both share: all
    // signals wait until the child has reset its handlers.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let mut stack = vec![MaybeUninit::<u128>::uninit(); STACK_BYTES / size_of::<u128>()];
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the stack is 16-byte aligned, grows down from its end and lives until after the
    // call; because of CLONE_VFORK this thread continues only once the child has executed or
    // exited, so `shared` and what it points to outlive every use of them. `child` is a plain
    // function that neither unwinds nor allocates. CLONE_PIDFD writes one int to the fifth
    // argument, which is a live local.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast::<c_void>(),
            flags,
            ptr::from_ref(shared).cast_mut().cast::<c_void>(),
            &raw mut pidfd,
        )
    };
    let cloned = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    before.thread_set_mask()?;
    let pid = Pid::from_raw(cloned?).ok_or_else(|| io::Error::other("clone answered 0 to the parent"))?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec.
    Ok(Spawned { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// The child, between clone and exec: on its own stack, in its parent's memory. Only
/// async-signal-safe calls: other threads of the parent run on and may hold any lock.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `clone_child` passes a `Shared` that outlives the child's use of it.
    let shared = unsafe { &*argument.cast::<Shared>().cast_const() };
    let step = run_child(shared);
    // SAFETY: errno is the calling thread's, which waits until this child is gone.
    let errno = unsafe { *libc::__errno_location() };
    shared.failed_step.store(step.number(), Ordering::Release);
    shared.failed_errno.store(errno, Ordering::Release);
    // SAFETY: leaves without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// Does each step in order and answers which one failed, with errno set; returns only then.
fn run_child(shared: &Shared) -> Step {
    // SAFETY (all calls here): system calls on plain numbers and on memory that lives until the
    // exec. They are async-signal-safe, and their effect (signal handlers, session, descriptor
    // table, directory, limits) is the child's alone, since neither CLONE_SIGHAND nor
    // CLONE_FILES nor CLONE_FS was given.
    unsafe {
        reset_signals();
        // No parent death signal: an instance outlives the environment.
        if libc::setsid() < 0 {
            return Step::Session;
        }
        for (target, source) in (0..).zip(shared.descriptors) {
            if libc::dup2(source, target) < 0 {
                return Step::Descriptors;
            }
        }
        if libc::dup3(shared.image, IMAGE_FD, libc::O_CLOEXEC) < 0 {
            return Step::Descriptors;
        }
        if libc::fchdir(shared.directory) < 0 {
            return Step::Directory;
        }
        // By number, not through the C library: older ones have no such function.
        if libc::syscall(
            libc::SYS_close_range,
            c_long::from(CLOSED_FROM),
            c_long::from(u32::MAX),
            0 as c_long,
        ) < 0
        {
            return Step::Descriptors;
        }
        libc::umask(0o022);
        for i in 0..shared.n_limits {
            let (resource, value) = &*shared.limits.add(i);
            let nothing = ptr::null_mut::<libc::rlimit64>();
            if libc::syscall(libc::SYS_prlimit64, 0 as c_long, *resource, ptr::from_ref(value), nothing) < 0 {
                return Step::Limits;
            }
        }
        volunteer_for_the_oom_killer();
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::syscall(
            libc::SYS_execveat,
            c_long::from(IMAGE_FD),
            c"".as_ptr(),
            shared.arguments,
            shared.environment,
            c_long::from(libc::AT_EMPTY_PATH),
        );
    }
    Step::Exec
}

/// Handlers would be reset by the exec anyway, but what this service ignores (SIGPIPE) would
/// stay ignored in the workflow.
///
/// # Safety
/// Only in the child of a clone without `CLONE_SIGHAND`.
unsafe fn reset_signals() {
    for signal in 1..=64 {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all-zero is a valid sigaction (no flags, empty mask); SIG_DFL is a constant.
        // SIGKILL, SIGSTOP and the C library's own signals are refused, which changes nothing.
        unsafe {
            (*action.as_mut_ptr()).sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, action.as_ptr(), ptr::null_mut());
        }
    }
}

/// When memory ends, a workflow is killed (and launched again), not the services. A kernel or
/// container that forbids it is no reason not to launch.
///
/// # Safety
/// Only in the child of a clone without `CLONE_FILES`.
unsafe fn volunteer_for_the_oom_killer() {
    // SAFETY: a constant path, a constant buffer of four bytes, a descriptor of our own.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"1000".as_ptr().cast(), 4);
            libc::close(file);
        }
    }
}

/// How a process ended and what it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) status: Status,
    pub(crate) usage: Usage,
}

/// What the kernel says of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
}

/// What a process and the children it waited for used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Largest resident set, in bytes. Never below that of the service that launched it: at the exec the kernel
    /// takes the memory that both shared until then for the process's own.
    pub peak_memory_bytes: u64,
    /// Processor time in user and kernel mode, in microseconds.
    pub cpu_micros: u64,
}

/// Collects a child's status; `None` while it runs. Fails with `ECHILD` if it is not our child
/// or was collected before.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Reaped>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let options = c_long::from(libc::WEXITED | libc::WNOHANG);
    // SAFETY: both out-parameters are live, of the kernel's types, and valid when all-zero. The
    // raw call, since the C library's `waitid` has no argument for the usage.
    let done = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            c_long::from(libc::P_PIDFD),
            c_long::from(pidfd.as_raw_fd()),
            info.as_mut_ptr(),
            options,
            usage.as_mut_ptr(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, perhaps filled by the kernel: initialised either way; the fields of
    // the union that are read are those of a child's end.
    let (info, usage, pid, status) = unsafe {
        let (info, usage) = (info.assume_init(), usage.assume_init());
        (info, usage, info.si_pid(), info.si_status())
    };
    if pid == 0 {
        return Ok(None);
    }
    let status = if info.si_code == libc::CLD_EXITED { Status::Code(status) } else { Status::Signal(status) };
    let micros = |time: libc::timeval| {
        let whole = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_usec);
        u64::try_from(whole).unwrap_or(0)
    };
    let usage = Usage {
        // The kernel counts in KiB.
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
        cpu_micros: micros(usage.ru_utime).saturating_add(micros(usage.ru_stime)),
    };
    Ok(Some(Reaped { status, usage }))
}

/// From now on the peak of a process's memory counts anew; answers the processor time that it has used so far, in
/// microseconds. What the kernel does not tell counts as nothing.
pub(crate) fn begin_accounting(pid: i32) -> u64 {
    // 5: the peak alone (proc(5)). Not in every kernel: the peak is then that of the whole process.
    let _unsupported = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
    // As clock_getcpuclockid(3) makes it for a process.
    let clock = (!pid << 3) | 2;
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: writes one timespec, which is live, and valid when all-zero; a clock of nobody is an error.
    let (done, time) = unsafe { (libc::clock_gettime(clock, time.as_mut_ptr()), time.assume_init()) };
    if done < 0 {
        return 0;
    }
    let micros = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_nsec) / 1_000;
    u64::try_from(micros).unwrap_or(0)
}

/// Waits until a child that is leaving is gone, and collects it.
fn wait_out(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    // ECHILD is the only possible error: somebody ignores SIGCHLD, and it is gone as well.
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
}

/// The kernel's `struct pidfd_info` in its first form (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`
const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 0x0B;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How a process that is not our child ended: known from Linux 6.15 on, once its parent has
/// collected it. `None`: not known, or not yet.
pub(crate) fn exit_of_stranger(pidfd: BorrowedFd<'_>) -> Option<Status> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request encodes the size of the struct that is passed, which is live; an older
    // kernel refuses the request and writes nothing.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as libc::Ioctl, &raw mut info) };
    if done < 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    // As wait(2) encodes it.
    match info.exit_code & 0x7f {
        0 => Some(Status::Code((info.exit_code >> 8) & 0xff)),
        signal => Some(Status::Signal(signal)),
    }
}

/// Undoes an inherited `SIGCHLD = ignore`, under which the kernel forgets every child's status.
/// A handler that somebody has set stays.
pub(crate) fn keep_children_waitable() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: reads the present action into live memory; all-zero is a valid sigaction; setting
    // the default is always allowed.
    let done = unsafe {
        if libc::sigaction(libc::SIGCHLD, ptr::null(), action.as_mut_ptr()) == 0
            && (*action.as_ptr()).sa_sigaction == libc::SIG_IGN
        {
            (*action.as_mut_ptr()).sa_sigaction = libc::SIG_DFL;
            libc::sigaction(libc::SIGCHLD, action.as_ptr(), ptr::null_mut())
        } else {
            0
        }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the runtime wait until the process has ended.
pub(crate) fn watch(pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped, and the
    // `AsyncFd` owns it until then.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    watched.map_err(tokio::io::unix::AsyncFdRegisterError::into_parts)
}

/// A pidfd of a process that may be a stranger's child.
pub(crate) fn pidfd_of(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
