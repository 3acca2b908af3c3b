//! `start`: an instance of a pushed image.

use dormouse_management_sdk::{StartInstance, Started, Timestamp};

use super::{Ctx, null, payload, wait::wait_and_print};
use crate::{
    args::{Format, Start},
    exit::Exit,
    output::{instance_json, now, print, print_json, say},
};

pub(crate) async fn start(ctx: &Ctx, args: Start) -> anyhow::Result<Exit> {
    let input = match &args.input {
        Some(argument) => payload(argument, "--input")?,
        None => null(),
    };
    let client = ctx.client().await?;
    let mut request = StartInstance::of(args.image.name.clone())
        .version(args.image.version.clone())
        .workflow(args.workflow.unwrap_or_default())
        .payload(input)
        .priority(args.priority);
    for (name, value) in args.env {
        request = request.env(name, value);
    }
    if let Some(id) = args.id {
        request = request.id(id);
    }
    if let Some(limit) = args.limit {
        request = request.limit(limit);
    }
    if let Some(delay) = args.delay {
        let delay = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
        request = request.start_at(Timestamp::from_micros(now().as_micros().saturating_add(delay)));
    }
    let started = client.start(request).await?;
    if args.wait {
        say(&format!("started {}", started.instance.id));
        return wait_and_print(ctx, &client, &started.instance.id, None).await;
    }
    show(ctx, &started)?;
    Ok(Exit::Done)
}

fn show(ctx: &Ctx, started: &Started) -> anyhow::Result<()> {
    let instance = &started.instance;
    match ctx.screen.format {
        Format::Json => print_json(&instance_json(instance)),
        Format::Ids => print(&format!("{}\n", instance.id)),
        Format::Table => {
            // The id alone on stdout, so that ID=$(dormouse start …) works.
            print(&format!("{}\n", instance.id))?;
            let how = if started.existed { "was started before and is" } else { "is" };
            say(&format!("{} of {} {how} {}", instance.workflow, instance.image, instance.status));
            Ok(())
        }
    }
}
