//! Starting, looking at and steering instances.

use std::{collections::BTreeMap, time::Duration};

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};
use serde::Serialize;

use crate::{
    Client, Code, Error, Instance, Payload, Status, Timestamp, client::unexpected, id::new_instance_id,
};

/// What to start. [`StartInstance::of`] names the image; everything else has a default.
/// [`StartInstance::retry_of`] names an ended instance; everything else is as that one had it.
#[derive(Clone, Debug)]
pub struct StartInstance {
    id: Option<String>,
    image: String,
    version: String,
    workflow: String,
    input: Option<Payload>,
    env: BTreeMap<String, String>,
    limit: Option<Duration>,
    start_at: Option<Timestamp>,
    priority: Option<u32>,
    follow_image: bool,
    retry_of: String,
    from_scratch: bool,
}

/// Of a start that says nothing of it.
const PRIORITY: u32 = 5;

impl StartInstance {
    /// Of the newest version of this image, its only workflow, without input, now.
    #[must_use]
    pub fn of(image: impl Into<String>) -> Self {
        Self {
            id: None,
            image: image.into(),
            version: String::new(),
            workflow: String::new(),
            input: None,
            env: BTreeMap::new(),
            limit: None,
            start_at: None,
            priority: None,
            follow_image: false,
            retry_of: String::new(),
            from_scratch: false,
        }
    }

    /// As that ended instance was started (its id, or a unique prefix of it), going on from what its
    /// operations have done: the same image and version, workflow, input, environment, limit and
    /// priority. What is set beside replaces its part; variables are added to the others.
    #[must_use]
    pub fn retry_of(id: impl Into<String>) -> Self {
        Self { retry_of: id.into(), ..Self::of("") }
    }

    /// Of a retry: takes nothing over of what the other one has saved.
    #[must_use]
    pub fn from_scratch(mut self) -> Self {
        self.from_scratch = true;
        self
    }

    /// Another image for a retry: its newest version, unless one is set.
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = image.into();
        self
    }

    /// Chooses the id: 1–128 of `A–Z a–z 0–9 . _ : -`. The same start with the same id is the
    /// same instance; another one is refused with `ALREADY_EXISTS`.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// A certain version of the image.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Which of the image's workflows; needed only if there are several.
    #[must_use]
    pub fn workflow(mut self, workflow: impl Into<String>) -> Self {
        self.workflow = workflow.into();
        self
    }

    /// The input, as JSON; at most 4 MiB.
    pub fn input(mut self, value: &(impl Serialize + ?Sized)) -> Result<Self, Error> {
        self.input = Some(Payload::json(value)?);
        Ok(self)
    }

    /// The input as it is.
    #[must_use]
    pub fn payload(mut self, input: Payload) -> Self {
        self.input = Some(input);
        self
    }

    /// Adds a variable to the environment of its processes.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Ends it FAILED when its whole life, from its start, takes longer than this.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Launches it no earlier than this.
    #[must_use]
    pub fn start_at(mut self, at: Timestamp) -> Self {
        self.start_at = Some(at);
        self
    }

    /// 0–9, the highest first; default 5.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// An existing instance of that id and input keeps its progress, and its next launch takes
    /// this image. This is what `dormouse run` does after a new build.
    #[must_use]
    pub fn follow_image(mut self) -> Self {
        self.follow_image = true;
        self
    }
}

/// The answer to a start.
#[derive(Clone, Debug)]
pub struct Started {
    /// The instance.
    pub instance: Instance,
    /// The same start was accepted before.
    pub existed: bool,
}

/// Which instances to list: newest first.
#[derive(Clone, Debug, Default)]
pub struct ListInstances {
    /// Only in this state.
    pub status: Option<Status>,
    /// Only of this image name.
    pub image: Option<String>,
    /// Only suspended ones that wait for this: `sleep`, `signal`, `signal:NAME`, `resume` or `retry`. A
    /// page may then hold fewer than the limit, even none, although more follow.
    pub waiting_for: Option<String>,
    /// At most so many on a page; the services have a limit of their own (1,000).
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct InstancePage {
    /// Newest first, without inputs and outputs.
    pub instances: Vec<Instance>,
    /// Where the next page begins; `None` at the end.
    pub next_cursor: Option<String>,
    /// A sentence for each instance that belongs here and whose row is damaged.
    pub unreadable: Vec<String>,
}

impl Client {
    /// Starts an instance. Safe to repeat: if no id was chosen, one is chosen here, before
    /// anything is sent.
    pub async fn start(&self, start: StartInstance) -> Result<Started, Error> {
        let id = match start.id {
            Some(id) => id,
            None => new_instance_id()?,
        };
        let mut sent = 0;
        let request = Operation::Start(wire::StartInstance {
            id,
            image: start.image,
            version: start.version,
            workflow: start.workflow,
            input: start.input.map(Payload::into_wire),
            env: start.env,
            limit_micros: start.limit.map_or(0, micros),
            start_at: start.start_at.map_or(0, Timestamp::as_micros),
            priority: start.priority.or(start.retry_of.is_empty().then_some(PRIORITY)),
            follow_image: start.follow_image,
            retry_of: start.retry_of,
            from_scratch: start.from_scratch,
        });
        let (instance, existed) = self
            .call_counted(
                request,
                |outcome| match outcome {
                    Outcome::Started(wire::StartOutcome { instance: Some(instance), existed }) => {
                        Ok((Instance::from_wire(instance)?, existed))
                    }
                    other => Err(unexpected(&other)),
                },
                &mut sent,
            )
            .await?;
        // It existed because we ourselves started it, and did not hear the answer.
        Ok(Started { instance, existed: existed && sent <= 1 })
    }

