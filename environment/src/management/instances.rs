//! Start, get, list, count, wait, signal, cancel, pause, resume, stop, delete.

use std::collections::BTreeMap;

use dormouse_core::{
    domain::{
        id::{InstanceId, InstanceKey},
        instance::{Life, State},
        signal::NewSignal,
        time::Micros,
    },
    logging,
    store::{self, Instance as Row, InstanceDetail, ListFilter, RetryRequest, StartRequest, Started},
};
use dormouse_proto::{call::Refusal, management as wire};
use tokio::time::Instant;

use super::{
    describe, parse,
    sentence::{self, Capacity, Facts},
    server::{Context, Patience, blocking, disk, random, refuse},
    watchers::News,
};
use crate::launcher::check_variable;

/// Instances on one page.
const PAGE: u32 = 500;

impl Context {
    pub(super) async fn start(&self, request: wire::StartInstance) -> Result<wire::StartOutcome, Refusal> {
        let id = if request.id.is_empty() { fresh_id()? } else { parse::id(&request.id)? };
        let started = if request.retry_of.is_empty() {
            self.start_new(id.clone(), request).await?
        } else {
            self.retry(id.clone(), request).await?
        };
        let instance = match &started.as_made {
            Some(detail) => self.describe_detail(detail).await?,
            None => self.describe(&id).await?,
        };
        Ok(wire::StartOutcome { instance: Some(instance), existed: started.existed })
    }

    async fn start_new(&self, id: InstanceId, request: wire::StartInstance) -> Result<Started, Refusal> {
        if request.from_scratch {
            return Err(parse::invalid("start.from_scratch is set without start.retry_of; leave it out"));
        }
        let start = StartRequest {
            tenant: self.tenant.clone(),
            id,
            image: parse::image_name("start.image", &request.image)?,
            version: parse::optional_name("start.version", &request.version)?,
            workflow: parse::optional_name("start.workflow", &request.workflow)?,
            input: parse::payload("start.input", request.input)?,
            env: variables(request.env)?,
            limit: parse::limit(request.limit_micros)?,
            start_at: (request.start_at != 0).then_some(Micros(request.start_at)),
            priority: u8::try_from(request.priority.unwrap_or(0)).unwrap_or(u8::MAX),
            follow_image: request.follow_image,
        };
        let place = if start.start_at.is_none() { self.shared.parts.desk.place() } else { None };
        let started = match place {
            Some(place) => place.start(self.store().clone(), start).await,
            None => self.store().start(start).await,
        };
        started.map_err(|error| refuse(&error))
    }

    /// As an ended instance was started; what is empty or left out is as it was.
    async fn retry(&self, id: InstanceId, request: wire::StartInstance) -> Result<Started, Refusal> {
        if request.follow_image {
            return Err(parse::invalid(
                "start.follow_image is set beside start.retry_of; leave one of them out",
            ));
        }
        let version = parse::optional_name("start.version", &request.version)?;
        let image = match (request.image.as_str(), version) {
            ("", None) => None,
            ("", Some(version)) => {
                return Err(parse::invalid(format!(
                    "start.version is {:?} without start.image; name the image too",
                    version.as_str()
                )));
            }
            (name, version) => Some((parse::image_name("start.image", name)?, version)),
        };
        let retry = RetryRequest {
            tenant: self.tenant.clone(),
            id,
            retry_of: parse::id(&request.retry_of)?,
            from_scratch: request.from_scratch,
            image,
            workflow: parse::optional_name("start.workflow", &request.workflow)?,
            input: match request.input {
                Some(input) => Some(parse::payload("start.input", Some(input))?),
                None => None,
            },
            env: variables(request.env)?,
            limit: parse::limit(request.limit_micros)?,
            start_at: (request.start_at != 0).then_some(Micros(request.start_at)),
            priority: request.priority.map(|priority| u8::try_from(priority).unwrap_or(u8::MAX)),
        };
        self.store().retry(retry).await.map_err(|error| refuse(&error))
    }

    pub(super) async fn get(&self, request: wire::GetInstance) -> Result<wire::Instance, Refusal> {
        let id = self.resolve(&request.id).await?;
        self.describe(&id).await
    }

