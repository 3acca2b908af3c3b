//! `health` and `node list`: the services about themselves.

use dormouse_management_sdk::{Health, Node};

use super::Ctx;
use crate::{
    args::Format,
    exit::Exit,
    output::{facts, now, print, print_json, rfc3339, span},
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

pub(crate) async fn nodes(ctx: &Ctx) -> anyhow::Result<Exit> {
    let nodes = ctx.client().await?.nodes().await?;
    let now = now();
    ctx.screen.list(
        &nodes,
        &["ID", "NAME", "ADDRESS", "RUNNING", "SLOTS", "RELEASE", "LAST SIGN", "STATE"],
        |node| {
            vec![
                node.id.clone(),
                node.name.clone(),
                node.address.clone(),
                node.running.to_string(),
                node.slots.to_string(),
                node.version.clone(),
                node.last_sign_at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default(),
                state(node),
            ]
        },
        |node| node.id.clone(),
        node_json,
        "no nodes",
    )?;
    Ok(Exit::Done)
}

fn state(node: &Node) -> String {
    match (&node.not_claiming, node.draining) {
        (_, true) => "draining".to_owned(),
        (Some(reason), false) => format!("takes nothing: {reason}"),
        (None, false) if node.running >= node.slots => "full".to_owned(),
        (None, false) => "takes claims".to_owned(),
    }
}

fn node_json(node: &Node) -> serde_json::Value {
    serde_json::json!({
        "id": node.id,
        "name": node.name,
        "address": node.address,
        "slots": node.slots,
        "running": node.running,
        "started_at": node.started_at.map(rfc3339),
        "last_sign_at": node.last_sign_at.map(rfc3339),
        "draining": node.draining,
        "version": node.version,
        "not_claiming": node.not_claiming,
    })
}
