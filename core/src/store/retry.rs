//! Starting an instance as an ended one was started, with what that one's operations have done.
//!
//! The origin never changes again, so it is read before the start and locked in the start's
//! transaction, against its deletion only. Its checkpoints are copied by one statement inside the
//! database: a million of them pass through nobody's memory. Which ones is the domain's rule
//! ([`taken_over`](crate::domain::checkpoint::taken_over)); the contract's tests hold the statement
//! to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Store,
    commit::Request,
    error::{Error, Result},
    events::{self, NewEvent},
    instances, life, payload,
    sql::{Stmt, Tx, args, stmt},
    start::{self, StartRequest, Started},
};
use crate::domain::{
    checkpoint::FAILURE_TYPE,
    event::EventKind,
    id::{Attempt, InstanceId, InstanceKey, Name, Tenant},
    payload::Payload,
    time::Micros,
};

/// What a controller asks for; what is none is as the origin had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryRequest {
    /// Whose instance it is and will be.
    pub tenant: Tenant,
    /// The new id: a repeat of the same request is the same instance.
    pub id: InstanceId,
    /// The ended instance, or the unique beginning of its id.
    pub retry_of: InstanceId,
    /// Take nothing over of what it has saved.
    pub from_scratch: bool,
    /// Another image, and its version; without a version its newest.
    pub image: Option<(Name, Option<Name>)>,
    /// Another entry point.
    pub workflow: Option<Name>,
    /// Another input.
    pub input: Option<Payload>,
    /// Variables that are added, or replace the origin's.
    pub env: BTreeMap<String, String>,
    /// Another time limit.
    pub limit: Option<Duration>,
    /// When to launch it first; none: now, whenever the origin was to be.
    pub start_at: Option<Micros>,
    /// Another priority.
    pub priority: Option<u8>,
}

impl RetryRequest {
    /// What tells it from another start, by what was asked: the origin may be gone at a repeat.
    fn fingerprint(&self) -> Vec<u8> {
        let text = |name: Option<&Name>| name.map_or(Vec::new(), |name| name.as_str().as_bytes().to_vec());
        let image = self.image.as_ref();
        let env = serde_json::to_string(&self.env).expect("a map of texts is JSON");
        let number = |value: Option<i64>| value.map_or(Vec::new(), |value| value.to_be_bytes().to_vec());
        let origin = format!("{}{}", self.retry_of, if self.from_scratch { " from scratch" } else { "" });
        start::digests(&[
            text(image.map(|(name, _)| name)),
            text(image.and_then(|(_, version)| version.as_ref())),
            text(self.workflow.as_ref()),
            self.input.as_ref().map_or(Vec::new(), start::input_field),
            env.into_bytes(),
            number(self.limit.map(crate::domain::time::span)),
            number(self.start_at.map(|at| at.0)),
            number(self.priority.map(i64::from)),
            origin.into_bytes(),
        ])
    }
}

/// Whom a start retries.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    key: InstanceKey,
    id: InstanceId,
    from_scratch: bool,
    /// Of the request for the retry.
    pub(super) fingerprint: Vec<u8>,
}

/// The start that the same request made before.
struct Repeated {
    tenant: Tenant,
    id: InstanceId,
    fingerprint: Vec<u8>,
}

impl Request for Repeated {
    type Answer = Option<Started>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        const FIND: Stmt = stmt!(
            "SELECT i.key, s.fingerprint FROM instance i JOIN instance_start s ON s.instance = i.key
              WHERE i.tenant = $1 AND i.id = $2"
        );
        let Some(row) = tx.fetch_optional(&FIND, args![&self.tenant, &self.id]).await? else {
            return Ok(None);
        };
        let differs = start::differing(&row.blob("fingerprint")?, &self.fingerprint, false);
        if differs.is_empty() {
            return Ok(Some(Started {
                instance: row.instance("key")?,
                existed: true,
                image_changed: false,
                as_made: None,
            }));
        }
        Err(Error::OtherStart { id: self.id.clone(), differs: differs.join(" and ") })
    }
}

/// The start that a retry means.
struct Resolve {
    request: RetryRequest,
    origin: InstanceId,
}

