//! `start`: an instance of a pushed image, perhaps as an ended one was.

use dormouse_management_sdk::{StartInstance, Started, Timestamp};

use super::{Ctx, null, payload, wait::wait_and_print};
use crate::{
    args::{Format, Start},
    exit::Exit,
    output::{instance_json, now, print, print_json, say},
};

pub(crate) async fn start(ctx: &Ctx, args: Start) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let mut request = match &args.retry_of {
        Some(origin) => StartInstance::retry_of(origin),
        None => StartInstance::of("").payload(null()),
    };
    if args.from_scratch {
        request = request.from_scratch();
    }
    if let Some(image) = &args.image {
        request = request.image(image.name.clone()).version(image.version.clone());
    }
    if let Some(argument) = &args.input {
        request = request.payload(payload(argument, "--input")?);
    }
    if let Some(priority) = args.priority {
        request = request.priority(priority);
    }
    request = request.workflow(args.workflow.unwrap_or_default());
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
