//! How results look: tables for people, JSON for programs, ids for xargs.
//!
//! What is printed is made by pure functions; only [`Screen`] writes. Results go to stdout,
//! everything else to stderr.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anstyle::{AnsiColor, Color, Style};
use comfy_table::{ContentArrangement, Table, presets};
use dormouse_management_sdk::{Checkpoint, Encoding, Failure, Image, Instance, Payload, Status, Timestamp};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::args::Format;

/// Where results are printed, and how.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    /// As the command line asked.
    pub(crate) format: Format,
}

/// The reader of stdout is gone: nothing is wrong, and nothing more is wanted.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl std::fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads stdout any more")
    }
}

impl std::error::Error for ReaderGone {}

impl Screen {
    /// Prints a list in the format that was asked for; `empty` is said on stderr.
    pub(crate) fn list<T, D: Serialize>(
        &self,
        items: &[T],
        headers: &[&str],
        row: impl Fn(&T) -> Vec<String>,
        id: impl Fn(&T) -> String,
        document: impl Fn(&T) -> D,
        empty: &str,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json => print_json(&items.iter().map(document).collect::<Vec<_>>()),
            Format::Ids => print(&items.iter().map(|item| id(item) + "\n").collect::<String>()),
            Format::Table if items.is_empty() => {
                say(empty);
                Ok(())
            }
            Format::Table => print(&table(headers, items.iter().map(row))),
        }
    }

    /// Whether progress may be drawn: only for people, only on a terminal.
    pub(crate) fn draws_progress(&self) -> bool {
        self.format == Format::Table && io::stderr().is_terminal()
    }
}

/// Prints text that may hold styles on stdout; they are dropped where they are not wanted.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    checked(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints bytes as they are on stdout.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    checked(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Prints one JSON value on stdout.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print_bytes(text.as_bytes())
}

fn checked(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        other => Ok(other?),
    }
}

/// Says something to people, on stderr. Losing it costs nothing.
pub(crate) fn say(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// A table without lines: columns apart by two spaces.
pub(crate) fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.iter().map(|header| (*header).to_owned()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A fact per line, the names flush right.
pub(crate) fn facts(lines: &[(&str, String)]) -> String {
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:>10}: {value}");
        text
    })
}

/// RFC 3339 in UTC, for programs.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    match jiff::Timestamp::from_microsecond(at.as_micros()) {
        Ok(at) => at.to_string(),
        // Beyond the year 9999: the services take such due times for "never".
        Err(_) => jiff::Timestamp::MAX.to_string(),
    }
}

/// A moment for people, in their own zone.
pub(crate) fn local(at: Timestamp, zone: &TimeZone) -> String {
    match jiff::Timestamp::from_microsecond(at.as_micros()) {
        Ok(at) => at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "never".to_owned(),
    }
}

/// This machine's clock, for "how long ago" only.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

/// A span for people, in its largest unit.
pub(crate) fn span(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut size = n;
    // Tenths are kept while dividing, so that no float is needed.
    let mut tenths = 0;
    while size >= 1024 && unit + 1 < units.len() {
        tenths = (size % 1024) * 10 / 1024;
        size /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{size} B") } else { format!("{size}.{tenths} {}", units[unit]) }
}

/// What `get -o json` prints: exactly these fields, in this order.
#[derive(Serialize)]
pub(crate) struct InstanceDocument {
    id: String,
    workflow: String,
    image: String,
    status: &'static str,
    attempt: u32,
    node: Option<String>,
    input: serde_json::Value,
    output: serde_json::Value,
    failure: Option<FailureDocument>,
    waiting_for: Option<String>,
    wake_at: Option<String>,
    created_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    retry_of: Option<String>,
}

#[derive(Serialize)]
struct FailureDocument {
    code: String,
    message: String,
    retryable: bool,
    details: Option<serde_json::Value>,
}

impl From<&Instance> for InstanceDocument {
    fn from(instance: &Instance) -> Self {
        Self {
            id: instance.id.clone(),
            workflow: instance.workflow.clone(),
            image: instance.image.clone(),
            status: instance.status.as_str(),
            attempt: instance.attempt,
            node: instance.node.clone(),
            input: payload_json(instance.input.as_ref()),
            output: payload_json(instance.output.as_ref()),
            failure: instance.failure.as_ref().map(FailureDocument::from),
            waiting_for: instance.waiting_for.clone(),
            wake_at: instance.wake_at.map(rfc3339),
            created_at: instance.created_at.map(rfc3339),
            started_at: instance.started_at.map(rfc3339),
            ended_at: instance.ended_at.map(rfc3339),
            retry_of: instance.retry_of.clone(),
        }
    }
}

impl From<&Failure> for FailureDocument {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.clone(),
            message: failure.message.clone(),
            retryable: failure.retryable,
            details: failure.details.clone(),
        }
    }
}

