//! Connections, and the one table from operation to function.
//!
//! Each connection is a task, each of its requests another; both are bounded, by the number of
//! connections here and by the transport's budget of requests and bytes. A client that goes away
//! takes its long polls and its unfinished uploads with it; what the store was asked to write is
//! written all the same.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use dormouse_core::{
    domain::id::{ReplicaId, Tenant},
    logging,
    store::{NodeReport, Store},
};
use dormouse_proto::{
    call::{
        Allowance, Call, CallError, Callee, Closing, Groups, InFlight, ManagementProtocol, Member, Refusal,
        Turn,
    },
    code::{Code, Coded},
    door::{Door, Place, Places},
    endpoint::{self, ServerError, TlsError, Transport},
    identity::{Authority, IdentityError, Role, renewal::Renewal},
    limits::CONNECT_TIMEOUT,
    management::{ClientFrame, client_frame::Operation, server_frame::Outcome},
};
use jiff::tz::TimeZone;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, warn};

use super::{
    credential::{Credential, authenticate},
    rights::Right,
    uploads::Uploads,
    watchers::Watchers,
};
use crate::{
    attempts::Attempts,
    condition::WithoutSpares,
    eager::Desk,
    images::Images,
    limits::{self, LEAVE_WITHIN},
};

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to bind. With port 0 the port of the last run is taken again, if it is free.
    pub listen: SocketAddr,
    /// Holds `host:port` of what is bound.
    pub address_file: PathBuf,
    /// Makes the certificates, its own and the administrator's, and renews them.
    pub authority: Arc<Authority>,
    /// Clients at a time; more are refused.
    pub places: Places,
    /// Clients of one tenant at a time.
    pub connections_of_tenant: usize,
    /// What the clients of one tenant may have in flight together; more waits.
    pub of_tenant: InFlight,
    /// What all clients may have in flight together; more waits.
    pub in_flight: InFlight,
    /// How often a long poll looks although nothing told it to: a lost notice costs this much.
    pub poll: Duration,
    /// The longest that a long poll is held; clients ask again.
    pub longest_poll: Duration,
    /// The zone of the times in sentences for people.
    pub zone: TimeZone,
}

impl Options {
    /// The defaults of the design, for a data directory.
    pub fn new(listen: SocketAddr, address_file: PathBuf, authority: Arc<Authority>) -> Self {
        Self {
            listen,
            address_file,
            authority,
            places: limits::PLACES,
            connections_of_tenant: limits::CONNECTIONS_OF_TENANT,
            of_tenant: limits::IN_FLIGHT_OF_TENANT,
            in_flight: limits::IN_FLIGHT,
            poll: Duration::from_secs(5),
            longest_poll: limits::LONGEST_POLL,
            zone: TimeZone::system(),
        }
    }
}

/// What the node says about itself when somebody asks.
#[derive(Clone, Debug)]
pub struct ThisNode {
    /// Its id.
    pub id: String,
    /// How many processes it may run.
    pub slots: u32,
    /// As it would tell it with a renewal now.
    pub report: NodeReport,
    /// Where core listens.
    pub core_address: String,
    /// Core replicas that this node has watched without a sign of life.
    pub silent_cores: BTreeSet<ReplicaId>,
    /// One sentence each; empty: all is well.
    pub problems: Vec<String>,
    /// Images whose spares do not stand by here: a problem of their tenants.
    pub without_spares: Arc<[WithoutSpares]>,
}

impl ThisNode {
    /// Whether it claims what is due, and has a free slot for it.
    pub(super) fn has_room(&self) -> bool {
        let NodeReport { running, draining, not_claiming, .. } = &self.report;
        not_claiming.is_empty() && !draining && *running < self.slots
    }
}

