//! Types of values: how each is read from text, what would pass, and how it is shown.
//!
//! Every layer gives text (a TOML integer becomes its digits), so that a value means the same
//! in a file, in a variable and as a flag.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// What kinds of TOML a value may be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// An integer.
    Integer,
    /// Either.
    TextOrInteger,
    /// A string, or an array of them.
    List,
}

/// A type that a key may have.
pub trait Value: Sized + Clone + fmt::Debug + PartialOrd {
    /// How a TOML file writes it.
    const SHAPE: Shape;
    /// A relative one in a file begins at the file's folder.
    const IS_PATH: bool = false;
    /// Not set.
    const NONE: Option<Self> = None;

    /// What would pass, as it follows "it must be".
    fn must() -> &'static str;
    /// Reads it.
    fn parse(text: &str) -> Option<Self>;
    /// As [`Value::parse`] reads it; without secrets.
    fn show(&self) -> String;
}

impl<T: Value> Value for Option<T> {
    const SHAPE: Shape = T::SHAPE;
    const IS_PATH: bool = T::IS_PATH;
    const NONE: Option<Self> = Some(None);

    fn must() -> &'static str {
        T::must()
    }

    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }
}

impl Value for PathBuf {
    const SHAPE: Shape = Shape::Text;
    const IS_PATH: bool = true;

    fn must() -> &'static str {
        "a path"
    }

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains('\0')).then(|| text.into())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for SocketAddr {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "an IP address with a port, such as 127.0.0.1:8001 or [::]:8001"
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Where others connect to: `HOST:PORT`, a name or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort(pub String);

impl Value for HostPort {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "HOST:PORT, such as node-1.example.org:8001"
    }

    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"/@,".contains(c);
        let host_is_good = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains(':') && host.chars().all(plain),
        };
        let port_is_good = port.parse::<u16>().is_ok_and(|port| port != 0);
        (host_is_good && port_is_good).then(|| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Several; in a variable or flag separated by commas.
impl<T: Value> Value for Vec<T> {
    const SHAPE: Shape = Shape::List;
    const NONE: Option<Self> = Some(Self::new());

    fn must() -> &'static str {
        T::must()
    }

    fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|part| T::parse(part.trim())).collect()
    }

    fn show(&self) -> String {
        self.iter().map(T::show).collect::<Vec<_>>().join(",")
    }
}

/// A count.
impl Value for u32 {
    const SHAPE: Shape = Shape::Integer;

    fn must() -> &'static str {
        "a whole number"
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A large count.
impl Value for u64 {
    const SHAPE: Shape = Shape::Integer;

    fn must() -> &'static str {
        "a whole number"
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Factors of 1024; the others would be a trap of two meanings.
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for Bytes {
    const SHAPE: Shape = Shape::TextOrInteger;

    fn must() -> &'static str {
        "a size such as 4MiB (KiB, MiB, GiB, TiB, or a number of bytes)"
    }

    fn parse(text: &str) -> Option<Self> {
        for (unit, factor) in SIZES {
            if let Some(number) = text.strip_suffix(unit) {
                return number.trim_end().parse::<u64>().ok()?.checked_mul(factor).map(Self);
            }
        }
        text.strip_suffix('B').unwrap_or(text).trim_end().parse().ok().map(Self)
    }

    fn show(&self) -> String {
        let whole = SIZES.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        whole.map_or_else(|| self.0.to_string(), |(unit, factor)| format!("{}{unit}", self.0 / factor))
    }
}

impl Bytes {
    /// For memory.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Value for Duration {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "a time such as 500ms, 15s, 5m, 1h30m or 30d"
    }

    fn parse(text: &str) -> Option<Self> {
        parse_duration(text)
    }

    fn show(&self) -> String {
        show_duration(*self)
    }
}

/// Reads `500ms`, `90s`, `15m`, `1h30m`, `7d`: whole numbers, each with its unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let millis = match &after[..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(millis).map(Duration::from_millis)?)?;
        rest = &after[unit_end..];
    }
    Some(total)
}

/// As [`parse_duration`] reads it.
fn show_duration(time: Duration) -> String {
    let mut millis = time.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= factor {
            text.push_str(&format!("{}{unit}", millis / factor));
            millis %= factor;
        }
    }
    text
}

