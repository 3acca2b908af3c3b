//! `get`, `list`, `count`.

use dormouse_management_sdk::{Client, Code, Error, Instance, ListInstances, LogRead, Stream};
use jiff::tz::TimeZone;

use super::Ctx;
use crate::{
    args::{Count, Format, List},
    exit::Exit,
    output::{INSTANCE_HEADERS, Portrait, instance_json, instance_row, now, print, print_json, say, table},
};

/// How much of each the screen shows.
const LAST: u32 = 10;

pub(crate) async fn get(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let instance = client.instance(id).await?;
    match ctx.screen.format {
        Format::Json => print_json(&instance_json(&instance))?,
        Format::Ids => print(&format!("{}\n", instance.id))?,
        Format::Table => print(&portrait(&client, &instance).await?)?,
    }
    Ok(Exit::Done)
}

/// The screen of `get`.
async fn portrait(client: &Client, instance: &Instance) -> anyhow::Result<String> {
    let checkpoints = client.checkpoints(&instance.id, None, LAST, true).await?.checkpoints;
    let (mut output, mut elsewhere) = (Vec::new(), None);
    for stream in [Stream::Stdout, Stream::Stderr] {
        match client.read_log(&instance.id, &LogRead::tail(stream, LAST)).await {
            Ok(chunk) => {
                let lines = String::from_utf8_lossy(&chunk.data).into_owned();
                output.push((stream.as_str(), chunk.attempt, lines));
            }
            // The message names the node that has it, and how to ask it.
            Err(Error::Refused { code: Code::FailedPrecondition, message, .. }) => elsewhere = Some(message),
            // Its output is on a node that is not there: the rest of the screen still counts.
            Err(error) if error.refused_with(Code::Unavailable) => say(&format!("no output: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    let zone = TimeZone::system();
    let portrait = Portrait { instance, checkpoints: &checkpoints, output: &output, now: now(), zone: &zone };
    let mut screen = portrait.render();
    if let Some(sentence) = elsewhere {
        screen.push_str(&format!("\n{sentence}\n"));
    }
    Ok(screen)
}

pub(crate) async fn list(ctx: &Ctx, args: List) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let filtered = args.status.is_some() || args.image.is_some() || args.waiting_for.is_some();
    let (instances, next_cursor, unreadable) = read_list(&client, args).await?;
    let now = now();
    ctx.screen.list(
        &instances,
        &INSTANCE_HEADERS,
        |instance| instance_row(instance, now),
        |instance| instance.id.clone(),
        instance_json,
        if filtered {
            "no such instances"
        } else {
            "no instances yet: `dormouse start NAME` starts one, `dormouse run BINARY` runs a workflow binary"
        },
    )?;
    for sentence in &unreadable {
        say(&format!("not shown: {sentence}"));
    }
    if let Some(cursor) = next_cursor {
        say(&format!("there are more: add --cursor {cursor}"));
    }
    Ok(Exit::Done)
}

/// Pages may be short of what was asked for: it is asked for the rest. Last: a sentence for each damaged one.
async fn read_list(
    client: &Client,
    args: List,
) -> anyhow::Result<(Vec<Instance>, Option<String>, Vec<String>)> {
    let mut ask = ListInstances {
        status: args.status,
        image: args.image,
        waiting_for: args.waiting_for,
        limit: Some(args.limit),
        cursor: args.cursor,
    };
    let (mut instances, mut unreadable) = (Vec::new(), Vec::new());
    loop {
        let page = client.instances(ask.clone()).await?;
        instances.extend(page.instances);
        unreadable.extend(page.unreadable);
        let left = args.limit.saturating_sub(u32::try_from(instances.len()).unwrap_or(u32::MAX));
        if left == 0 || page.next_cursor.is_none() {
            return Ok((instances, page.next_cursor, unreadable));
        }
        (ask.limit, ask.cursor) = (Some(left), page.next_cursor);
    }
}

pub(crate) async fn count(ctx: &Ctx, args: Count) -> anyhow::Result<Exit> {
    let counts = ctx.client().await?.count(args.image.as_deref()).await?;
    match ctx.screen.format {
        Format::Json => {
            let map: serde_json::Map<_, _> =
                counts.iter().map(|(status, n)| (status.as_str().to_owned(), (*n).into())).collect();
            print_json(&map)?;
        }
        Format::Table | Format::Ids => {
            let total: u64 = counts.iter().map(|(_, n)| n).sum();
            let rows = counts.iter().map(|(status, n)| vec![status.to_string(), n.to_string()]);
            let all = [vec!["all".to_owned(), total.to_string()]];
            print(&table(&["STATUS", "COUNT"], rows.chain(all)))?;
        }
    }
    Ok(Exit::Done)
}
