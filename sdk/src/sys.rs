//! The system calls that the standard library does not offer safely. All `unsafe` of the crate.
#![expect(unsafe_code, reason = "the one place of this crate where it may stand")]

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{FromRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    },
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
