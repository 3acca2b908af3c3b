//! `watch`: instances as they change, until all of them have ended.
//!
//! Each instance is followed by a long poll of its own, so a change shows at once and nothing is
//! asked while nothing happens. Without ids the newest instances are looked for once a second:
//! there is no long poll for "a new one".

use std::{collections::BTreeMap, time::Duration};

use dormouse_management_sdk::{Client, Instance, ListInstances};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet, time::interval};

use super::Ctx;
use crate::{
    args::{Format, Watch},
    exit::Exit,
    output::{
        InstanceDocument, first_line, instance_json, now, print, progress_line, rfc3339, say, status_style,
    },
};

/// How often new instances are looked for.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn watch(ctx: &Ctx, args: Watch) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let most = if args.ids.is_empty() { args.newest.try_into()? } else { args.ids.len() };
    let mut view = View::new(ctx.screen.format, most);
    let mut followed = Followed::new(client.clone());
    if args.ids.is_empty() {
        let mut look = interval(LOOK);
        look.tick().await;
        newest(&client, args.newest, &mut followed).await?;
        if followed.is_empty() {
            say("no instances yet: `dormouse start NAME` starts one");
        }
        loop {
            tokio::select! {
                _ = look.tick() => newest(&client, args.newest, &mut followed).await?,
                changed = followed.next() => match changed? {
                    Some(instance) => view.show(&instance)?,
                    None => return Ok(Exit::Done),
                },
            }
        }
    }
    for id in &args.ids {
        // Also says at once if there is no such instance.
        followed.follow(&client.instance(id).await?.id);
    }
    while let Some(instance) = followed.next().await? {
        view.show(&instance)?;
    }
    Ok(Exit::Done)
}

/// Follows those of the newest instances that are not followed yet.
async fn newest(client: &Client, limit: u32, followed: &mut Followed) -> anyhow::Result<()> {
    let page = client.instances(ListInstances { limit: Some(limit), ..ListInstances::default() }).await?;
    // Who has ended and is not among them will not be again.
    followed.known.retain(|id, ended| !*ended || page.instances.iter().any(|instance| instance.id == *id));
    // The oldest first: a screen grows downwards.
    for instance in page.instances.into_iter().rev() {
        followed.follow(&instance.id);
    }
    Ok(())
}

/// A state of an instance, or why it cannot be followed any more.
type News = Result<Instance, dormouse_management_sdk::Error>;

/// Instances that are followed, each by a task, into one channel.
struct Followed {
    client: Client,
    tasks: JoinSet<()>,
    /// Whether each has ended.
    known: BTreeMap<String, bool>,
    sender: mpsc::Sender<News>,
    receiver: mpsc::Receiver<News>,
}

impl Followed {
    fn new(client: Client) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        Self { client, tasks: JoinSet::new(), known: BTreeMap::new(), sender, receiver }
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn follow(&mut self, id: &str) {
        if self.known.contains_key(id) {
            return;
        }
        self.known.insert(id.to_owned(), false);
        let mut watch = self.client.watch(id);
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            loop {
                let news = match watch.next().await {
                    Ok(Some(instance)) => Ok(instance),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let over = news.is_err();
                if sender.send(news).await.is_err() || over {
                    return;
                }
            }
        });
    }

    /// The next change of any of them; `None`: all have ended. Safe to drop and call again.
    async fn next(&mut self) -> anyhow::Result<Option<Instance>> {
        if self.known.values().all(|ended| *ended) {
            return Ok(None);
        }
        let news = self.receiver.recv().await.expect("a sender is kept");
        let instance = news?;
        if instance.status.ended() {
            self.known.insert(instance.id.clone(), true);
        }
        Ok(Some(instance))
    }
}

/// Where changes are shown.
enum View {
    /// A line for each instance, drawn anew where it stands.
    Screen { lines: MultiProgress, of: BTreeMap<String, ProgressBar>, most: usize },
    /// A line for each change.
    Lines { last: BTreeMap<String, String> },
    /// A document for each change.
    Json,
    /// An id for each ending.
    Ids,
}

/// An instance as `get` prints it, and how far it is.
#[derive(Serialize)]
struct Change {
    #[serde(flatten)]
    instance: InstanceDocument,
    progress: Option<Progress>,
}

#[derive(Serialize)]
struct Progress {
    done: u64,
    total: Option<u64>,
    message: String,
}

impl View {
    fn new(format: Format, most: usize) -> Self {
        use std::io::IsTerminal as _;
        match format {
            Format::Json => Self::Json,
            Format::Ids => Self::Ids,
            Format::Table if std::io::stdout().is_terminal() => {
                let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
                Self::Screen { lines, of: BTreeMap::new(), most }
            }
            Format::Table => Self::Lines { last: BTreeMap::new() },
        }
    }

    fn show(&mut self, instance: &Instance) -> anyhow::Result<()> {
        match self {
            Self::Screen { lines, of, most } => {
                if of.len() >= *most && !of.contains_key(&instance.id) {
                    make_room(lines, of);
                }
                let line = of.entry(instance.id.clone()).or_insert_with(|| {
                    let style = ProgressStyle::with_template("{wide_msg}").expect("the template is good");
                    lines.add(ProgressBar::new_spinner().with_style(style))
                });
                let style = status_style(instance.status);
                let status = format!("{style}{:<9}{style:#}", instance.status.as_str());
                line.set_message(format!("{}  {status}  {}", instance.id, detail(instance)));
                if instance.status.ended() {
                    line.abandon();
                }
                Ok(())
            }
            Self::Lines { last } => {
                let said = format!("{}  {:<9}  {}", instance.id, instance.status.as_str(), detail(instance));
                let said = said.trim_end().to_owned();
                // A new checkpoint is a change too, but shows nothing here.
                if last.insert(instance.id.clone(), said.clone()).as_ref() == Some(&said) {
                    return Ok(());
                }
                print(&format!("{}  {said}\n", rfc3339(now())))
            }
            Self::Json => {
                let progress = instance.progress.as_ref().map(|progress| Progress {
                    done: progress.done,
                    total: progress.total,
                    message: progress.message.clone(),
                });
                let change = Change { instance: instance_json(instance), progress };
                print(&format!("{}\n", serde_json::to_string(&change)?))
            }
            Self::Ids if instance.status.ended() => print(&format!("{}\n", instance.id)),
            Self::Ids => Ok(()),
        }
    }
}

/// Takes the line of one that has ended off the screen.
fn make_room(lines: &MultiProgress, of: &mut BTreeMap<String, ProgressBar>) {
    let ended = of.iter().find(|(_, line)| line.is_finished()).map(|(id, _)| id.clone());
    if let Some(line) = ended.and_then(|id| of.remove(&id)) {
        lines.remove(&line);
    }
}

/// How far it is, what it waits for, or how it failed.
fn detail(instance: &Instance) -> String {
    let failure = instance.failure.as_ref().map(|failure| format!("{}: {}", failure.code, failure.message));
    let waiting = instance.waiting_for.clone().filter(|_| !instance.status.ended());
    let parts = [progress_line(instance), waiting, failure];
    first_line(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "), 300)
}
