//! `wait`: until an instance has ended; its output on stdout, its fate as the exit code.

use std::time::Duration;

use dormouse_management_sdk::{Client, Encoding, Instance, Status, WaitOutcome};
use indicatif::ProgressBar;

use super::Ctx;
use crate::{
    args::{Format, Wait},
    exit::Exit,
    output::{Screen, instance_json, print, print_bytes, print_json, progress_line, say},
};

pub(crate) async fn wait(ctx: &Ctx, args: Wait) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    wait_and_print(ctx, &client, &args.id, args.limit).await
}

/// Waits, with its progress on the terminal, and prints how it ended.
pub(crate) async fn wait_and_print(
    ctx: &Ctx,
    client: &Client,
    id: &str,
    limit: Option<Duration>,
) -> anyhow::Result<Exit> {
    let outcome = if ctx.screen.draws_progress() && limit != Some(Duration::ZERO) {
        let bar = Bar::new();
        let mut watch = client.watch(id);
        tokio::select! {
            outcome = client.wait(id, limit) => outcome?,
            failed = async {
                loop {
                    match watch.next().await {
                        Ok(Some(instance)) => bar.show(&instance),
                        Ok(None) => std::future::pending().await,
                        Err(error) => return error,
                    }
                }
            } => return Err(failed.into()),
        }
    } else {
        client.wait(id, limit).await?
    };
    match outcome {
        WaitOutcome::Ended(instance) => print_ending(&ctx.screen, &instance),
        WaitOutcome::TimedOut(instance) => {
            let why = instance.waiting_for.as_deref().unwrap_or("it still runs");
            say(&format!("{} has not ended: {why}", instance.id));
            if ctx.screen.format == Format::Json {
                print_json(&instance_json(&instance))?;
            }
            Ok(Exit::WaitedTooLong)
        }
    }
}

/// The output on stdout, everything else about the ending on stderr.
pub(crate) fn print_ending(screen: &Screen, instance: &Instance) -> anyhow::Result<Exit> {
    match screen.format {
        Format::Json => print_json(&instance_json(instance))?,
        Format::Ids => print(&format!("{}\n", instance.id))?,
        Format::Table => {
            if let Some(output) = &instance.output {
                let mut bytes = output.data.clone();
                if output.encoding == Encoding::Json {
                    bytes.push(b'\n');
                }
                print_bytes(&bytes)?;
            }
        }
    }
    match (instance.status, &instance.failure) {
        (Status::Completed, _) => {}
        (_, Some(failure)) => {
            let hint = if failure.retryable { " (starting it again may help)" } else { "" };
            say(&format!("{} {}: {}: {}{hint}", instance.id, instance.status, failure.code, failure.message));
        }
        (status, None) => say(&format!("{} {status}", instance.id)),
    }
    Ok(Exit::of(instance))
}

/// One line on the terminal that says what an instance does; gone when it is dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    pub(crate) fn show(&self, instance: &Instance) {
        let mut line = format!("{} {}", instance.id, instance.status);
        if let Some(progress) = progress_line(instance) {
            line = format!("{line} {progress}");
        }
        if let (Some(sentence), false) = (&instance.waiting_for, instance.status == Status::Running) {
            line = format!("{line}: {sentence}");
        }
        self.0.set_message(line);
    }

    /// Runs `print` with the line out of the way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
