//! The system calls that the standard library does not offer safely. All `unsafe` of the crate.
#![expect(unsafe_code, reason = "the one place of this crate where it may stand")]

use std::{
    ffi::{CString, c_char},
    fs::File,
    io::{self, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    ptr,
    sync::{Mutex, PoisonError},
};

/// Names the descriptor from which a launched process reads its launch document.
pub(crate) const LAUNCH_FD: &str = "DORMOUSE_LAUNCH_FD";

/// What is read from a descriptor usually fits into so many bytes, and then takes two system calls.
const USUAL: usize = 4 << 10;

/// The descriptor that the environment variable names, and takes the variable away, so that programs
/// which the workflow runs do not believe that they were launched too.
pub(crate) fn take_launch_fd() -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "how a launched process learns of its descriptor")]
    let text = std::env::var(LAUNCH_FD).ok()?;
    if is_single_threaded() {
        // SAFETY: there is no other thread that could read the environment meanwhile.
        unsafe { std::env::remove_var(LAUNCH_FD) };
    }
    Some(text)
}

/// Whether this thread is the only one; `false` when the system does not say.
fn is_single_threaded() -> bool {
    // A folder has a link from itself, one from above and one from each folder in it: here a thread.
    std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() == 3)
}

/// Closes the descriptor in programs that this process runs. Fails if it is not open.
pub(crate) fn set_close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFD and F_SETFD takes no pointers; a bad descriptor is an error.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFD) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads the descriptor to its end, at most `max` bytes and one, and closes it.
pub(crate) fn read_to_end(fd: RawFd, max: u64) -> io::Result<Vec<u8>> {
    set_close_on_exec(fd)?;
    // SAFETY: the launcher hands this descriptor to this process alone, it is open (checked above),
    // and the variable that names it is taken once, so nothing else here owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    let mut bytes = Vec::with_capacity(USUAL);
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// This machine's monotonic clock, as the environment reads it; 0 if there is none.
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable for the call, which writes nothing else; on an error it stays 0.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
}

/// Reads the descriptor from offset 0, at most `max` bytes, without moving its position: other
/// processes share it.
pub(crate) fn read_from_start(fd: RawFd, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; max];
    let mut filled = 0;
    while filled < max {
        let rest = &mut bytes[filled..];
        let offset = libc::off_t::try_from(filled).map_err(io::Error::other)?;
        // SAFETY: `rest` is writable for its whole length during the call.
        let n = unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), offset) };
        match usize::try_from(n) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Whether the descriptor is a socket.
pub(crate) fn is_socket(fd: RawFd) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `stat` is live and valid when all-zero; a bad descriptor is an error.
    let (done, stat) = unsafe { (libc::fstat(fd, stat.as_mut_ptr()), stat.assume_init()) };
    done == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

/// Descriptors that come with one datagram, at most.
const DESCRIPTORS: usize = 3;