/// What the server works with.
#[derive(Clone)]
pub struct Parts {
    /// All state.
    pub store: Store,
    /// The images of this node.
    pub images: Images,
    /// The output of this node's processes.
    pub attempts: Attempts,
    /// Lets starts in that this node claims at once.
    pub desk: Desk,
    /// Asks the node about itself; must not block.
    pub this_node: Arc<dyn Fn() -> ThisNode + Send + Sync>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the certificates are not usable.
    #[error(transparent)]
    Endpoint(#[from] ServerError),
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Endpoint(_) => Code::FailedPrecondition,
            Self::Identity(error) => error.code(),
        }
    }
}

/// A bound management server that answers nobody yet: clients that come wait for it.
#[derive(Debug)]
pub struct Server {
    options: Options,
    renewal: Renewal,
    endpoint: quinn::Endpoint,
    address: SocketAddr,
}

/// What every request sees.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) parts: Parts,
    pub(super) watchers: Watchers,
    /// On SQLite taken while a digest gets or loses its last name.
    pub(super) registry: tokio::sync::Mutex<()>,
    /// Uploads of all connections together.
    pub(super) uploads: Arc<Semaphore>,
    /// The same, of each tenant.
    pub(super) uploads_of: Groups<Tenant>,
    /// What all clients may have in flight together.
    all: Allowance,
    /// The same, and their connections, of each tenant.
    tenants: Groups<Tenant>,
}

/// What the requests of one connection see: who asks, and what they have open.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) tenant: Tenant,
    pub(super) credential: Arc<Credential>,
    pub(super) uploads: Arc<Uploads>,
}

/// What a long poll sees besides: its turn, which it gives to others while it waits, and when it
/// is to be cut.
pub(super) struct Patience<'a> {
    turn: &'a Turn,
    shutdown: &'a CancellationToken,
}

impl Patience<'_> {
    /// Waits for `news`, not beyond the service's end. Either way the caller looks again.
    pub(super) async fn wait(&self, news: impl Future<Output = ()>) {
        let wait = async {
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = news => {}
            }
        };
        self.turn.aside(wait).await;
    }

    /// Whether nobody is to be kept waiting any more.
    pub(super) fn is_over(&self) -> bool {
        self.shutdown.is_cancelled()
    }
}

impl Server {
    /// Makes or reads the certificates and binds. Must be called inside a tokio runtime; blocks
    /// for some milliseconds.
    pub fn bind(options: Options) -> Result<Self, Error> {
        let identity = options.authority.identity(Role::Environment)?;
        if options.authority.has_key() {
            // What clients of this machine prove themselves by; elsewhere one may have been issued, or none.
            options.authority.identity(Role::Administrator)?;
        }
        let endpoint = endpoint::server_endpoint_remembered::<ManagementProtocol>(
            options.listen,
            &options.address_file,
            &identity,
            Some(options.authority.certificate_pem()),
        )?;
        let address =
            endpoint.local_addr().map_err(|source| ServerError::Bind { address: options.listen, source })?;
        let renewal = Renewal::new(Arc::clone(&options.authority), Role::Environment, &identity)
            .beside(Role::Administrator);
        Ok(Self { options, renewal, endpoint, address })
    }

    /// What is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; then long polls are cut, other requests get their answers.
    pub async fn run(self, parts: Parts, shutdown: CancellationToken) {
        let Self { options, renewal, endpoint, address } = self;
        let renewing = renewal.run(follow(endpoint.clone(), Arc::clone(&options.authority)));
        info!(%address, "the environment listens for controllers");
        let shared = Arc::new(Shared {
            watchers: Watchers::default(),
            registry: tokio::sync::Mutex::default(),
            uploads: Arc::new(Semaphore::new(limits::UPLOADS)),
            uploads_of: Groups::new(limits::UPLOADS_OF_TENANT, options.of_tenant),
            all: Allowance::new(options.in_flight),
            tenants: Groups::new(options.connections_of_tenant, options.of_tenant),
            options,
            parts,
        });
        tokio::select! {
            () = serve_all(&shared, &endpoint, &shutdown) => {}
            never = shared.watchers.run(&shared.parts.store) => match never {},
            never = renewing => match never {},
        }
        endpoint.close(0_u32.into(), b"the service stops");
        // An error: somebody does not acknowledge the farewell; it will notice by its time-out.
        drop(timeout(LEAVE_WITHIN, endpoint.wait_idle()).await);
        info!("the management server has shut down");
    }
}