    /// One instance by its id or a unique prefix of it.
    pub async fn instance(&self, id: &str) -> Result<Instance, Error> {
        self.call(Operation::Get(wire::GetInstance { id: id.to_owned() }), read_instance).await
    }

    /// A page of instances, newest first.
    pub async fn instances(&self, list: ListInstances) -> Result<InstancePage, Error> {
        let request = Operation::List(wire::ListInstances {
            status: list.status.map(|status| status.as_str().to_owned()).unwrap_or_default(),
            image: list.image.unwrap_or_default(),
            limit: list.limit.unwrap_or(0),
            cursor: list.cursor.unwrap_or_default(),
            waiting_for: list.waiting_for.unwrap_or_default(),
        });
        self.call(request, |outcome| match outcome {
            Outcome::Instances(page) => Ok(InstancePage {
                instances: page.instances.into_iter().map(Instance::from_wire).collect::<Result<_, _>>()?,
                next_cursor: (!page.next_cursor.is_empty()).then_some(page.next_cursor),
                unreadable: page.unreadable,
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// How many instances there are in each state, of one image name or of all.
    pub async fn count(&self, image: Option<&str>) -> Result<Vec<(Status, u64)>, Error> {
        let request = Operation::Count(wire::CountInstances { image: image.unwrap_or_default().to_owned() });
        self.call(request, |outcome| match outcome {
            Outcome::Count(count) => {
                for name in count.by_status.keys() {
                    name.parse::<Status>()?;
                }
                let of = |status: Status| count.by_status.get(status.as_str()).copied().unwrap_or(0);
                Ok(Status::ALL.into_iter().map(|status| (status, of(status))).collect())
            }
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Sends a signal; answers its number. Safe to repeat: the services know it by a key that
    /// is chosen here. To make two calls one signal, use [`Client::signal_once`].
    pub async fn signal(&self, id: &str, name: &str, payload: Option<Payload>) -> Result<u64, Error> {
        let dedup = new_instance_id()?;
        self.signal_once(id, name, payload, &dedup).await
    }

    /// Sends a signal unless one with the same `dedup` key was sent to that instance before.
    pub async fn signal_once(
        &self,
        id: &str,
        name: &str,
        payload: Option<Payload>,
        dedup: &str,
    ) -> Result<u64, Error> {
        let request = Operation::Signal(wire::SignalInstance {
            id: id.to_owned(),
            name: name.to_owned(),
            payload: payload.map(Payload::into_wire),
            dedup: dedup.to_owned(),
        });
        self.call(request, |outcome| match outcome {
            Outcome::Signal(stored) => Ok(stored.number),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Asks it to cancel: its clean-up runs, then it ends CANCELLED.
    pub async fn cancel(&self, id: &str) -> Result<Instance, Error> {
        let id = id.to_owned();
        self.steer(id.clone(), Operation::Cancel(wire::CancelInstance { id })).await
    }

    /// Pauses it: a running step is finished, nothing launches it until it is resumed.
    pub async fn pause(&self, id: &str) -> Result<Instance, Error> {
        let id = id.to_owned();
        self.steer(id.clone(), Operation::Pause(wire::PauseInstance { id })).await
    }

    /// Resumes a paused instance.
    pub async fn resume(&self, id: &str) -> Result<Instance, Error> {
        let id = id.to_owned();
        self.steer(id.clone(), Operation::Resume(wire::ResumeInstance { id })).await
    }

    /// Ends it CANCELLED at once, without its clean-up; its process is killed.
    pub async fn stop(&self, id: &str) -> Result<Instance, Error> {
        let id = id.to_owned();
        self.steer(id.clone(), Operation::Stop(wire::StopInstance { id })).await
    }

    /// Deletes an ended instance and everything that belongs to it.
    pub async fn delete_instance(&self, id: &str) -> Result<(), Error> {
        let mut sent = 0;
        let request = Operation::Delete(wire::DeleteInstance { id: id.to_owned() });
        let answer = self
            .call_counted(
                request,
                |outcome| match outcome {
                    Outcome::Deleted(_) => Ok(()),
                    other => Err(unexpected(&other)),
                },
                &mut sent,
            )
            .await;
        match answer {
            // Done by the first time, whose answer got lost.
            Err(error) if sent > 1 && error.refused_with(Code::NotFound) => Ok(()),
            answer => answer,
        }
    }

    async fn steer(&self, id: String, request: Operation) -> Result<Instance, Error> {
        let mut sent = 0;
        match self.call_counted(request, read_instance, &mut sent).await {
            // The first time may have ended it, and its answer got lost.
            Err(error) if sent > 1 && error.refused_with(Code::FailedPrecondition) => {
                let instance = self.instance(&id).await?;
                if instance.status == Status::Cancelled { Ok(instance) } else { Err(error) }
            }
            answer => answer,
        }
    }
}

pub(crate) fn read_instance(outcome: Outcome) -> Result<Instance, String> {
    match outcome {
        Outcome::Instance(instance) => Instance::from_wire(instance),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
