//! `events`, `checkpoints`, `attempts`.

use std::time::Duration;

use dormouse_management_sdk::{Attempt, Checkpoint, Client, Event, Timestamp};
use jiff::tz::TimeZone;

use super::Ctx;
use crate::{
    args::{Checkpoints, Events, Format},
    exit::Exit,
    output::{first_line, local, operation, payload_json, print, rfc3339, span},
};

/// One page of a list.
const PAGE: u32 = 1_000;

pub(crate) async fn events(ctx: &Ctx, args: Events) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    if args.follow {
        return follow(ctx, &client, &args.id).await;
    }
    let id = client.instance(&args.id).await?.id;
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = client.events(&id, after, PAGE, Duration::ZERO).await?;
        if page.events.is_empty() {
            break;
        }
        after = page.next;
        events.extend(page.events);
    }
    let zone = TimeZone::system();
    ctx.screen.list(
        &events,
        &["#", "TIME", "ATTEMPT", "EVENT", "MESSAGE"],
        |event| event_row(event, &zone),
        |event| event.number.to_string(),
        event_json,
        "no events",
    )?;
    Ok(Exit::Done)
}

/// Prints events as they come, one line each (with `-o json` one document a line).
async fn follow(ctx: &Ctx, client: &Client, id: &str) -> anyhow::Result<Exit> {
    let id = client.instance(id).await?.id;
    let zone = TimeZone::system();
    let (mut after, mut ended) = (0, false);
    loop {
        let wait = if ended { Duration::ZERO } else { Duration::from_secs(30) };
        let page = client.events(&id, after, PAGE, wait).await?;
        for event in &page.events {
            let line = match ctx.screen.format {
                Format::Json => event_json(event).to_string(),
                Format::Ids => event.number.to_string(),
                Format::Table => event_row(event, &zone)[1..].join("  "),
            };
            print(&format!("{line}\n"))?;
        }
        after = page.next.max(after);
        if page.events.is_empty() {
            if ended {
                return Ok(Exit::Done);
            }
            ended = client.instance(&id).await?.status.ended();
        } else if page.events.iter().any(is_ending) {
            // Its last event came; what is left can be read without waiting.
            ended = true;
        }
    }
}

fn is_ending(event: &Event) -> bool {
    matches!(event.kind.as_str(), "completed" | "failed" | "cancelled")
}

fn event_row(event: &Event, zone: &TimeZone) -> Vec<String> {
    let message = match &event.payload {
        Some(payload) if event.kind == "suspended" => waits(&payload_json(Some(payload)), zone),
        Some(payload) => format!("{} {}", event.message, payload_json(Some(payload))).trim().to_owned(),
        None => event.message.clone(),
    };
    vec![
        event.number.to_string(),
        event.at.map(|at| local(at, zone)).unwrap_or_default(),
        if event.attempt == 0 { String::new() } else { event.attempt.to_string() },
        event.kind.clone(),
        first_line(&message, 200),
    ]
}

/// What a suspended instance waits for, in words.
fn waits(list: &serde_json::Value, zone: &TimeZone) -> String {
    let one = |wait: &serde_json::Value| {
        let text = |field: &str| wait[field].as_str().unwrap_or_default().to_owned();
        let due = wait["due_at"].as_i64().map(|at| local(Timestamp::from_micros(at), zone));
        match (text("for").as_str(), due) {
            ("signal", None) => format!("for signal {:?}", text("signal")),
            ("signal", Some(due)) => format!("for signal {:?}, until {due}", text("signal")),
            ("due", Some(due)) => format!("until {due} ({:?})", text("name")),
            ("resume", _) => "until it is resumed".to_owned(),
            // A wait of a later release.
            _ => wait.to_string(),
        }
    };
    match list.as_array() {
        Some(list) => list.iter().map(one).collect::<Vec<_>>().join(" or "),
        None => list.to_string(),
    }
}

fn event_json(event: &Event) -> serde_json::Value {
    serde_json::json!({
        "number": event.number,
        "at": event.at.map(rfc3339),
        "attempt": event.attempt,
        "kind": event.kind,
        "message": event.message,
        "payload": payload_json(event.payload.as_ref()),
    })
}

