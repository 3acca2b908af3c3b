//! `health`: the services about themselves.

use dormouse_management_sdk::Health;

use super::Ctx;
use crate::{
    args::Format,
    exit::Exit,
    output::{facts, print, print_json, rfc3339},
};

pub(crate) async fn health(ctx: &Ctx) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let health = client.health().await?;
    match ctx.screen.format {
        Format::Json => print_json(&serde_json::json!({
            "healthy": health.problems.is_empty(),
            "version": health.version,
            "database": health.database,
            "node": health.node,
            "now": rfc3339(health.now),
            "slots": health.slots,
            "slots_in_use": health.slots_in_use,
            "core_address": health.core_address,
            "problems": health.problems,
        }))?,
        Format::Ids => print(&format!("{}\n", health.node))?,
        Format::Table => print(&portrait(&health))?,
    }
    Ok(if health.problems.is_empty() { Exit::Done } else { Exit::Internal })
}

fn portrait(health: &Health) -> String {
    let state = if health.problems.is_empty() { "all is well" } else { "there are problems" };
    let mut lines = vec![("Health", state.to_owned())];
    lines.extend(health.problems.iter().map(|problem| ("Problem", problem.clone())));
    lines.extend([
        ("Release", health.version.clone()),
        ("Database", health.database.clone()),
        ("Node", health.node.clone()),
        ("Slots", format!("{} of {} in use", health.slots_in_use, health.slots)),
        ("Core", health.core_address.clone()),
    ]);
    facts(&lines)
}