/// Takes a new certificate. Connections that exist keep theirs.
fn follow(
    endpoint: quinn::Endpoint,
    authority: Arc<Authority>,
) -> impl FnMut(&endpoint::Identity) -> Result<(), TlsError> {
    move |identity| {
        let clients = Some(authority.certificate_pem());
        let config = endpoint::server_config::<ManagementProtocol>(identity, clients, &Transport::default())?;
        endpoint.set_server_config(Some(config));
        Ok(())
    }
}

async fn serve_all(shared: &Arc<Shared>, endpoint: &quinn::Endpoint, shutdown: &CancellationToken) {
    let mut connections = JoinSet::new();
    let door = Door::new(shared.options.places.clone());
    loop {
        let incoming = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if let Some((incoming, place)) = door.admit(incoming) {
            connections.spawn(connection(Arc::clone(shared), incoming, place, shutdown.clone()));
        }
    }
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "a management connection broke; this is a defect");
    }
}

/// One client, from its handshake to its end.
async fn connection(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    mut place: Place,
    shutdown: CancellationToken,
) {
    let remote = incoming.remote_address();
    let connection = match timeout(CONNECT_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return info!(%remote, %error, "a management client was not let in"),
        Err(_) => return info!(%remote, "a management client took too long for its handshake"),
    };
    let mut callee = match Callee::<ManagementProtocol>::accept(connection).await {
        Ok(callee) => callee,
        // Who only looks whether somebody listens, such as a health check, is no news.
        Err(error @ CallError::Lost { .. }) => {
            return debug!(%remote, %error, "a client left before its hello");
        }
        Err(error) => return info!(%remote, %error, "a management client was refused"),
    };
    let (store, tokens) = (&shared.parts.store, &shared.watchers.tokens);
    let admitted =
        authenticate(callee.peer(), token(callee.hello()), store, tokens).await.and_then(|credential| {
            Ok((admit(&shared, &credential.tenant, &mut callee, &mut place)?, credential))
        });
    let (_member, credential) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            info!(%remote, reason = refusal.message, "a management client was refused");
            return callee.refuse(refusal).await;
        }
    };
    let tenant = credential.tenant.clone();
    debug!(%remote, %tenant, who = %credential, role = %credential.role, "a management client connected");
    let uploads = Arc::new(Uploads::new(&shared, tenant.clone()));
    let context = Context { shared, tenant, credential: Arc::new(credential), uploads };
    if let Err(error) = serve(&context, callee, &shutdown).await {
        debug!(%remote, %error, "a management client is gone");
    }
}

/// The client has proved whose it is: it may send more, as far as others leave it room.
fn admit(
    shared: &Shared,
    tenant: &Tenant,
    callee: &mut Callee<ManagementProtocol>,
    place: &mut Place,
) -> Result<Member, Refusal> {
    let member = shared.tenants.join(tenant).ok_or_else(|| {
        let max = shared.tenants.members();
        let message =
            format!("tenant {tenant} has {max} connections, which is the limit; close some of them");
        Refusal::new(Code::ResourceExhausted, message)
    })?;
    place.known();
    callee.admit(&member, &shared.all);
    Ok(member)
}

/// The token in a hello; empty: none.
fn token(hello: &ClientFrame) -> &str {
    match &hello.operation {
        Some(Operation::Hello(hello)) => &hello.token,
        _ => "",
    }
}