    pub(super) async fn list(&self, request: wire::ListInstances) -> Result<wire::InstancePage, Refusal> {
        let limit = parse::page(request.limit, PAGE);
        let before = match request.cursor.as_str() {
            "" => None,
            // The last id that the page before has looked at.
            cursor => Some(self.find(&parse::id(cursor)?).await?.key),
        };
        let filter = ListFilter {
            status: parse::status(&request.status)?,
            image: parse::optional_name("list.image", &request.image)?,
            waiting_for: parse::waiting_for(&request.waiting_for)?,
            before,
            limit,
        };
        let page = self.store().list(&self.tenant, filter).await.map_err(|error| refuse(&error))?;
        let now = self.store().now().await.map_err(|error| refuse(&error))?;
        let due = page.instances.iter().any(|instance| is_due(&instance.life, now));
        let capacity = if due { self.capacity(true).await? } else { Capacity::Free };
        let describe = |instance: &Row| {
            describe::instance(instance, self.sentence(instance, instance.changed_at, None, &capacity, now))
        };
        // The cursor is an id: the internal key behind it is nobody's business.
        let last = &page.next_id;
        Ok(wire::InstancePage {
            next_cursor: last.as_ref().map(ToString::to_string).unwrap_or_default(),
            instances: page.instances.iter().map(describe).collect(),
            unreadable: page.unreadable,
        })
    }

    pub(super) async fn count(&self, request: wire::CountInstances) -> Result<wire::InstanceCount, Refusal> {
        let image = parse::optional_name("count.image", &request.image)?;
        let counts =
            self.store().count(&self.tenant, image.as_ref()).await.map_err(|error| refuse(&error))?;
        let by_status = counts.into_iter().map(|(status, n)| (status.to_owned(), n)).collect();
        Ok(wire::InstanceCount { by_status })
    }

    pub(super) async fn wait(
        &self,
        request: wire::WaitInstance,
        patience: &Patience<'_>,
    ) -> Result<wire::Instance, Refusal> {
        let (id, key) = self.resolve_key(&request.id).await?;
        let until = Instant::now() + parse::at_most(request.for_micros, self.shared.options.longest_poll);
        let news = if request.seen_version > 0 { News::Change } else { News::Ending };
        let watcher = self.shared.watchers.watch(key, news);
        loop {
            // Looked at after the watch began, so that no change falls in between.
            let detail = self.detail(&id).await?;
            let instance = &detail.instance;
            let news = request.seen_version > 0 && instance.revision > request.seen_version;
            let left = until.saturating_duration_since(Instant::now());
            if instance.life.outcome().is_some() || news || left.is_zero() || patience.is_over() {
                return self.describe_detail(&detail).await;
            }
            patience.wait(watcher.changed(left.min(self.shared.options.poll))).await;
        }
    }

    pub(super) async fn signal(&self, request: wire::SignalInstance) -> Result<wire::SignalStored, Refusal> {
        let signal = NewSignal {
            name: parse::name("signal.name", &request.name)?,
            payload: parse::payload("signal.payload", request.payload)?,
            dedup: request.dedup,
        };
        let id = self.resolve(&request.id).await?;
        let sent = self.store().signal(&self.tenant, &id, signal).await.map_err(|error| refuse(&error))?;
        Ok(wire::SignalStored { number: sent.number })
    }

    pub(super) async fn cancel(&self, request: wire::CancelInstance) -> Result<wire::Instance, Refusal> {
        let id = self.resolve(&request.id).await?;
        self.steered(&id, self.store().cancel(&self.tenant, &id).await).await
    }

    pub(super) async fn pause(&self, request: wire::PauseInstance) -> Result<wire::Instance, Refusal> {
        let id = self.resolve(&request.id).await?;
        self.steered(&id, self.store().pause(&self.tenant, &id).await).await
    }

    pub(super) async fn resume(&self, request: wire::ResumeInstance) -> Result<wire::Instance, Refusal> {
        let id = self.resolve(&request.id).await?;
        self.steered(&id, self.store().resume(&self.tenant, &id).await).await
    }

    pub(super) async fn stop(&self, request: wire::StopInstance) -> Result<wire::Instance, Refusal> {
        let id = self.resolve(&request.id).await?;
        self.steered(&id, self.store().stop(&self.tenant, &id).await).await
    }

