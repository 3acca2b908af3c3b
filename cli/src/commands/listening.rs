//! `health --listening`: whether a service of this machine accepts connections, as whoever starts it
//! wants to know again and again (a container's health check, a balancer).
//!
//! It shakes hands and goes: no credentials, no database, no request.

use std::time::Duration;

use anyhow::Context as _;
use dormouse_proto::{
    call::{InstanceProtocol, ManagementProtocol},
    endpoint::{self, CORE_NAME, ENVIRONMENT_NAME},
};

use super::Ctx;
use crate::{
    args::{Format, ServicePart},
    exit::Exit,
    output::{print, print_json, say},
};

/// Who is asked every few seconds must answer at once.
const WITHIN: Duration = Duration::from_secs(5);

pub(crate) async fn look(ctx: &Ctx, part: ServicePart) -> anyhow::Result<Exit> {
    let name = match part {
        ServicePart::Core => "core",
        ServicePart::Environment => "environment",
    };
    match greet(ctx, part, name).await {
        Ok(address) => {
            match ctx.screen.format {
                Format::Json => print_json(&serde_json::json!({ "service": name, "address": address }))?,
                Format::Ids => print(&format!("{address}\n"))?,
                Format::Table => print(&format!("{name} accepts connections at {address}\n"))?,
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            say(&format!("error: {name} does not accept connections: {error:#}"));
            Ok(Exit::Unreachable)
        }
    }
}

/// Shakes hands; answers where.
async fn greet(ctx: &Ctx, part: ServicePart, name: &str) -> anyhow::Result<String> {
    let dir = ctx.global.directory()?;
    let read =
        |path: std::path::PathBuf| std::fs::read_to_string(&path).with_context(|| path.display().to_string());
    let address = read(dir.join(format!("{name}.address")))?.trim().to_owned();
    let authority = read(ctx.global.certs()?.join("authority.pem"))?;
    let endpoint = endpoint::client_endpoint()?;
    let (config, server) = match part {
        ServicePart::Core => (endpoint::client_config::<InstanceProtocol>(&authority, None)?, CORE_NAME),
        ServicePart::Environment => {
            (endpoint::client_config::<ManagementProtocol>(&authority, None)?, ENVIRONMENT_NAME)
        }
    };
    let connecting = endpoint::connect(&endpoint, config, &address, server);
    let connection = tokio::time::timeout(WITHIN, connecting)
        .await
        .with_context(|| format!("{address} did not answer within {} s", WITHIN.as_secs()))??;
    // Told at once, so that its place is free for somebody with a request.
    connection.close(0_u32.into(), b"only looked");
    endpoint.wait_idle().await;
    Ok(address)
}