/// A payload as JSON: JSON as it is, other bytes as text if they are text, else as an object
/// that says so.
pub(crate) fn payload_json(payload: Option<&Payload>) -> serde_json::Value {
    let Some(payload) = payload else { return serde_json::Value::Null };
    let json =
        (payload.encoding == Encoding::Json).then(|| serde_json::from_slice(&payload.data).ok()).flatten();
    json.unwrap_or_else(|| match std::str::from_utf8(&payload.data) {
        Ok(text) => text.into(),
        Err(_) => serde_json::json!({ "raw_bytes": payload.data.len() }),
    })
}

/// One instance as a document.
pub(crate) fn instance_json(instance: &Instance) -> InstanceDocument {
    InstanceDocument::from(instance)
}

/// One image as a document.
pub(crate) fn image_json(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "name": image.name,
        "version": image.version,
        "digest": image.digest,
        "size": image.size,
        "workflows": image.workflows,
        "sdk_version": image.sdk_version,
        "architecture": image.architecture,
        "spares": image.spares,
        "reuse": image.reuse,
        "created_at": image.created_at.map(rfc3339),
    })
}

const fn bold() -> Style {
    Style::new().bold()
}

const fn dim() -> Style {
    Style::new().dimmed()
}

/// The colour of a status.
pub(crate) fn status_style(status: Status) -> Style {
    let color = match status {
        Status::Completed => AnsiColor::Green,
        Status::Failed => AnsiColor::Red,
        Status::Cancelled => AnsiColor::Yellow,
        Status::Running => AnsiColor::Cyan,
        Status::Pending | Status::Suspended => AnsiColor::Blue,
    };
    Style::new().fg_color(Some(Color::Ansi(color)))
}

/// The rows of `list`.
pub(crate) fn instance_row(instance: &Instance, now: Timestamp) -> Vec<String> {
    let detail = match (&instance.failure, &instance.waiting_for) {
        (Some(failure), _) => format!("{}: {}", failure.code, failure.message),
        (None, Some(sentence)) => sentence.clone(),
        (None, None) => progress_line(instance).unwrap_or_default(),
    };
    vec![
        instance.id.clone(),
        instance.status.to_string(),
        instance.image.clone(),
        instance.workflow.clone(),
        instance.created_at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default(),
        first_line(&detail, 100),
    ]
}

/// The headers of `list`.
pub(crate) const INSTANCE_HEADERS: [&str; 6] = ["ID", "STATUS", "IMAGE", "WORKFLOW", "CREATED", "DETAIL"];

/// "120 of 400 (30 %) hashing".
pub(crate) fn progress_line(instance: &Instance) -> Option<String> {
    let progress = instance.progress.as_ref()?;
    let mut line = match progress.total {
        Some(total) => {
            format!(
                "{} of {total} ({} %)",
                progress.done,
                progress.done.min(total).saturating_mul(100) / total
            )
        }
        None => progress.done.to_string(),
    };
    if !progress.message.is_empty() {
        line.push(' ');
        line.push_str(&progress.message);
    }
    Some(line)
}

/// What the `get` screen is made of.
pub(crate) struct Portrait<'a> {
    /// The instance.
    pub(crate) instance: &'a Instance,
    /// The last checkpoints, newest first.
    pub(crate) checkpoints: &'a [Checkpoint],
    /// Name, attempt and last lines of its output streams.
    pub(crate) output: &'a [(&'static str, u32, String)],
    /// For "how long ago".
    pub(crate) now: Timestamp,
    /// The reader's.
    pub(crate) zone: &'a TimeZone,
}

