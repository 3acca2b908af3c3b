//! `run`: one workflow binary, durably, with both services in this process. Again with the same
//! id it continues, whatever was killed in between.
//!
//! If other services hold the data directory it is their client. What the workflow prints goes
//! where it belongs: stdout to stdout (with `-o json` to stderr, since stdout then holds one JSON
//! value), stderr and our own words to stderr. The workflow's output comes last.

use std::path::Path;

use anyhow::{Context as _, bail};
use dormouse_environment::environment::Handle;
use dormouse_management_sdk::{
    Client, Code, ImageRef, Instance, LogRead, Payload, StartInstance, Status, Stream, Target,
    new_instance_id,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Ctx, client_options,
    image::upload,
    logs::{Both, pass_on},
    null, payload,
    services::Interrupts,
    wait::{Bar, print_ending},
};
use crate::{
    args::{Format, Run},
    config::{begin, sources},
    exit::{Exit, Usage},
    local::Local,
    output::{say, short_digest},
};

pub(crate) async fn run(ctx: &Ctx, args: Run) -> anyhow::Result<Exit> {
    let mut interrupts = Interrupts::catch()?;
    check_binary(&args.binary)?;
    // Before anything is started: a wrong input is wrong usage.
    let input = args.input.as_deref().map(|argument| payload(argument, "--input")).transpose()?;
    let id = args.id.clone().map_or_else(new_instance_id, Ok)?;
    let mut host = tokio::select! {
        host = Host::find(ctx, &args) => host?,
        exit = interrupts.next() => return Ok(exit),
    };
    let client = host.client.clone();
    let work = Work { ctx, args: &args, id, input };
    let outcome = tokio::select! {
        outcome = work.through(&client) => outcome,
        ended = host.ended() => Err(ended),
        _ = interrupts.next() => Ok(Exit::Interrupted),
    };
    if matches!(outcome, Ok(Exit::Interrupted)) {
        work.say_interrupted(&host);
    }
    tokio::select! {
        ended = host.end() => ended?,
        // Asked twice: nothing is lost by going at once.
        _ = interrupts.next() => return Ok(Exit::Interrupted),
    }
    outcome
}

fn check_binary(binary: &Path) -> anyhow::Result<()> {
    let usage = |problem: &str| Usage(format!("{} {problem}; name a workflow binary", binary.display()));
    match std::fs::metadata(binary) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(usage("is not a file").into()),
        Err(error) => Err(usage(&format!("cannot be read ({error})")).into()),
    }
}

/// Who runs the services: this process, or others whose client we are.
struct Host {
    client: Client,
    ours: Option<Ours>,
}

struct Ours {
    handle: Handle,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Host {
    async fn find(ctx: &Ctx, args: &Run) -> anyhow::Result<Self> {
        let (settings, _) = begin(&ctx.global, &sources(&ctx.global, args.flags.clone())?)?;
        if ctx.global.server.is_some() {
            return Ok(Self { client: ctx.client().await?, ours: None });
        }
        let data_dir = settings.data_dir()?;
        let target = Target::data_dir(&data_dir).with_certs(settings.certs(&data_dir)?);
        let Some(local) = Local::open(settings).await? else {
            say(&format!("services run in {} already: using them", data_dir.display()));
            let client = Client::connect_with(target, client_options()).await?;
            return Ok(Self { client, ours: None });
        };
        let handle = local.handle();
        let mut tasks = JoinSet::new();
        tasks.spawn(local.run(CancellationToken::new()));
        let client = Client::connect_with(target, client_options()).await?;
        Ok(Self { client, ours: Some(Ours { handle, tasks }) })
    }

    /// Only if our services end although nobody asked them to.
    async fn ended(&mut self) -> anyhow::Error {
        let Some(ours) = &mut self.ours else { return std::future::pending().await };
        match ours.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => anyhow::Error::from(error).context("the services panicked"),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("the services ended, although nobody asked them to"),
        }
    }

    /// Ends our services and every process in their data directory: their instances go back to
    /// the wake queue, as after a reboot.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.client.close().await;
        let Some(mut ours) = self.ours.take() else { return Ok(()) };
        ours.handle.end_processes();
        while let Some(ended) = ours.tasks.join_next().await {
            ended.context("the services panicked")??;
        }
        Ok(())
    }
}

/// One instance, from its image to its output.
struct Work<'a> {
    ctx: &'a Ctx,
    args: &'a Run,
    id: String,
    input: Option<Payload>,
}

