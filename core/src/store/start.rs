//! Starting an instance: once per id, whatever gets lost on the way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};

use super::{
    Notice, Store,
    commit::{LockOrder, Request},
    error::{Error, Result},
    images::{self, FoundImage},
    instances::{Instance, InstanceDetail},
    payload,
    retry::{self, Origin},
    sql::{Stmt, Tx, args, stmt},
    tenants,
    wakes::{Claim, Claimant},
};
use crate::domain::{
    event::EventKind,
    id::{InstanceId, InstanceKey, Name, Tenant},
    instance::Life,
    payload::Payload,
    time::Micros,
};
use crate::timings;

/// What a controller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRequest {
    /// Whose instance it will be.
    pub tenant: Tenant,
    /// Its id, unique in the tenant: a repeat of the same start is the same instance.
    pub id: InstanceId,
    /// The image's name.
    pub image: Name,
    /// Its version; none: the newest at the first start.
    pub version: Option<Name>,
    /// The entry point; none: the image's only one.
    pub workflow: Option<Name>,
    /// What the workflow gets.
    pub input: Payload,
    /// Environment variables of its processes.
    pub env: BTreeMap<String, String>,
    /// Its time limit from the start on, whatever it does.
    pub limit: Option<Duration>,
    /// When to launch it first; none: now.
    pub start_at: Option<Micros>,
    /// 0–9; higher ones are launched first.
    pub priority: u8,
    /// An instance that exists follows this start's image version at its next launch, instead
    /// of being told apart by it.
    pub follow_image: bool,
}

/// The answer to a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The instance's internal key.
    pub instance: InstanceKey,
    /// The same start was accepted before.
    pub existed: bool,
    /// The existing instance was launched from another image before; its next launch takes this.
    pub image_changed: bool,
    /// What was made, as it would be read at that moment; none of an instance that existed or that retries another.
    pub as_made: Option<Box<InstanceDetail>>,
}

/// The tenant's quotas come along: who has none pays nothing for it.
const FIND: Stmt = stmt!(
    "SELECT t.max_stored, t.starts_per_second, t.max_running IS NOT NULL AS limited, i.key, i.image_digest, i.ended_at, s.fingerprint
       FROM tenant t LEFT JOIN instance i ON i.tenant = t.name AND i.id = $2
                     LEFT JOIN instance_start s ON s.instance = i.key
      WHERE t.name = $1"
);
macro_rules! instance {
    () => {
        "INSERT INTO instance (tenant, id, image_name, image_version, image_digest, workflow, priority,
                               state, wake_at, attempt, session, open, paused, cancel, crashes, deadline_at,
                               created_at, changed_at, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'PENDING', $8, 0, 0, FALSE, FALSE, 'no', 0, $9, $10, $10, 1)
             ON CONFLICT (tenant, id) DO NOTHING
         RETURNING key"
    };
}
/// What the start gave; `$key`: of the row that was just made, none if none was.
macro_rules! given {
    ($key:literal) => {
        concat!(
            "INSERT INTO instance_start (instance, input, encoding, type_name, env, fingerprint)
             SELECT ",
            $key
        )
    };
}
/// The first event.
macro_rules! tell {
    ($key:literal) => {
        concat!(
            "INSERT INTO event (instance, number, at, attempt, kind, message)
             SELECT ",
            $key
        )
    };
}
/// The row with all that belongs to it; nothing where the id is taken.
const INSERT: Stmt = Stmt {
    sqlite: concat!(
        instance!(),
        "; ",
        given!("last_insert_rowid(), $11, $12, $13, $14, $15 WHERE changes() = 1; "),
        tell!("last_insert_rowid(), 1, $10, 0, $16, $6 WHERE changes() = 1")
    ),
    postgres: concat!(
        "WITH i AS (",
        instance!(),
        "), s AS (",
        given!("key, $11, $12, $13, $14, $15 FROM i), e AS ("),
        tell!("key, 1, $10, 0, $16, $6 FROM i) SELECT key FROM i")
    ),
};
const FOLLOW: Stmt = stmt!(
    "UPDATE instance SET image_version = $1, image_digest = $2, version = version + 1
      WHERE key = $3 AND tenant = $4 AND ended_at IS NULL AND image_digest <> $2"
);

/// The fields that tell one start from another, in the order of the fingerprint.
/// The last one only of a retry.
const FIELDS: [&str; 9] =
    ["image", "version", "workflow", "input", "env", "limit", "start_at", "priority", "retry_of"];
