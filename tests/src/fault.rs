//! The faults: kill -9, at a named point or at any moment.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid as Number,
};

use crate::process::Pid;

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
