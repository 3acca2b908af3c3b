//! `docs/limits.md` says the numbers that the code has.

use std::{fs, path::Path, time::Duration};

use dormouse_core::{
    domain::id::InstanceId,
    limits::{self as core, Limits},
};
use dormouse_environment::limits as environment;
use dormouse_proto::{call::InFlight, door::Places, limits as wire};

/// The second cell of the row that begins so.
fn documented(what: &str) -> String {
    cells(what)[0].clone()
}

/// The cells of the row that begins so, without the first.
fn cells(what: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    let text = fs::read_to_string(path).expect("the page is there");
    let row = text.lines().find(|line| line.starts_with(&format!("| {what} |")));
    let row = row.unwrap_or_else(|| panic!("docs/limits.md has no row {what:?}"));
    row.trim_end_matches('|').split(" | ").skip(1).map(|cell| cell.trim().to_owned()).collect()
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
        minutes if minutes % 60 == 0 && minutes > 60 => format!("{} min", minutes / 60),
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
        ("requests of one connection that are carried out at a time", wire::TURNS.to_string()),
        ("fields of one request", count(wire::REQUEST_FIELDS as u64)),
        ("one frame, from its first byte to its last", time(wire::FRAME_TIMEOUT)),
        ("one answer or push, until it is handed to the connection", time(wire::READ_TIMEOUT)),
        ("an upload without a further byte", time(environment::UPLOAD_PATIENCE)),
        ("a service that starts waits for PostgreSQL", time(core::DATABASE_PATIENCE)),
        ("longest wait of one long poll", time(environment::LONGEST_POLL)),
    ] {
        assert_eq!(
            documented(what),
            number,
            "the row {what:?} of docs/limits.md (left) and the code (right)"
        );
    }
    let handshake = [wire::CONNECT_TIMEOUT, wire::HELLO_TIMEOUT, core::REGISTER_WITHIN].map(time);
    assert_eq!(handshake, ["10 s", "10 s", "10 s"]);
    assert_eq!(documented("handshake; to the hello; to the registration"), "10 s each");
    let goodbye = format!("{}; {}", time(core::FINISH_WITHIN), time(wire::FAREWELL_TIMEOUT));
    assert_eq!(documented("shutdown: requests in flight; farewell"), goodbye);
    assert_eq!((wire::PAYLOAD_MAX_BYTES, wire::NAME_MAX_BYTES), (limits.payload_bytes, 200));
    assert_eq!(InstanceId::MAX, 128);
}

#[test]
fn the_page_says_what_a_service_bears() {
    let number = |number: usize| count(number as u64);
    let uploads = format!(
        "{}; {}; {}",
        environment::UPLOADS,
        environment::UPLOADS_OF_TENANT,
        environment::UPLOADS_OF_CONNECTION
    );
    let places = |places: &Places| {
        let Places { connections, of_one_address, strangers, strangers_of_one_address, crowd } = *places;
        [
            ("connections", number(connections)),
            ("connections of one address", number(of_one_address)),
            ("strangers: connections that have not proved themselves", number(strangers)),
            ("strangers of one address", number(strangers_of_one_address)),
            ("strangers from which on an address must be proved", number(crowd)),
        ]
    };
    let in_flight = |of: &InFlight, all: &InFlight| {
        [
            ("requests in flight of one tenant", number(of.requests)),
            ("bytes in flight of one tenant", bytes(of.bytes)),
            ("requests of one tenant that are carried out at a time", number(of.turns)),
            ("requests in flight", number(all.requests)),
            ("bytes in flight", bytes(all.bytes)),
            ("requests that are carried out at a time", number(all.turns)),
        ]
    };
    let window = bytes(usize::try_from(wire::STRANGER_WINDOW_BYTES).expect("64 bits"));
    let both = |what, one: &str| (what, [one.to_owned(), one.to_owned()]);
    let mut rows = vec![
        both("what a stranger may send before it is read", &window),
        both("handshakes under way", &number(wire::HANDSHAKES)),
        (
            "connections of one tenant",
            [number(core::PLACES.connections), number(environment::CONNECTIONS_OF_TENANT)],
        ),
        ("requests of a stranger", [number(core::REQUESTS_OF_A_STRANGER), "0".to_owned()]),
        ("uploads under way; of one tenant; of one connection", ["–".to_owned(), uploads]),
        (
            "entries on a page of checkpoints, events, attempts",
            [number(Limits::default().page_checkpoints), environment::PAGE.to_string()],
        ),
    ];
    let of_core = places(&core::PLACES).into_iter();
    let of_core = of_core.chain(in_flight(&core::IN_FLIGHT_OF_TENANT, &core::IN_FLIGHT));
    let of_environment = places(&environment::PLACES).into_iter();
    let of_environment =
        of_environment.chain(in_flight(&environment::IN_FLIGHT_OF_TENANT, &environment::IN_FLIGHT));
    rows.extend(
        of_core.zip(of_environment).map(|((what, core), (_, environment))| (what, [core, environment])),
    );
    for (what, numbers) in rows {
        assert_eq!(
            cells(what)[..2],
            numbers,
            "the row {what:?} of docs/limits.md (left) and the code (right)"
        );
    }
}