async fn serve(
    context: &Context,
    mut callee: Callee<ManagementProtocol>,
    shutdown: &CancellationToken,
) -> Result<(), CallError> {
    let replies = callee.replies();
    let mut requests = JoinSet::new();
    let mut look = interval(limits::UPLOAD_PATIENCE);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Cuts the long polls of this connection.
    let over = shutdown.child_token();
    let mut lost = pin!(context.lost());
    let ending = loop {
        let call = tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok((Closing::ShuttingDown, "the service stops".to_owned())),
            refusal = &mut lost => {
                info!(who = %context.credential, tenant = %context.tenant, reason = refusal.message,
                      "a management client is put out");
                over.cancel();
                break Ok((Closing::Refused, format!("{}: {}", refusal.code, refusal.message)));
            }
            Some(ended) = requests.join_next(), if !requests.is_empty() => {
                report(ended);
                continue;
            }
            _ = look.tick() => {
                context.uploads.give_up_idle();
                continue;
            }
            call = callee.next() => call,
        };
        match call {
            Ok(Some(call)) => {
                let answering = answer(context.clone(), call, over.clone());
                requests.spawn(answering.instrument(logging::request(&context.tenant)));
            }
            Ok(None) => break Ok((Closing::Done, String::new())),
            Err(error) => break Err(error),
        }
    };
    let (closing, reason) = match ending {
        Ok(ending) => ending,
        // Nobody is there to hear the answers.
        Err(error) => {
            requests.shutdown().await;
            return Err(error);
        }
    };
    while let Some(ended) = requests.join_next().await {
        report(ended);
    }
    replies.finish_and_close(closing, &reason).await;
    Ok(())
}

async fn answer(context: Context, call: Call<ManagementProtocol>, shutdown: CancellationToken) {
    let (frame, answer) = call.into_parts();
    // Held until the answer is handed over.
    let turn = answer.turn().await;
    let patience = Patience { turn: &turn, shutdown: &shutdown };
    let outcome = match frame.operation {
        Some(operation) => context.admit(operation, &patience).await,
        None => Err(unknown()),
    };
    let outcome = outcome.unwrap_or_else(|refusal| {
        let Refusal { code, message, retryable } = refusal;
        Outcome::Error(dormouse_proto::management::Error {
            code: code.as_str().to_owned(),
            message,
            retryable,
        })
    });
    if let Err(error) = answer.reply(outcome.into()).await {
        debug!(%error, "an answer did not reach its client");
    }
}

fn unknown() -> Refusal {
    Refusal::new(
        Code::Unimplemented,
        "this release does not know the operation; use a client of the services' release",
    )
}

impl Context {
    /// Performs what the client's role allows, while its credential counts.
    async fn admit(&self, operation: Operation, patience: &Patience<'_>) -> Result<Outcome, Refusal> {
        self.check().await?;
        let right = Right::of(&operation);
        right.check(&self.credential)?;
        if right.changes(&operation) {
            let (who, role) = (&self.credential, self.credential.role);
            // What was given, not what is there: escaped, for it may hold anything.
            info!(%who, %role, operation = right.name, about = ?right.about, "asked");
        }
        let outcome = self.perform(operation, patience).await?;
        // Long polls that were cut because the credential counts no more end with nothing.
        if patience.is_over() {
            self.check().await?;
        }
        Ok(outcome)
    }

    /// Whether the credential still counts.
    async fn check(&self) -> Result<(), Refusal> {
        self.credential.check(self.store(), &self.shared.watchers.tokens).await
    }

    /// Waits until the credential counts no more.
    async fn lost(&self) -> Refusal {
        let Shared { watchers, options, .. } = &*self.shared;
        self.credential.lost(self.store(), &watchers.tokens, options.poll).await
    }

