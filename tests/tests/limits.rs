//! `docs/limits.md` says the numbers that the code has.

use std::{fs, path::Path, time::Duration};

use dormouse_core::{domain::id::InstanceId, limits::Limits};
use dormouse_proto::limits as wire;

/// The second cell of the row that begins so.
fn documented(what: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    let text = fs::read_to_string(path).expect("the page is there");
    let row = text.lines().find(|line| line.starts_with(&format!("| {what} |")));
    let row = row.unwrap_or_else(|| panic!("docs/limits.md has no row {what:?}"));
    row.split(" | ").nth(1).expect("a second cell").trim_end_matches(" |").to_owned()
}

fn bytes(bytes: usize) -> String {
    match bytes {
        whole if whole % (1 << 20) == 0 => format!("{} MiB", whole >> 20),
        whole if whole % (1 << 10) == 0 => format!("{} KiB", whole >> 10),
        odd => format!("{odd} B"),
    }
}

fn count(number: u64) -> String {
    match number {
        1_000_000 => "1 million".to_owned(),
        large if large >= 1000 => format!("{},{:03}", large / 1000, large % 1000),
        small => small.to_string(),
    }
}

fn time(time: Duration) -> String {
    match time.as_secs() {
        days if days % 86_400 == 0 => format!("{} days", days / 86_400),
        minutes if minutes % 60 == 0 => format!("{} min", minutes / 60),
        seconds => format!("{seconds} s"),
    }
}

#[test]
fn the_page_says_what_the_code_enforces() {
    let limits = Limits::default();
    let pages =
        format!("{} checkpoints or {}", count(limits.page_checkpoints as u64), bytes(limits.page_bytes));
    let backoff =
        format!("{}, doubling to {}, ± 20 %", time(limits.crash_backoff), time(limits.crash_backoff_max));
    let env = format!("{} variables, {}", limits.env_variables, bytes(limits.env_bytes));
    for (what, number) in [
        ("payload of a checkpoint, signal or event; input; output", bytes(limits.payload_bytes)),
        ("frame on the main stream", bytes(wire::FRAME_MAX_BYTES)),
        ("requests in flight for each connection", wire::REQUESTS_IN_FLIGHT.to_string()),
        ("bytes in flight for each connection", bytes(wire::BYTES_IN_FLIGHT)),
        ("page of a resume", pages),
        ("image", bytes(usize::try_from(dormouse_environment::images::DEFAULT_MAX_BYTES).expect("64 bits"))),
        ("environment named by a start", env),
        ("checkpoints of one instance", count(limits.checkpoints)),
        ("unread signals of one instance", count(limits.unread_signals)),
        ("crashes in a row without a new checkpoint", limits.crashes.to_string()),
        ("launch deadline: from claim to registration", time(limits.launch_deadline)),
        ("backoff after a crash", backoff),
        ("grace of a cancel", time(limits.cancel_grace)),
        (
            "QUIC idle time-out; keep-alive",
            format!("{}; {}", time(wire::IDLE_TIMEOUT), time(wire::KEEP_ALIVE)),
        ),
        ("ended instances are kept", time(limits.retention)),
    ] {
        assert_eq!(
            documented(what),
            number,
            "the row {what:?} of docs/limits.md (left) and the code (right)"
        );
    }
    assert_eq!((wire::PAYLOAD_MAX_BYTES, wire::NAME_MAX_BYTES), (limits.payload_bytes, 200));
    assert_eq!(InstanceId::MAX, 128);
}
