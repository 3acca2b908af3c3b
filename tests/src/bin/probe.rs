//! An image whose process takes its launch document, writes it where the test can read it, and does
//! nothing more: the test itself speaks for the instance then.
//!
//! It links no SDK, so it carries the list of its workflows by hand.

#![expect(clippy::disallowed_methods, reason = "a program of its own, told everything by its environment")]

use std::{env, fs, io, path::PathBuf, thread};

use dormouse_proto::launch::LaunchDocument;
use prost::Message;

const LIST: &[u8; LIST_BYTES] = b"dormouse-sdk 0.0.0 protocol 1\nprobe\n";
const LIST_BYTES: usize = 36;

#[expect(unsafe_code, reason = "a section has no safe attribute; nobody reads it by that name at run time")]
#[unsafe(link_section = ".dormouse")]
#[used]
static WORKFLOWS: [u8; LIST_BYTES] = *LIST;

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::var_os("DORMOUSE_PROBE_DIR").ok_or_else(|| told("DORMOUSE_PROBE_DIR"))?);
    let descriptor = env::var("DORMOUSE_LAUNCH_FD").map_err(|_| told("DORMOUSE_LAUNCH_FD"))?;
    // Ends when the launcher closes its end.
    let bytes = fs::read(format!("/proc/self/fd/{descriptor}"))?;
    let document = LaunchDocument::decode(&bytes[..]).map_err(io::Error::other)?;
    if document.token.is_empty() {
        // The launcher died: nobody knows this process.
        return Ok(());
    }
    // Output that tells one from another.
    println!("{}", folder.display());
    let draft = folder.join(format!("{}.draft", document.attempt));
    fs::write(&draft, &bytes)?;
    fs::rename(draft, folder.join(format!("{}.document", document.attempt)))?;
    loop {
        thread::park();
    }
}

fn told(variable: &str) -> io::Error {
    io::Error::other(format!("{variable} is not set; the tests' harness starts this program"))
}