/// Waits for the next datagram, at most `max` bytes, with the descriptors that came with it, closed in programs that
/// this process runs. Empty: the other end is closed.
pub(crate) fn receive(fd: RawFd, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // As large and as aligned as CMSG_SPACE(3 descriptors) needs.
    let mut control = [0_u64; 8];
    let mut bytes = vec![0; max];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid; what it points to lives until after the call.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let n = loop {
        // SAFETY: `message` describes live, writable memory of the given lengths.
        let n = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(n) = usize::try_from(n) {
            break n;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has filled `message` and the control buffer behind it.
    let descriptors = unsafe { descriptors_of(&message) };
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {max} bytes")));
    }
    bytes.truncate(n);
    Ok((bytes, descriptors))
}

/// # Safety
/// `message` is as `recvmsg` left it, and its control buffer is alive.
unsafe fn descriptors_of(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::with_capacity(DESCRIPTORS);
    // SAFETY: the macros walk through the control buffer within its length; each descriptor in it was made for this
    // process by the kernel, and nothing else owns it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for at in (0..bytes).step_by(size_of::<RawFd>()) {
                    let mut number = [0; size_of::<RawFd>()];
                    ptr::copy_nonoverlapping(data.add(at), number.as_mut_ptr(), number.len());
                    found.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    found
}

/// Sends one datagram. Whoever is to read it may be gone, which its reader hears by itself.
pub(crate) fn send(fd: RawFd, bytes: &[u8]) {
    // SAFETY: `bytes` is readable for its length during the call.
    let _ = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

/// Makes these this process's standard output, standard error and working directory, in this order.
pub(crate) fn take_over(descriptors: &[OwnedFd]) -> io::Result<()> {
    let [output, error, directory] = descriptors else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: calls on plain numbers of open descriptors. 1 and 2 are this process's outputs, whoever writes there
    // goes on writing, to the new files.
    let done = unsafe {
        libc::dup2(output.as_raw_fd(), 1) >= 0
            && libc::dup2(error.as_raw_fd(), 2) >= 0
            && libc::fchdir(directory.as_raw_fd()) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An environment as the C library wants it: the texts, and the pointers to them with a null at the end.
struct Environment {
    pointers: Vec<*mut c_char>,
    _texts: Vec<CString>,
}

// SAFETY: the pointers point into the texts beside them, which move with them and are never written.
unsafe impl Send for Environment {}

/// Replaces this process's whole environment, `NAME=value` each, also while other threads run: they find the old one
/// or the new one, whole. Whoever still reads the old one may: it is kept until the next but one.
pub(crate) fn replace_environment(texts: Vec<Vec<u8>>) -> io::Result<()> {
    static KEPT: Mutex<[Option<Environment>; 2]> = Mutex::new([None, None]);
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    let texts: Vec<CString> = texts.into_iter().map(CString::new).collect::<Result<_, _>>()?;
    let pointers = texts.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect();
    let mut new = Environment { pointers, _texts: texts };
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: one aligned word is stored. The array and its texts stay where they are until two later calls, and the
    // C library copies an array that it has not made itself before it changes it.
    unsafe { (&raw mut environ).write_volatile(new.pointers.as_mut_ptr()) };
    kept.swap(0, 1);
    kept[1] = Some(new);
    Ok(())
}

/// Makes processes that lose their parent below this one its own children, so that they can be seen.
pub(crate) fn adopt_orphans() {
    // SAFETY: takes a number and changes nothing but that; without effect on kernels before 3.4.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Stops the three interval timers, which nobody can see from outside.
pub(crate) fn stop_timers() {
    let none: libc::itimerval = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: reads one live itimerval.
        unsafe { libc::setitimer(timer, &raw const none, ptr::null_mut()) };
    }
}

/// Ends the process at once: no destructors, no exit handlers, whatever other threads do.
pub(crate) fn exit(code: u8) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Writes out what C code has printed and its library buffers. May wait for a stream that another thread holds.
pub(crate) fn flush_c_streams() {
    // SAFETY: a null pointer stands for every open stream. A failure loses output, as with any full disk.
    let _ = unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Sends SIGKILL to this process.
pub(crate) fn kill_self() -> ! {
    // SAFETY: no pointers; the process exists and is our own.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    // Only reached while the signal is on its way.
    exit(137)
}

/// Makes the linker and the optimizer keep `bytes` in the binary.
pub(crate) fn keep(bytes: &[u8]) {
    if let Some(first) = bytes.first() {
        // SAFETY: a reference is valid for reads.
        let _ = unsafe { std::ptr::read_volatile(first) };
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn reads_from_the_start_however_often() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"127.0.0.1:1\n").unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(read_from_start(fd, 64).unwrap(), b"127.0.0.1:1\n");
        assert_eq!(read_from_start(fd, 9).unwrap(), b"127.0.0.1");
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        assert!(set_close_on_exec(987_654).is_err());
        assert!(read_to_end(987_654, 10).is_err());
    }
}