pub(crate) async fn checkpoints(ctx: &Ctx, args: Checkpoints) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let id = client.instance(&args.id).await?.id;
    let mut checkpoints = Vec::new();
    let mut cursor = None;
    loop {
        let left = args.last.map_or(PAGE, |last| last.saturating_sub(n_of(&checkpoints)).min(PAGE));
        let page = client.checkpoints(&id, cursor, left, args.last.is_some()).await?;
        checkpoints.extend(page.checkpoints);
        cursor = page.next_cursor;
        let enough = args.last.is_some_and(|last| n_of(&checkpoints) >= last);
        if cursor.is_none() || enough {
            break;
        }
    }
    let zone = TimeZone::system();
    ctx.screen.list(
        &checkpoints,
        &["TIME", "ATTEMPT", "KIND", "OPERATION", "VALUE"],
        |checkpoint| checkpoint_row(checkpoint, &zone),
        operation,
        checkpoint_json,
        "no checkpoints yet",
    )?;
    Ok(Exit::Done)
}

fn n_of(checkpoints: &[Checkpoint]) -> u32 {
    u32::try_from(checkpoints.len()).unwrap_or(u32::MAX)
}

fn checkpoint_row(checkpoint: &Checkpoint, zone: &TimeZone) -> Vec<String> {
    let mut value = match (&checkpoint.payload, checkpoint.due_at) {
        (Some(payload), _) => payload_json(Some(payload)).to_string(),
        (None, Some(due)) => format!("due {}", local(due, zone)),
        (None, None) => String::new(),
    };
    if !checkpoint.note.is_empty() {
        value = format!("{value} ({})", checkpoint.note);
    }
    vec![
        checkpoint.stored_at.map(|at| local(at, zone)).unwrap_or_default(),
        checkpoint.attempt.to_string(),
        checkpoint.kind.clone(),
        first_line(&operation(checkpoint), 80),
        first_line(value.trim(), 100),
    ]
}

fn checkpoint_json(checkpoint: &Checkpoint) -> serde_json::Value {
    serde_json::json!({
        "name": checkpoint.name,
        "key": checkpoint.key,
        "slot": checkpoint.slot,
        "kind": checkpoint.kind,
        "attempt": checkpoint.attempt,
        "stored_at": checkpoint.stored_at.map(rfc3339),
        "payload": payload_json(checkpoint.payload.as_ref()),
        "due_at": checkpoint.due_at.map(rfc3339),
        "note": checkpoint.note,
    })
}

pub(crate) async fn attempts(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let attempts = ctx.client().await?.attempts(id).await?;
    let zone = TimeZone::system();
    ctx.screen.list(
        &attempts,
        &["ATTEMPT", "LAUNCHED", "BECAUSE OF", "NODE", "PID", "LIVED", "END"],
        |attempt| attempt_row(attempt, &zone),
        |attempt| attempt.attempt.to_string(),
        attempt_json,
        "not launched yet",
    )?;
    Ok(Exit::Done)
}

fn attempt_row(attempt: &Attempt, zone: &TimeZone) -> Vec<String> {
    let lived = match (attempt.registered_at, attempt.ended_at) {
        (Some(from), Some(to)) => span(to.since(from)),
        _ => String::new(),
    };
    vec![
        attempt.attempt.to_string(),
        attempt.claimed_at.map(|at| local(at, zone)).unwrap_or_default(),
        attempt.wake_reason.clone(),
        attempt.node.clone(),
        attempt.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        lived,
        first_line(attempt.exit.as_deref().unwrap_or_default(), 80),
    ]
}

fn attempt_json(attempt: &Attempt) -> serde_json::Value {
    serde_json::json!({
        "attempt": attempt.attempt,
        "node": attempt.node,
        "claimed_at": attempt.claimed_at.map(rfc3339),
        "registered_at": attempt.registered_at.map(rfc3339),
        "ended_at": attempt.ended_at.map(rfc3339),
        "exit": attempt.exit,
        "wake_reason": attempt.wake_reason,
        "pid": attempt.pid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_in_words() {
        let list = serde_json::json!([
            {"for": "signal", "signal": "approval", "name": "approval", "key": "", "due_at": 1_795_515_913_513_320_i64},
            {"for": "due", "name": "nap", "key": "", "due_at": 0},
            {"for": "resume"},
        ]);
        assert_eq!(
            waits(&list, &TimeZone::UTC),
            "for signal \"approval\", until 2026-11-24 10:25:13 or until 1970-01-01 00:00:00 (\"nap\") \
             or until it is resumed"
        );
    }
}