    async fn perform(&self, operation: Operation, patience: &Patience<'_>) -> Result<Outcome, Refusal> {
        match operation {
            Operation::Hello(_) => {
                Err(Refusal::new(Code::InvalidArgument, "a second hello; send one hello per connection"))
            }
            Operation::Health(_) => self.health().await.map(Outcome::Health),
            Operation::Metrics(request) => super::nodes::metrics(&request).map(Outcome::Metrics),
            Operation::BeginUpload(request) => self.begin_upload(request).await.map(Outcome::UploadBegun),
            Operation::UploadChunk(request) => self.upload_chunk(request).await.map(Outcome::ChunkStored),
            Operation::FinishUpload(request) => self.finish_upload(request).await.map(Outcome::Image),
            Operation::ListImages(request) => self.list_images(request).await.map(Outcome::Images),
            Operation::GetImage(request) => self.get_image(request).await.map(Outcome::Image),
            Operation::SetImage(request) => self.set_image(request).await.map(Outcome::Image),
            Operation::DeleteImage(request) => self.delete_image(request).await.map(Outcome::Deleted),
            Operation::Start(request) => self.start(request).await.map(Outcome::Started),
            Operation::Get(request) => self.get(request).await.map(Outcome::Instance),
            Operation::List(request) => self.list(request).await.map(Outcome::Instances),
            Operation::Count(request) => self.count(request).await.map(Outcome::Count),
            Operation::Wait(request) => self.wait(request, patience).await.map(Outcome::Instance),
            Operation::Signal(request) => self.signal(request).await.map(Outcome::Signal),
            Operation::Cancel(request) => self.cancel(request).await.map(Outcome::Instance),
            Operation::Pause(request) => self.pause(request).await.map(Outcome::Instance),
            Operation::Resume(request) => self.resume(request).await.map(Outcome::Instance),
            Operation::Stop(request) => self.stop(request).await.map(Outcome::Instance),
            Operation::Delete(request) => self.delete(request).await.map(Outcome::Deleted),
            Operation::Checkpoints(request) => self.checkpoints(request).await.map(Outcome::Checkpoints),
            Operation::Events(request) => self.events(request, patience).await.map(Outcome::Events),
            Operation::Attempts(request) => self.attempts(request).await.map(Outcome::Attempts),
            Operation::Logs(request) => self.logs(request, patience).await.map(Outcome::Log),
            Operation::Nodes(_) => self.nodes().await.map(Outcome::Nodes),
            Operation::DrainNode(request) => self.drain_node(request).await.map(Outcome::Node),
            Operation::UndrainNode(request) => self.undrain_node(request).await.map(Outcome::Node),
            Operation::Cores(_) => self.cores().await.map(Outcome::Cores),
            Operation::CreateTenant(request) => self.create_tenant(request).await.map(Outcome::Tenant),
            Operation::Tenants(_) => self.list_tenants().await.map(Outcome::Tenants),
            Operation::SetQuotas(request) => self.set_quotas(request).await.map(Outcome::Tenant),
            Operation::CreateToken(request) => self.create_token(request).await.map(Outcome::TokenCreated),
            Operation::Tokens(request) => self.list_tokens(request).await.map(Outcome::Tokens),
            Operation::RevokeToken(request) => self.revoke_token(request).await.map(Outcome::Token),
            Operation::Prune(request) => self.prune(request).await.map(Outcome::Pruned),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.shared.parts.store
    }
}

/// An error as the client hears it. What is our own fault is also logged, with its causes.
pub(super) fn refuse(error: &(impl Coded + ?Sized)) -> Refusal {
    let code = error.code();
    if matches!(code, Code::Internal | Code::Unavailable) {
        let causes: Vec<String> =
            std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect();
        warn!(%error, %code, causes = causes.join(": "), "a management request failed");
    }
    Refusal::new(code, error.to_string())
}

/// From the kernel's generator.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::new(Code::Unavailable, format!("the system gives no random numbers: {error}"))
    })?;
    Ok(bytes)
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        warn!(%error, "a blocking task broke; this is a defect");
        Refusal::new(
            Code::Internal,
            "the request could not be carried out; this is a defect, see the service's log",
        )
    })
}

/// Reading or writing a file of ours failed.
pub(super) fn disk(what: &str, error: &std::io::Error) -> Refusal {
    warn!(%error, what, "the data directory");
    let code = if error.kind() == std::io::ErrorKind::StorageFull {
        Code::ResourceExhausted
    } else {
        Code::Internal
    };
    Refusal::new(code, format!("{what}: {error}; look at the data directory and its disk"))
}