    async fn steered(&self, id: &InstanceId, answer: store::Result<()>) -> Result<wire::Instance, Refusal> {
        answer.map_err(|error| refuse(&error))?;
        self.describe(id).await
    }

    pub(super) async fn delete(&self, request: wire::DeleteInstance) -> Result<wire::Deleted, Refusal> {
        // The whole id: a prefix that is unique now may mean another one at the repeat.
        let id = self.resolve(&request.id).await?;
        self.store().delete(&self.tenant, &id).await.map_err(|error| refuse(&error))?;
        // Files last: if we die in between they are an ended instance's, which the node's limit drops.
        let (attempts, tenant) = (self.shared.parts.attempts.clone(), self.tenant.clone());
        let removed = blocking(move || attempts.remove_instance(&tenant, &id)).await?;
        removed.map_err(|error| disk("the instance is deleted, its output could not be", &error))?;
        Ok(wire::Deleted { count: 1 })
    }

    /// The instance that an id, or the unique beginning of one, stands for.
    pub(super) async fn resolve(&self, text: &str) -> Result<InstanceId, Refusal> {
        self.resolve_key(text).await.map(|(id, _)| id)
    }

    async fn resolve_key(&self, text: &str) -> Result<(InstanceId, InstanceKey), Refusal> {
        let prefix = parse::id(text)?;
        let store = self.store();
        let (id, key) = store.resolve_key(&self.tenant, &prefix).await.map_err(|error| refuse(&error))?;
        logging::request_of(&id);
        Ok((id, key))
    }

    pub(super) async fn find(&self, id: &InstanceId) -> Result<Row, Refusal> {
        self.store().instance(&self.tenant, id).await.map_err(|error| refuse(&error))
    }

    async fn detail(&self, id: &InstanceId) -> Result<InstanceDetail, Refusal> {
        self.store().instance_detail(&self.tenant, id).await.map_err(|error| refuse(&error))
    }

    async fn describe(&self, id: &InstanceId) -> Result<wire::Instance, Refusal> {
        self.describe_detail(&self.detail(id).await?).await
    }

    async fn describe_detail(&self, detail: &InstanceDetail) -> Result<wire::Instance, Refusal> {
        let instance = &detail.instance;
        let due = is_due(&instance.life, detail.now);
        let capacity = if due { self.capacity(detail.limited).await? } else { Capacity::Free };
        // Only what happened to the newest attempt explains the present.
        let fault = detail.last_exit.as_ref().filter(|(attempt, _)| *attempt == instance.life.attempt);
        let fault = fault.map(|(_, exit)| exit.as_str());
        let sentence = self.sentence(instance, since(detail), fault, &capacity, detail.now);
        Ok(describe::detail(detail, sentence))
    }

    fn sentence(
        &self,
        instance: &Row,
        since: Micros,
        fault: Option<&str>,
        capacity: &Capacity,
        now: Micros,
    ) -> Option<String> {
        let facts = Facts {
            life: &instance.life,
            since,
            fault,
            capacity,
            cancel_grace: self.store().limits().cancel_grace,
        };
        sentence::waiting_for(&facts, now, &self.shared.options.zone)
    }
}

/// Since when it is as it is. The row also changes while it waits (a pause and its resume), so a wait
/// counts from the end of the attempt that began it.
fn since(detail: &InstanceDetail) -> Micros {
    let instance = &detail.instance;
    if instance.life.paused || !matches!(instance.life.state, State::Suspended { .. }) {
        return instance.changed_at;
    }
    detail.attempt_ended_at.map_or(instance.changed_at, |ended| ended.min(instance.changed_at))
}

/// Whether nothing but a launch is missing.
fn is_due(life: &Life, now: Micros) -> bool {
    let rests = matches!(life.state, State::Pending { .. } | State::Suspended { .. });
    rests && life.is_due(now)
}

fn variables(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    for (name, value) in &env {
        check_variable(name, value).map_err(|error| parse::invalid(error.to_string()))?;
    }
    Ok(env)
}

/// For clients that leave the choice to us; a repeat of theirs starts a second instance.
fn fresh_id() -> Result<InstanceId, Refusal> {
    Ok(InstanceId::from_random(random()?))
}
