//! Processes that stand ready: launched and connected, and of no instance yet.

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