/// Where the rows are, as [`crate::store::Database::parse`] reads it; may hold a password.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatabaseUrl(pub String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

impl Value for DatabaseUrl {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "postgres://USER@HOST/NAME, or sqlite:PATH"
    }

    fn parse(text: &str) -> Option<Self> {
        crate::store::Database::parse(text).is_ok().then(|| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        mask(&self.0)
    }
}

/// Hides what may be a password: all between the user and the host, and parameters of that name.
fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // The last @, before anything else: a password may hold any character that was not escaped.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (user.split_once(':').map_or(user, |(user, _)| user), place),
        None => ("", rest),
    };
    let hidden = if rest.len() > user.len() + 1 + place.len() { ":***" } else { "" };
    let at = if rest.contains('@') { "@" } else { "" };
    let (place, parameters) = place.split_once('?').unwrap_or((place, ""));
    let parameters = parameters.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}=***"),
        _ => part.to_owned(),
    });
    let parameters = parameters.collect::<Vec<_>>().join("&");
    let question = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{user}{hidden}{at}{place}{question}{parameters}")
}

/// How a node or core replica calls itself, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub String);

impl Value for Name {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "1 to 200 bytes without spaces and control characters"
    }

    fn parse(text: &str) -> Option<Self> {
        let good = |c: char| !c.is_control() && !c.is_whitespace();
        ((1..=200).contains(&text.len()) && text.chars().all(good)).then(|| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Which log lines are written, such as `info,dormouse_core=debug`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogFilter(pub String);

impl Value for LogFilter {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "error, warn, info, debug, trace or off, also for each module: info,dormouse_core=debug"
    }

    fn parse(text: &str) -> Option<Self> {
        tracing_subscriber::EnvFilter::try_new(text).ok().map(|_| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

impl Value for LogFormat {
    const SHAPE: Shape = Shape::Text;

    fn must() -> &'static str {
        "text or json"
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
        .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_what_they_show() {
        for (text, millis) in [("500ms", 500), ("15s", 15_000), ("1h30m", 5_400_000), ("30d", 2_592_000_000)]
        {
            let time = parse_duration(text).expect(text);
            assert_eq!((time.as_millis(), show_duration(time).as_str()), (millis, text));
        }
        for text in ["", "5", "h", "-1s", "1y", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_read_what_they_show() {
        for (text, bytes) in [("4MiB", 4 << 20), ("1TiB", 1 << 40), ("1025", 1025), ("0", 0)] {
            assert_eq!(Bytes::parse(text), Some(Bytes(bytes)));
            assert_eq!(Bytes(bytes).show(), text);
        }
        assert_eq!(Bytes::parse("10 KiB"), Some(Bytes(10 << 10)));
        for text in ["", "4MB", "4M", "-1", "1.5MiB", "99999999999TiB", "MiB"] {
            assert_eq!(Bytes::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            ("postgres://u:secret@h:5/d", "postgres://u:***@h:5/d"),
            ("postgres://u:se@cr:et@h/d", "postgres://u:***@h/d"),
            ("postgres://u:se?cr/et@h/d", "postgres://u:***@h/d"),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("postgres://h/d", "postgres://h/d"),
            ("postgres://u@h/d?sslmode=require", "postgres://u@h/d?sslmode=require"),
            ("postgres://h/d?user=u&password=secret", "postgres://h/d?user=u&password=***"),
            ("sqlite:/var/lib/x.db", "sqlite:/var/lib/x.db"),
        ] {
            let url = DatabaseUrl::parse(url).expect(url);
            assert_eq!(url.show(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn addresses_of_others_have_a_host_and_a_port() {
        for text in ["h:1", "node-1.example.org:8001", "10.0.0.1:65535", "[::1]:8001"] {
            assert!(HostPort::parse(text).is_some(), "{text}");
        }
        for text in ["", "h", "h:", ":1", "h:0", "h:65536", "::1:8001", "[x]:1", "http://h:1", "a b:1"] {
            assert!(HostPort::parse(text).is_none(), "{text}");
        }
        let two = Vec::<HostPort>::parse("a:1, b:2").expect("two");
        assert_eq!(two.show(), "a:1,b:2");
        assert!(Vec::<HostPort>::parse("a:1,").is_none());
    }
}