impl Portrait<'_> {
    /// One screen, like `systemctl status`.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        self.head(&mut text);
        self.facts(&mut text);
        self.saved(&mut text);
        self.printed(&mut text);
        text
    }

    fn head(&self, text: &mut String) {
        let (instance, style) = (self.instance, status_style(self.instance.status));
        let (bold, dim) = (bold(), dim());
        let _ = writeln!(
            text,
            "{style}●{style:#} {bold}{}{bold:#} {style}{}{style:#}{}",
            instance.id,
            instance.status,
            if instance.paused { format!(" {dim}(paused){dim:#}") } else { String::new() }
        );
    }

    fn facts(&self, text: &mut String) {
        let instance = self.instance;
        let mut fact = |name: &str, value: String| {
            let _ = writeln!(text, "{name:>10}: {value}");
        };
        if let Some(sentence) = &instance.waiting_for {
            fact("State", sentence.clone());
        }
        if let Some(failure) = &instance.failure {
            fact("Failure", format!("{}: {}", failure.code, failure.message));
            if failure.retryable {
                fact("", "starting it again may help".to_owned());
            }
            if let Some(details) = &failure.details {
                fact("Details", first_line(&details.to_string(), 500));
            }
        }
        if let Some(progress) = progress_line(instance) {
            fact("Progress", progress);
        }
        fact(
            "Workflow",
            format!("{} of {} ({})", instance.workflow, instance.image, short_digest(&instance.digest)),
        );
        if let Some(origin) = &instance.retry_of {
            fact("Retry of", origin.clone());
        }
        if instance.attempt > 0 {
            let crashes = match instance.crashes {
                0 => String::new(),
                1 => ", crashed once since the last progress".to_owned(),
                n => format!(", crashed {n} times since the last progress"),
            };
            fact("Attempt", format!("{}{crashes}", instance.attempt));
        }
        if let Some(at) = instance.created_at {
            fact("Created", self.moment(at));
        }
        match (instance.started_at.or(instance.created_at), instance.ended_at) {
            (Some(from), Some(to)) => {
                fact("Ended", format!("{}, after {}", self.moment(to), span(to.since(from))));
            }
            (_, to) => {
                if let Some(to) = to {
                    fact("Ended", self.moment(to));
                }
            }
        }
        if let (Some(at), false) = (instance.deadline_at, instance.status.ended()) {
            fact("Limit", format!("fails at {}", local(at, self.zone)));
        }
        if instance.unread_signals > 0 {
            fact("Signals", format!("{} unread", instance.unread_signals));
        }
        for (name, payload) in [("Input", &instance.input), ("Output", &instance.output)] {
            if let Some(payload) = payload {
                fact(name, first_line(&payload_json(Some(payload)).to_string(), 500));
            }
        }
    }

    fn saved(&self, text: &mut String) {
        if self.checkpoints.is_empty() {
            return;
        }
        let bold = bold();
        let _ = writeln!(
            text,
            "\n{bold}Checkpoints{bold:#} ({} in all, the last ones)",
            self.instance.checkpoints
        );
        for checkpoint in self.checkpoints.iter().rev() {
            let at = checkpoint.stored_at.map(|at| local(at, self.zone)).unwrap_or_default();
            let _ = writeln!(
                text,
                "  {at}  {:<10} {} (attempt {})",
                checkpoint.kind,
                first_line(&operation(checkpoint), 80),
                checkpoint.attempt
            );
        }
    }

    fn printed(&self, text: &mut String) {
        let bold = bold();
        for (stream, attempt, lines) in self.output {
            if lines.trim().is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{bold}Last lines of {stream}{bold:#} (attempt {attempt})");
            for line in lines.lines() {
                let _ = writeln!(text, "  {}", printable(line));
            }
        }
    }

    fn moment(&self, at: Timestamp) -> String {
        format!("{} ({} ago)", local(at, self.zone), span(self.now.since(at)))
    }
}

/// `name`, or `name[key]`.
pub(crate) fn operation(checkpoint: &Checkpoint) -> String {
    if checkpoint.key.is_empty() {
        checkpoint.name.clone()
    } else {
        format!("{}[{}]", checkpoint.name, checkpoint.key)
    }
}

/// The beginning of a digest, enough to tell images apart.
pub(crate) fn short_digest(digest: &str) -> String {
    format!("sha256:{}", digest.get(..12).unwrap_or(digest))
}

/// The first line, cut to so many characters, without what would confuse a terminal.
pub(crate) fn first_line(text: &str, max: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = printable(line).chars().take(max).collect();
    if short.chars().count() < line.chars().count() || text.lines().nth(1).is_some() {
        short.push('…');
    }
    short
}