/// Where the version stands in it.
const VERSION: usize = 1;
/// Bytes of the fingerprint that stand for one field.
const FIELD: usize = 16;

struct Start {
    request: Arc<StartRequest>,
    env: String,
    fingerprint: Vec<u8>,
    /// Instances that its tenant stores already, if somebody counted.
    stored: Option<u64>,
    /// Whom it retries.
    origin: Option<Arc<Origin>>,
    /// Who launches it if it is due at once.
    claimant: Option<Arc<Claimant>>,
}

/// What was started, and the claim of it if it was claimed too.
type Made = (Started, Option<Claim>);

/// Which quotas its tenant has.
struct Quotas {
    max_stored: Option<u64>,
    starts: bool,
    running: bool,
}

/// What the place of an id holds.
enum Place {
    Taken(Started),
    Free(Quotas),
}

impl Request for Start {
    /// `None`: the tenant has a quota of stored instances, so count them and ask again.
    type Answer = Option<Made>;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Start)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Start(self.request.tenant.clone(), self.request.id.clone())
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Option<Made>> {
        let quotas = match self.look(tx).await? {
            Place::Taken(existing) => return Ok(Some((existing, None))),
            Place::Free(quotas) => quotas,
        };
        let image = self.image(tx).await?;
        let workflow = image.workflow(self.request.workflow.as_ref())?;
        let tenant = &self.request.tenant;
        match (quotas.max_stored, self.stored) {
            (Some(_), None) => return Ok(None),
            (Some(max), Some(stored)) if stored >= max => {
                return Err(Error::StoredQuota { tenant: tenant.clone(), max });
            }
            (Some(_) | None, _) => {}
        }
        if quotas.starts {
            tenants::take_start(tx, tenant).await?;
        }
        let now = tx.now().await?;
        if let Some(made) = self.insert(tx, image, workflow, quotas.running, now).await? {
            return Ok(Some(made));
        }
        // Another process was faster between our look and our insert.
        match self.look(tx).await? {
            Place::Taken(existing) => Ok(Some((existing, None))),
            Place::Free(_) => Err(Error::Broken { table: "instance".to_owned(), rows: 0 }),
        }
    }
}

impl Start {
    fn new(
        request: Arc<StartRequest>,
        stored: Option<u64>,
        origin: Option<Arc<Origin>>,
        claimant: Option<Arc<Claimant>>,
    ) -> Self {
        let env = serde_json::to_string(&request.env).expect("a map of texts is JSON");
        let fingerprint =
            origin.as_ref().map_or_else(|| fingerprint(&request, &env), |origin| origin.fingerprint.clone());
        Self { request, env, fingerprint, stored, origin, claimant }
    }

    async fn image(&self, tx: &mut Tx<'_>) -> Result<FoundImage> {
        let StartRequest { tenant, image, version, .. } = &*self.request;
        images::hold(tx, tenant, image, version.as_ref()).await
    }

    /// The instance of this id, if it exists and was started the same way.
    async fn look(&self, tx: &mut Tx<'_>) -> Result<Place> {
        let StartRequest { tenant, id, follow_image, .. } = &*self.request;
        let row = tx.fetch_optional(&FIND, args![tenant, id]).await?;
        let row = row.ok_or_else(|| tenants::missing(tenant))?;
        if row.opt_int("key")?.is_none() {
            return Ok(Place::Free(Quotas {
                max_stored: tenants::quota(&row, "max_stored")?,
                starts: tenants::quota(&row, "starts_per_second")?.is_some(),
                running: row.flag("limited")?,
            }));
        }
        let differs = differing(&row.blob("fingerprint")?, &self.fingerprint, *follow_image);
        if !differs.is_empty() {
            return Err(Error::OtherStart { id: id.clone(), differs: differs.join(" and ") });
        }
        let instance = row.instance("key")?;
        let image_changed =
            *follow_image && row.opt_at("ended_at")?.is_none() && self.follow(tx, instance).await?;
        Ok(Place::Taken(Started { instance, existed: true, image_changed, as_made: None }))
    }

    async fn follow(&self, tx: &mut Tx<'_>, instance: InstanceKey) -> Result<bool> {
        let image = self.image(tx).await?;
        let digest = image.digest.to_string();
        let args = args![&image.version, &digest, instance, &self.request.tenant];
        Ok(tx.execute(&FOLLOW, args).await? == 1)
    }

