//! `core list`.

use dormouse_management_sdk::Core;
use serde_json::{Value, json};

use super::Ctx;
use crate::{
    exit::Exit,
    output::{now, rfc3339, span},
};

pub(crate) async fn list(ctx: &Ctx) -> anyhow::Result<Exit> {
    let cores = ctx.client().await?.cores().await?;
    let now = now();
    ctx.screen.list(
        &cores,
        &["ID", "NAME", "ADDRESS", "SESSIONS", "RELEASE", "STARTED", "LAST SIGN", "STATE"],
        |core| {
            let ago = |at: Option<_>| at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default();
            vec![
                core.id.clone(),
                core.name.clone(),
                core.address.clone(),
                core.sessions.to_string(),
                core.version.clone(),
                ago(core.started_at),
                ago(core.last_sign_at),
                state(core).to_owned(),
            ]
        },
        |core| core.id.clone(),
        core_json,
        "no core replicas",
    )?;
    Ok(Exit::Done)
}

fn state(core: &Core) -> &'static str {
    match (core.silent, core.draining) {
        (true, _) => "silent",
        (false, true) => "draining",
        (false, false) => "takes sessions",
    }
}

fn core_json(core: &Core) -> Value {
    json!({
        "id": core.id,
        "name": core.name,
        "address": core.address,
        "version": core.version,
        "sessions": core.sessions,
        "started_at": core.started_at.map(rfc3339),
        "last_sign_at": core.last_sign_at.map(rfc3339),
        "draining": core.draining,
        "silent": core.silent,
    })
}
