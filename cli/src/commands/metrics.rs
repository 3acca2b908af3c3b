//! `metrics`: how long the stages of requests and launches take.

use anyhow::Context as _;
use dormouse_core::timings::{
    Format as Figures,
    endpoint::{self, CORE},
};

use super::Ctx;
use crate::{
    args::{Format, Metrics},
    exit::Exit,
    output::{print, say},
};

/// Those of the environment that answers, or of the core of this data directory. With `up` they are one process.
pub(crate) async fn metrics(ctx: &Ctx, args: &Metrics) -> anyhow::Result<Exit> {
    let json = ctx.screen.format == Format::Json;
    let mut text = if args.core {
        match of_core(ctx, json).await {
            Ok(text) => text,
            Err(error) => {
                say(&format!("error: {error:#}"));
                return Ok(Exit::Unreachable);
            }
        }
    } else if json {
        ctx.client().await?.metrics_json().await?
    } else {
        ctx.client().await?.metrics().await?
    };
    if json {
        text.push('\n');
    }
    print(&text)?;
    Ok(Exit::Done)
}

async fn of_core(ctx: &Ctx, json: bool) -> anyhow::Result<String> {
    let path = ctx.global.directory()?.join(CORE);
    let format = if json { Figures::Json } else { Figures::Prometheus };
    endpoint::read(&path, format).await.with_context(|| {
        format!(
            "no core serves {}; name the data directory of a core that runs on this machine with --data-dir",
            path.display()
        )
    })
}