/// Without control characters: a workflow must not move our reader's cursor.
pub(crate) fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_251_600_000_000);

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::from_micros(NOW.as_micros() - seconds * 1_000_000)
    }

    fn instance() -> Instance {
        Instance {
            id: "order-7".into(),
            workflow: "order".into(),
            image: "shop:3".into(),
            digest: "ab12cd34ef56ab12cd34".into(),
            status: Status::Suspended,
            attempt: 2,
            node: None,
            input: Some(Payload::json(&serde_json::json!({"order": 7})).expect("JSON")),
            output: None,
            failure: None,
            waiting_for: Some("waits for signal \"approval\" since 2 h, until 24 Nov 09:00".into()),
            wake_at: Some(ago(-3 * 86_400)),
            created_at: Some(ago(7_300)),
            started_at: Some(ago(7_299)),
            ended_at: None,
            paused: false,
            cancel_asked: false,
            launching: false,
            progress: None,
            crashes: 0,
            deadline_at: None,
            checkpoints: 2,
            unread_signals: 0,
            retry_of: None,
            version: 9,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn get_is_one_screen() {
        let checkpoint = |name: &str, key: &str, seconds| Checkpoint {
            name: name.into(),
            key: key.into(),
            slot: 0,
            kind: "step".into(),
            attempt: 1,
            stored_at: Some(ago(seconds)),
            payload: None,
            due_at: None,
            note: String::new(),
        };
        let portrait = Portrait {
            instance: &instance(),
            checkpoints: &[checkpoint("charge", "visa", 7_200), checkpoint("reserve", "", 7_290)],
            output: &[("stdout", 2, "waiting for approval\n".into())],
            now: NOW,
            zone: &TimeZone::UTC,
        };
        assert_eq!(
            plain(&portrait.render()),
            "\
● order-7 SUSPENDED
     State: waits for signal \"approval\" since 2 h, until 24 Nov 09:00
  Workflow: order of shop:3 (sha256:ab12cd34ef56)
   Attempt: 2
   Created: 2026-11-21 06:58:20 (2 h ago)
     Input: {\"order\":7}

Checkpoints (2 in all, the last ones)
  2026-11-21 06:58:30  step       reserve (attempt 1)
  2026-11-21 07:00:00  step       charge[visa] (attempt 1)

Last lines of stdout (attempt 2)
  waiting for approval
"
        );
    }

    #[test]
    fn json_has_exactly_the_documented_fields_in_order() {
        let text = serde_json::to_string(&InstanceDocument::from(&instance())).expect("JSON");
        assert_eq!(
            text,
            "{\"id\":\"order-7\",\"workflow\":\"order\",\"image\":\"shop:3\",\"status\":\"SUSPENDED\",\"attempt\":2,\
             \"node\":null,\"input\":{\"order\":7},\"output\":null,\"failure\":null,\
             \"waiting_for\":\"waits for signal \\\"approval\\\" since 2 h, until 24 Nov 09:00\",\
             \"wake_at\":\"2026-11-24T09:00:00Z\",\"created_at\":\"2026-11-21T06:58:20Z\",\
             \"started_at\":\"2026-11-21T06:58:21Z\",\"ended_at\":null,\"retry_of\":null}"
        );
    }

    #[test]
    fn a_failure_is_shown_with_its_code() {
        let failed = Instance {
            status: Status::Failed,
            failure: Some(Failure {
                code: "PAYMENT_DECLINED".into(),
                message: "the bank says no".into(),
                retryable: true,
                details: Some(serde_json::json!({"bank": "x"})),
            }),
            waiting_for: None,
            ended_at: Some(ago(10)),
            ..instance()
        };
        let portrait =
            Portrait { instance: &failed, checkpoints: &[], output: &[], now: NOW, zone: &TimeZone::UTC };
        let screen = plain(&portrait.render());
        assert!(screen.contains("   Failure: PAYMENT_DECLINED: the bank says no\n"), "{screen}");
        assert!(screen.contains("     Ended: 2026-11-21 08:59:50 (10 s ago), after 2 h\n"), "{screen}");
        let row = instance_row(&failed, NOW);
        assert_eq!(row.last().map(String::as_str), Some("PAYMENT_DECLINED: the bank says no"));
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = table(&["ID", "STATUS"], [vec!["a".to_owned(), String::new()]].into_iter());
        assert_eq!(text, "ID  STATUS\na\n");
    }

    #[test]
    fn sizes_and_spans() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 20), "5.0 MiB");
        assert_eq!(span(Duration::from_millis(250)), "250 ms");
        assert_eq!(span(Duration::from_hours(24)), "24 h");
    }

    #[test]
    fn a_workflow_cannot_move_the_cursor() {
        assert_eq!(first_line("a\u{1b}[2Jb\nc", 80), "a\u{fffd}[2Jb…");
    }
}
