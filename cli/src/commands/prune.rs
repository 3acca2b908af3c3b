//! `prune`: deletes what ended long ago, batch by batch.

use std::io::IsTerminal as _;

use dormouse_management_sdk::{Pruned, Timestamp};
use jiff::tz::TimeZone;

use super::Ctx;
use crate::{
    args::{Format, Prune},
    exit::Exit,
    output::{local, print, print_json, rfc3339, say},
};

pub(crate) async fn prune(ctx: &Ctx, args: Prune) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    if args.dry_run {
        let would = client.prunable(args.older_than).await?;
        show(ctx, &would, "would be deleted")?;
        return Ok(Exit::Done);
    }
    let mut total = Pruned::default();
    loop {
        let round = client.prune(args.older_than).await?;
        total.instances += round.instances;
        total.oldest_ended_at = total.oldest_ended_at.or(round.oldest_ended_at);
        total.newest_ended_at = round.newest_ended_at.or(total.newest_ended_at);
        if !round.more {
            break;
        }
        if ctx.screen.format == Format::Table && std::io::stderr().is_terminal() {
            say(&format!("{} deleted, going on", total.instances));
        }
    }
    show(ctx, &total, "deleted")?;
    Ok(Exit::Done)
}

fn show(ctx: &Ctx, pruned: &Pruned, what: &str) -> anyhow::Result<()> {
    match ctx.screen.format {
        Format::Json => {
            let moment = |at: Option<Timestamp>| at.map(rfc3339);
            print_json(&serde_json::json!({
                "count": pruned.instances,
                "oldest_ended_at": moment(pruned.oldest_ended_at),
                "newest_ended_at": moment(pruned.newest_ended_at),
            }))
        }
        Format::Ids => print(&format!("{}\n", pruned.instances)),
        Format::Table => print(&format!("{}\n", sentence(pruned, what))),
    }
}

fn sentence(pruned: &Pruned, what: &str) -> String {
    let zone = TimeZone::system();
    match (pruned.instances, pruned.oldest_ended_at, pruned.newest_ended_at) {
        (0, ..) => format!("no instance {what}"),
        (1, Some(at), _) => format!("1 instance {what}; it ended at {}", local(at, &zone)),
        (n, Some(oldest), Some(newest)) => {
            format!(
                "{n} instances {what}; they ended from {} to {}",
                local(oldest, &zone),
                local(newest, &zone)
            )
        }
        (n, ..) => format!("{n} instances {what}"),
    }
}
