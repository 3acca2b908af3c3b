//! Processes that stand ready: launched and connected, and of no instance yet.
//!
//! - [`pool`]: how many of which image, when they are started, and when they are ended.
//! - [`kept`]: one such process: begun, handed over to an attempt, looked at and refitted afterwards, ended.
//! - [`channel`]: how it is told what to do.
//! - [`look`]: whether its last instance left anything behind.
//!
//! A spare serves one attempt and is replaced in the background. Where an image allows reuse, a process whose
//! instance ended in order and left nothing behind becomes a spare again, for the same image and tenant.
//!
//! It never decides which attempt is launched (the wake scheduler does) nor watches one (the supervisor does), and
//! nothing of it outlives this service: a process without an instance leaves when its channel ends, and what is
//! recorded below `spares/` is ended at the next start. Keeps invariant 4 (a process is known as its attempt's before
//! it can act, and a spare is handed over once) and invariant 8 (a process serves one tenant).

pub(crate) mod channel;
mod kept;
mod look;
mod pool;

pub(crate) use self::{
    kept::{Files, Handed, Stay, end_leftovers},
    pool::{Again, Handle, Pool},
};

/// The first release of the SDK whose processes can.
const FIRST: (u64, u64) = (0, 3);

/// Whether processes that link this release of the SDK can stand by.
pub(crate) fn can_stand_by(sdk_version: &str) -> bool {
    let mut numbers = sdk_version.split(['.', '-', '+']).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= FIRST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_releases_and_others_cannot_stand_by() {
        for able in ["0.3.0", "0.3.1", "0.10.0", "1.0.0", "0.3.0-rc.1"] {
            assert!(can_stand_by(able), "{able}");
        }
        for unable in ["", "0.2.0", "0.1.9", "three", "0", "0.x.3"] {
            assert!(!can_stand_by(unable), "{unable}");
        }
    }
}