    async fn insert(
        &self,
        tx: &mut Tx<'_>,
        image: FoundImage,
        workflow: Name,
        limited: bool,
        now: Micros,
    ) -> Result<Option<Made>> {
        let request = &*self.request;
        let wake_at = request.start_at.unwrap_or(now).max(now);
        let life = Life::start(wake_at, request.limit.map(|limit| now + limit));
        let digest = image.digest.to_string();
        let (data, encoding, type_name) = payload::columns(Some(&request.input));
        let args = args![
            &request.tenant,
            &request.id,
            &request.image,
            &image.version,
            &digest,
            &workflow,
            request.priority,
            life.wake_at(),
            life.deadline_at,
            now,
            data,
            encoding,
            type_name,
            &self.env,
            &self.fingerprint,
            EventKind::Started.as_str(),
        ];
        let Some(row) = tx.write_fetch(&INSERT, args).await?.pop() else { return Ok(None) };
        let instance = row.instance("key")?;
        let started = |as_made| Started { instance, existed: false, image_changed: false, as_made };
        if let Some(origin) = &self.origin {
            retry::take_over(tx, origin, (&request.tenant, &request.id, instance), now).await?;
            tx.notify(Notice::Wakes);
            return Ok(Some((started(None), None)));
        }
        let mut made = self.row(instance, image, workflow, life, now);
        let claim = match &self.claimant {
            // Who may run is decided among all that are due.
            Some(claimant) if !limited => claimant.take(tx, &mut made, &request.env, now).await?,
            _ => None,
        };
        if claim.is_none() {
            tx.notify(Notice::Wakes);
        }
        let as_made = Some(Box::new(self.detail(made, limited)));
        Ok(Some((started(as_made), claim)))
    }

    /// The row that was just made, as it is read.
    fn row(&self, key: InstanceKey, image: FoundImage, workflow: Name, life: Life, now: Micros) -> Instance {
        let request = &*self.request;
        Instance {
            key,
            tenant: request.tenant.clone(),
            id: request.id.clone(),
            image: image.name,
            version: image.version,
            digest: image.digest,
            workflow,
            priority: request.priority,
            life,
            created_at: now,
            started_at: None,
            changed_at: now,
            revision: 1,
            progress: None,
            failure: None,
        }
    }

    fn detail(&self, made: Instance, limited: bool) -> InstanceDetail {
        InstanceDetail {
            now: made.created_at,
            instance: made,
            input: self.request.input.clone(),
            env: self.request.env.clone(),
            retry_of: None,
            output: None,
            checkpoints: 0,
            unread_signals: 0,
            last_exit: None,
            attempt_ended_at: None,
            limited,
        }
    }
}

/// A short digest of each field, so that a repeat is told from another start by name.
fn fingerprint(request: &StartRequest, env: &str) -> Vec<u8> {
    let text = |name: Option<&Name>| name.map_or(Vec::new(), |name| name.as_str().as_bytes().to_vec());
    let number = |value: Option<i64>| value.map_or(Vec::new(), |value| value.to_be_bytes().to_vec());
    digests(&[
        text(Some(&request.image)),
        text(request.version.as_ref()),
        text(request.workflow.as_ref()),
        input_field(&request.input),
        env.as_bytes().to_vec(),
        number(request.limit.map(crate::domain::time::span)),
        number(request.start_at.map(|at| at.0)),
        number(Some(i64::from(request.priority))),
    ])
}

pub(super) fn input_field(input: &Payload) -> Vec<u8> {
    let mut field = input.encoding.as_str().as_bytes().to_vec();
    field.push(0);
    field.extend_from_slice(&input.data);
    field
}

pub(super) fn digests(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.iter().flat_map(|field| Sha256::digest(field)[..FIELD].to_vec()).collect()
}

/// Which fields are not as they were. Whoever follows the image may bring another version.
pub(super) fn differing(stored: &[u8], given: &[u8], follows_image: bool) -> Vec<&'static str> {
    if stored.len() != given.len() {
        return vec!["retry_of"];
    }
    let pairs = stored.chunks(FIELD).zip(given.chunks(FIELD));
    let all = FIELDS.iter().enumerate().zip(pairs);
    all.filter(|((at, _), (old, new))| old != new && !(follows_image && *at == VERSION))
        .map(|((_, field), _)| *field)
        .collect()
}

impl Store {
    /// Starts an instance, or finds the one that the same request started before. Another
    /// start under the same id is refused with ALREADY_EXISTS and names what differs.
    pub async fn start(&self, request: StartRequest) -> Result<Started> {
        Ok(self.start_as(request, None, None).await?.0)
    }