impl Request for Resolve {
    type Answer = (StartRequest, Origin);

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        const ORIGIN: Stmt = stmt!(
            "SELECT i.key, i.image_name, i.image_version, i.workflow, i.priority, i.created_at, i.deadline_at,
                    i.ended_at, s.input, s.encoding, s.type_name, s.env
               FROM instance i JOIN instance_start s ON s.instance = i.key WHERE i.tenant = $1 AND i.id = $2"
        );
        let RetryRequest { tenant, id, .. } = &self.request;
        let row = tx.fetch_optional(&ORIGIN, args![tenant, &self.origin]).await?;
        let row = row.ok_or_else(|| Error::NoInstance { id: self.origin.to_string() })?;
        if row.opt_at("ended_at")?.is_none() {
            return Err(Error::RetryTooEarly { id: self.origin.clone() });
        }
        let given = self.request.clone();
        let (image, version) = match given.image {
            Some(image) => image,
            None => (row.name("image_name")?, Some(row.name("image_version")?)),
        };
        let text = row.text("env")?;
        let mut env: BTreeMap<String, String> =
            serde_json::from_str(&text).map_err(|error| row.unreadable("env", error.to_string()))?;
        env.extend(given.env);
        let created_at = row.at("created_at")?;
        let input = payload::read_from(&row, "input")?.unwrap_or_default();
        let start = StartRequest {
            tenant: tenant.clone(),
            id: id.clone(),
            image,
            version,
            // Another image may have another workflow, and only one.
            workflow: match given.workflow {
                None if self.request.image.is_some() => None,
                None => Some(row.name("workflow")?),
                given => given,
            },
            input: given.input.unwrap_or(input),
            env,
            limit: given.limit.or(row.opt_at("deadline_at")?.map(|deadline| deadline.since(created_at))),
            start_at: given.start_at,
            priority: match given.priority {
                Some(priority) => priority,
                None => instances::read_priority(&row)?,
            },
            follow_image: false,
        };
        let fingerprint = self.request.fingerprint();
        let origin = Origin {
            key: row.instance("key")?,
            id: self.origin.clone(),
            from_scratch: given.from_scratch,
            fingerprint,
        };
        Ok((start, origin))
    }
}

/// In the order in which they were stored, numbered anew, of no attempt: a crash of the first one
/// has saved nothing itself. The conditions are those of the domain.
const TAKE_OVER: Stmt = stmt!(
    "WITH felt AS (
         SELECT COALESCE(MIN(number), 9223372036854775807) AS number FROM checkpoint
          WHERE instance = $1 AND (kind = 'cancelled' OR (data IS NULL AND due_at IS NULL))),
     done AS (
         SELECT c.* FROM checkpoint c, felt
          WHERE c.instance = $1 AND c.number < felt.number AND c.slot = 0
            AND ((c.kind = 'step' AND c.data IS NOT NULL AND c.type_name <> $3)
                 OR (c.kind = 'checkpoint' AND c.data IS NOT NULL)
                 OR (c.kind = 'sleep' AND c.due_at IS NOT NULL)
                 OR c.kind = 'signal')),
     taken AS (
         SELECT * FROM done
         UNION ALL
         SELECT c.* FROM checkpoint c, felt
          WHERE c.instance = $1 AND c.number < felt.number AND c.kind = 'due'
            AND EXISTS (SELECT 1 FROM done d WHERE d.name = c.name AND d.op_key = c.op_key))
     INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, due_at, data, encoding,
                             type_name, note, stored_at)
     SELECT $2, ROW_NUMBER() OVER (ORDER BY number), name, op_key, slot, kind, 0, due_at, data, encoding,
            type_name, note, stored_at
       FROM taken"
);
const POINT: Stmt = stmt!("UPDATE instance_start SET retry_of = $1 WHERE instance = $2");

/// Makes a started instance the retry of its origin. Refused if the origin is being deleted.
pub(super) async fn take_over(
    tx: &mut Tx<'_>,
    origin: &Origin,
    (tenant, id, instance): (&Tenant, &InstanceId, InstanceKey),
    now: Micros,
) -> Result<()> {
    // A deletion begins with the timeline.
    const BEGUN: Stmt = stmt!("SELECT number FROM event WHERE instance = $1 AND number = 1");
    let missing = || Error::NoInstance { id: origin.id.to_string() };
    let row = life::lock(tx, origin.key, tenant).await?.ok_or_else(missing)?;
    tx.fetch_optional(&BEGUN, args![origin.key]).await?.ok_or_else(missing)?;
    tx.execute_one(&POINT, args![&origin.id, instance]).await?;
    let taken = if origin.from_scratch {
        0
    } else {
        tx.execute(&TAKE_OVER, args![origin.key, instance, FAILURE_TYPE]).await?
    };
    // The release before knows no kind of its own for this.
    let message = format!("retries {}, with {taken} of its checkpoints", origin.id);
    events::append(tx, instance, Attempt::NONE, now, NewEvent::new(EventKind::Started, &message)).await?;
    let message = format!("retried as {id}");
    events::append(tx, row.key, row.life.attempt, now, NewEvent::new(EventKind::Started, &message)).await
}

impl Store {
    /// Starts an instance as an ended one was started, and lets it go on from what that one's
    /// operations have done, or finds the one that the same request started before. An origin
    /// that has not ended is refused with FAILED_PRECONDITION. One transaction: it takes longer
    /// the more checkpoints there are.
    pub async fn retry(&self, request: RetryRequest) -> Result<Started> {
        let RetryRequest { tenant, id, .. } = &request;
        let repeated =
            Repeated { tenant: tenant.clone(), id: id.clone(), fingerprint: request.fingerprint() };
        if let Some(started) = self.read(repeated).await? {
            return Ok(started);
        }
        let origin = self.resolve(tenant, &request.retry_of).await?;
        let (start, origin) = self.read(Resolve { request, origin }).await?;
        Ok(self.start_as(start, Some(Arc::new(origin)), None).await?.0)
    }
}
