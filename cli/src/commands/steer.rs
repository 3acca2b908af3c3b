//! `signal`, `cancel`, `pause`, `resume`, `stop`, `delete`.

use dormouse_management_sdk::{Instance, new_instance_id};

use super::{Ctx, null, payload};
use crate::{
    args::{Format, Signal},
    exit::Exit,
    output::{instance_json, print, print_json, say},
};

pub(crate) async fn signal(ctx: &Ctx, args: Signal) -> anyhow::Result<Exit> {
    let payload = match &args.payload {
        Some(argument) => payload(argument, "--payload")?,
        None => null(),
    };
    let dedup = match args.dedup {
        Some(dedup) => dedup,
        None => new_instance_id()?,
    };
    let client = ctx.client().await?;
    let number = client.signal_once(&args.id, &args.name, Some(payload), &dedup).await?;
    match ctx.screen.format {
        Format::Json => print_json(&serde_json::json!({ "number": number }))?,
        Format::Ids => print(&format!("{number}\n"))?,
        Format::Table => say(&format!("signal {:?} is stored as number {number}", args.name)),
    }
    Ok(Exit::Done)
}

pub(crate) async fn cancel(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let instance = ctx.client().await?.cancel(id).await?;
    let said = if instance.status.ended() {
        format!("{} is {}", instance.id, instance.status)
    } else {
        format!("{} is asked to cancel: it cleans up, then it ends CANCELLED", instance.id)
    };
    told(ctx, &instance, &said)
}

pub(crate) async fn pause(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let instance = ctx.client().await?.pause(id).await?;
    told(ctx, &instance, &format!("{0} is paused; `dormouse resume {0}` lets it go on", instance.id))
}

pub(crate) async fn resume(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let instance = ctx.client().await?.resume(id).await?;
    told(ctx, &instance, &format!("{} goes on", instance.id))
}

pub(crate) async fn stop(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let instance = ctx.client().await?.stop(id).await?;
    told(ctx, &instance, &format!("{} is {}", instance.id, instance.status))
}

pub(crate) async fn delete(ctx: &Ctx, id: &str) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    // The whole id: a repeat after a lost answer must not mean another one.
    let id = client.instance(id).await?.id;
    client.delete_instance(&id).await?;
    match ctx.screen.format {
        Format::Json => print_json(&serde_json::json!({ "deleted": 1 }))?,
        Format::Ids => {}
        Format::Table => say(&format!("{id} is deleted")),
    }
    Ok(Exit::Done)
}

fn told(ctx: &Ctx, instance: &Instance, said: &str) -> anyhow::Result<Exit> {
    match ctx.screen.format {
        Format::Json => print_json(&instance_json(instance))?,
        Format::Ids => print(&format!("{}\n", instance.id))?,
        Format::Table => say(said),
    }
    Ok(Exit::Done)
}