    /// As [`Self::start`]; an instance that is new, due at once and of a tenant without a quota of running ones is
    /// claimed in the same transaction, before whatever else is due, by a claimant that holds its lease. Its
    /// launch is the caller's. If the answer is lost, the claim heals as one of [`Self::claim_due`].
    pub async fn start_claimed(
        &self,
        request: StartRequest,
        claimant: Claimant,
    ) -> Result<(Started, Option<Claim>)> {
        self.start_as(request, None, Some(Arc::new(claimant))).await
    }

    /// As [`Self::start`], perhaps the retry of another, perhaps claimed.
    pub(super) async fn start_as(
        &self,
        request: StartRequest,
        origin: Option<Arc<Origin>>,
        claimant: Option<Arc<Claimant>>,
    ) -> Result<Made> {
        self.check_payload("start.input", &request.input)?;
        self.check_env(&request.env)?;
        if request.priority > 9 {
            let value = request.priority.to_string();
            return Err(Error::Invalid { field: "start.priority", value, remedy: "give 0 to 9" });
        }
        let request = Arc::new(request);
        // Of a tenant without a quota of stored instances nothing is known, and nothing asked.
        let mut place = self.known_place(&request.tenant);
        loop {
            let stored = place.as_ref().map(|place| place.before);
            let start = Start::new(Arc::clone(&request), stored, origin.clone(), claimant.clone());
            match self.write_start(start).await {
                Ok(None) => place = Some(self.place(&request.tenant).await?),
                Ok(Some(made)) => {
                    if made.0.existed {
                        place.into_iter().for_each(tenants::Place::give_back);
                    }
                    return Ok(made);
                }
                // It may be stored: the place stays taken until the next count.
                Err(error @ Error::Unconfirmed(_)) => return Err(error),
                Err(error) => {
                    place.into_iter().for_each(tenants::Place::give_back);
                    return Err(error);
                }
            }
        }
    }

    fn check_env(&self, env: &BTreeMap<String, String>) -> Result<()> {
        let limits = self.limits();
        if env.len() > limits.env_variables {
            let value = format!("{} variables, at most {} are allowed", env.len(), limits.env_variables);
            return Err(Error::Invalid { field: "start.env", value, remedy: "pass them in the input" });
        }
        let len = env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if len > limits.env_bytes {
            return Err(Error::TooLarge { field: "start.env", len, max: limits.env_bytes });
        }
        let bad = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        if let Some(name) = env.keys().find(bad) {
            let remedy = "name variables without '=' and NUL";
            return Err(Error::Invalid { field: "start.env", value: format!("{name:?}"), remedy });
        }
        if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
            let value = format!("{name:?} with a NUL in its value");
            return Err(Error::Invalid { field: "start.env", value, remedy: "remove the NUL" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> StartRequest {
        StartRequest {
            tenant: Tenant::default_tenant(),
            id: InstanceId::parse("a").expect("valid"),
            image: Name::parse("image", "img").expect("valid"),
            version: None,
            workflow: None,
            input: Payload::json("1"),
            env: BTreeMap::new(),
            limit: None,
            start_at: None,
            priority: 5,
            follow_image: false,
        }
    }

    #[test]
    fn a_fingerprint_names_what_differs() {
        let first = Start::new(Arc::new(request()), None, None, None);
        assert!(
            differing(
                &first.fingerprint,
                &Start::new(Arc::new(request()), None, None, None).fingerprint,
                false
            )
            .is_empty()
        );
        let other = StartRequest { input: Payload::json("2"), priority: 6, ..request() };
        assert_eq!(
            differing(&first.fingerprint, &Start::new(Arc::new(other), None, None, None).fingerprint, false),
            ["input", "priority"]
        );
    }

    #[test]
    fn who_follows_the_image_may_bring_another_version() {
        let first = Start::new(Arc::new(request()), None, None, None);
        let version = Name::parse("version", "2").expect("valid");
        let next = StartRequest { version: Some(version), ..request() };
        assert_eq!(
            differing(
                &first.fingerprint,
                &Start::new(Arc::new(next.clone()), None, None, None).fingerprint,
                false
            ),
            ["version"]
        );
        let following = StartRequest { follow_image: true, ..next };
        assert!(
            differing(
                &first.fingerprint,
                &Start::new(Arc::new(following), None, None, None).fingerprint,
                true
            )
            .is_empty()
        );
    }
}