impl Work<'_> {
    async fn through(&self, client: &Client) -> anyhow::Result<Exit> {
        let before = self.before(client).await?;
        let instance = self.start(client, before.as_ref()).await?;
        if instance.status.ended() {
            say(&format!("{} has ended already; this is its output again", instance.id));
            return print_ending(&self.ctx.screen, &instance);
        }
        match &before {
            None => say(&format!("{} of {} runs as {}", instance.workflow, instance.image, instance.id)),
            Some(before) => say_continued(before, &instance),
        }
        let begin = Begin::of(client, &instance, before.is_some()).await?;
        self.follow(client, begin).await?;
        // As a whole: a wait may leave the input out.
        let ended = client.instance(&self.id).await?;
        print_ending(&self.ctx.screen, &ended)
    }

    /// The instance of this very id, if there is one.
    async fn before(&self, client: &Client) -> anyhow::Result<Option<Instance>> {
        match client.instance(&self.id).await {
            // An id that merely begins like ours is another one's.
            Ok(instance) => Ok((instance.id == self.id).then_some(instance)),
            Err(error) if error.refused_with(Code::NotFound) => Ok(None),
            // Several begin like ours, none is it; a malformed one is refused by the start.
            Err(error) if error.refused_with(Code::InvalidArgument) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn start(&self, client: &Client, before: Option<&Instance>) -> anyhow::Result<Instance> {
        let image = self.image(client, before).await?;
        let start = StartInstance::of(image.name)
            .version(image.version)
            .id(&self.id)
            .workflow(image.workflow)
            .payload(self.input(before))
            .follow_image();
        Ok(client.start(start).await?.instance)
    }

    /// What to start from. The image of what has ended is not looked at any more.
    async fn image(&self, client: &Client, before: Option<&Instance>) -> anyhow::Result<Chosen> {
        let named = self.args.workflow.clone();
        if let Some(before) = before {
            let (name, version) = before.image.rsplit_once(':').unwrap_or((&before.image, ""));
            let workflow = named.unwrap_or_else(|| before.workflow.clone());
            if before.status.ended() {
                return Ok(Chosen { name: name.to_owned(), version: version.to_owned(), workflow });
            }
            let version = self.push(client, name).await?.image.version;
            return Ok(Chosen { name: name.to_owned(), version, workflow });
        }
        let name = image_name(&self.args.binary);
        let image = self.push(client, &name).await?.image;
        let workflow = match (named, image.workflows.as_slice()) {
            (Some(workflow), _) => workflow,
            (None, [only]) => only.clone(),
            (None, several) => {
                let binary = self.args.binary.display();
                bail!(Usage(format!("{binary} holds {}; choose one with --workflow", several.join(", "))));
            }
        };
        Ok(Chosen { name, version: image.version, workflow })
    }

    async fn push(&self, client: &Client, name: &str) -> anyhow::Result<dormouse_management_sdk::Uploaded> {
        let image = ImageRef { name: name.to_owned(), version: String::new() };
        upload(client, &self.ctx.screen, &self.args.binary, &image).await
    }

    /// Without --input an instance keeps the one that it has. The same JSON in other words is the
    /// same input.
    fn input(&self, before: Option<&Instance>) -> Payload {
        let stored = before.and_then(|before| before.input.clone());
        match (&self.input, stored) {
            (None, Some(stored)) => stored,
            (None, None) => null(),
            (Some(given), Some(stored)) => {
                let value = |payload: &Payload| payload.decode::<serde_json::Value>().ok();
                if value(given) == value(&stored) { stored } else { given.clone() }
            }
            (Some(given), None) => given.clone(),
        }
    }

    /// Shows what it prints and does, until it has ended and printed everything.
    async fn follow(&self, client: &Client, begin: Begin) -> anyhow::Result<()> {
        let streams = [Stream::Stdout, Stream::Stderr];
        let mut output = Both::follow(client, &self.id, begin.attempt, begin.stdout, begin.stderr, &streams);
        let mut changes = Changes::watch(client, &self.id);
        let bar = self.ctx.screen.draws_progress().then(Bar::new);
        let mut said = String::new();
        let (mut printed, mut ended) = (false, false);
        while !(printed && ended) {
            tokio::select! {
                piece = output.next(), if !printed => match piece? {
                    Some((stream, chunk)) => in_between(bar.as_ref(), || self.pass_on(stream, &chunk.data))?,
                    None => printed = true,
                },
                change = changes.next(), if !ended => match change? {
                    Some(instance) => {
                        if let Some(bar) = &bar {
                            bar.show(&instance);
                        }
                        if let Some(state) = state(&instance).filter(|state| *state != said) {
                            in_between(bar.as_ref(), || say(&state));
                            said = state;
                        }
                    }
                    None => ended = true,
                },
            }
        }
        Ok(())
    }

    fn pass_on(&self, stream: Stream, data: &[u8]) -> anyhow::Result<()> {
        // Only in a table is stdout the workflow's own.
        let stream = if self.ctx.screen.format == Format::Table { stream } else { Stream::Stderr };
        pass_on(stream, data)
    }

    fn say_interrupted(&self, host: &Host) {
        if host.ours.is_some() {
            say(&format!(
                "\ninterrupted; nothing that was saved is lost. Continue with:\n  {}",
                self.again()
            ));
        } else {
            say(&format!("\ninterrupted; {0} goes on. See it with:\n  dormouse wait {0}", self.id));
        }
    }

    /// The command that continues.
    fn again(&self) -> String {
        let mut words = vec!["dormouse".to_owned(), "run".to_owned(), self.args.binary.display().to_string()];
        words.extend(["--id".to_owned(), self.id.clone()]);
        if let Some(data_dir) = &self.ctx.global.data_dir {
            words.extend(["--data-dir".to_owned(), data_dir.display().to_string()]);
        }
        if let Some(database) = self.args.flags.text_of("database") {
            words.extend(["--database".to_owned(), database.to_owned()]);
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

fn say_continued(before: &Instance, now: &Instance) {
    let state = now.waiting_for.as_deref().unwrap_or("running");
    say(&format!("continuing {} ({}): {state}", now.id, now.workflow));
    if before.digest != now.digest {
        let (old, new) = (short_digest(&before.digest), short_digest(&now.digest));
        let alive = if now.status == Status::Running {
            "; until then its process goes on with the old one"
        } else {
            ""
        };
        say(&format!("the binary changed from {old} to {new}: it takes over at the next launch{alive}"));
    }
}

/// As a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What an instance is started from.
struct Chosen {
    name: String,
    version: String,
    workflow: String,
}

/// `run/NAME`: apart from what was pushed by hand.
fn image_name(binary: &Path) -> String {
    let stem = binary.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plain: String =
        stem.chars().map(|c| if c == ':' || c.is_control() { '_' } else { c }).take(48).collect();
    format!("run/{plain}")
}

/// What it does, in a line that is said when it changes; none while it is on its way.
fn state(instance: &Instance) -> Option<String> {
    let Some(sentence) = &instance.waiting_for else { return None };
    match instance.status {
        Status::Running if !instance.paused && !instance.cancel_asked => {
            Some(format!("attempt {} is running", instance.attempt))
        }
        _ if instance.launching || sentence.ends_with("about to be launched") => None,
        _ => Some(steady(sentence)),
    }
}

/// Without how long it has been so: that changes each time, and is no news.
fn steady(sentence: &str) -> String {
    match (sentence.split_once(" since "), sentence.split_once(", until ")) {
        (Some((what, _)), Some((_, until))) => format!("{what}, until {until}"),
        (Some((what, _)), None) => what.to_owned(),
        (None, _) => sentence.to_owned(),
    }
}

fn in_between<T>(bar: Option<&Bar>, print: impl FnOnce() -> T) -> T {
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// From where on its output is shown: what was printed before this command was shown before.
struct Begin {
    attempt: u32,
    stdout: u64,
    stderr: u64,
}

impl Begin {
    async fn of(client: &Client, instance: &Instance, continued: bool) -> anyhow::Result<Self> {
        let mut begin = Self { attempt: 1, stdout: 0, stderr: 0 };
        if !continued {
            return Ok(begin);
        }
        begin.attempt = instance.attempt.max(1);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let end = client.read_log(&instance.id, &LogRead::tail(stream, 1)).await?;
            if end.attempt == begin.attempt {
                match stream {
                    Stream::Stdout => begin.stdout = end.next_offset,
                    Stream::Stderr => begin.stderr = end.next_offset,
                }
            }
        }
        Ok(begin)
    }
}

/// The states of one instance. A task of its own, because a poll that is dropped goes on at the
/// services until its time is over.
struct Changes {
    seen: mpsc::Receiver<Result<Instance, dormouse_management_sdk::Error>>,
    _task: JoinSet<()>,
}

impl Changes {
    fn watch(client: &Client, id: &str) -> Self {
        let (sender, seen) = mpsc::channel(16);
        let mut watch = client.watch(id);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(change) = watch.next().await.transpose() {
                let failed = change.is_err();
                if sender.send(change).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { seen, _task: task }
    }

    /// The next state; `None` after the ending. Safe to drop and call again.
    async fn next(&mut self) -> anyhow::Result<Option<Instance>> {
        Ok(self.seen.recv().await.transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_continues_survives_a_shell() {
        assert_eq!(quoted("./a-b_c.1"), "./a-b_c.1");
        assert_eq!(quoted("my file's"), r"'my file'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn an_image_of_run_is_named_after_its_file() {
        assert_eq!(image_name(Path::new("target/release/fixity")), "run/fixity");
        assert_eq!(image_name(Path::new("a:b.bin")), "run/a_b");
    }

    #[test]
    fn how_long_it_has_been_so_is_no_news() {
        assert_eq!(
            steady("waits for signal \"a\" since 2 h, until 24 Nov 09:00"),
            "waits for signal \"a\", until 24 Nov 09:00"
        );
        assert_eq!(steady("no free slot on any node, due since 3 s"), "no free slot on any node, due");
        assert_eq!(steady("sleeps until 09:00"), "sleeps until 09:00");
    }
}
