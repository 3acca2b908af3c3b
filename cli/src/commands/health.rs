//! `health`: the services about themselves.

use dormouse_management_sdk::{Certificate, Health};
use dormouse_proto::identity::WARN_BELOW;

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
            "certificates": health.certificates.iter().map(|certificate| serde_json::json!({
                "name": certificate.name,
                "expires_at": rfc3339(certificate.expires_at),
            })).collect::<Vec<_>>(),
            "tenant": health.tenant,
            "role": health.role,
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
        ("You are", format!("{} of tenant {}", health.role, health.tenant)),
    ]);
    let soon =
        health.certificates.iter().filter(|certificate| certificate.expires_at.since(now()) < WARN_BELOW);
    lines.extend(soon.map(|Certificate { name, expires_at }| {
        let left = span(expires_at.since(now()));
        (
            "Warning",
            format!("the certificate of {name} expires in {left}; see `dormouse doctor` on that machine"),
        )
    }));
    facts(&lines)
}
