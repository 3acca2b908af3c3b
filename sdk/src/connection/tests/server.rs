//! A core for tests: the test kit's rules behind the real transport, with faults at will.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use dormouse_proto::{
    call::{Call, Callee, Closing, InstanceProtocol, Replies},
    endpoint::server_endpoint,
    identity::{Authority, Role},
    instance::{self, client_frame::Operation, server_frame::Outcome},
    launch::LaunchDocument,
};
use prost::bytes::Bytes;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    operation,
    testing::core::{Action, Answer, Core},
};

pub(crate) const TOKEN: [u8; 32] = [7; 32];

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The connection ends before core has seen it.
    LoseBefore,
    /// The connection ends after core has done it.
    LoseAfter,
    /// Core refuses it with this code.
    Refuse(&'static str),
}

type Faults = Box<dyn FnMut(&Operation) -> Fault + Send>;

struct Inner {
    core: Core,
    faults: Faults,
    registrations: u32,
    /// A newer attempt was claimed.
    over: bool,
    /// Pages of the stored checkpoints have so many entries.
    page: usize,
    /// Pages behind the first are pushed to who asks for it, when the test says so.
    streams: bool,
    /// What is still to be pushed.
    rest: Vec<Bytes>,
    /// The newest connection.
    replies: Option<Replies<InstanceProtocol>>,
}

/// A core that listens. Ends with its value.
pub(crate) struct Server {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) address: SocketAddr,
    authority_pem: String,
    _tasks: JoinSet<()>,
}

/// The authority and the instance, which outlive a server.
#[derive(Clone)]
pub(crate) struct Instance {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    pki: Arc<tempfile::TempDir>,
}

impl Instance {
    pub(crate) fn new(workflow: &str, input: impl serde::Serialize) -> Self {
        let input = operation::encode("the input", &input).unwrap();
        let inner = Inner {
            core: Core::new(workflow, input, &[], Vec::new()),
            faults: Box::new(|_| Fault::None),
            registrations: 0,
            over: false,
            page: usize::MAX,
            streams: false,
            rest: Vec::new(),
            replies: None,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            changed: Arc::new(Notify::new()),
            pki: Arc::new(tempfile::tempdir().unwrap()),
        }
    }

    pub(crate) fn faults(self, faults: impl FnMut(&Operation) -> Fault + Send + 'static) -> Self {
        self.lock().faults = Box::new(faults);
        self
    }

    pub(crate) fn pages_of(self, page: usize) -> Self {
        self.lock().page = page;
        self
    }

    pub(crate) fn streaming(self) -> Self {
        self.lock().streams = true;
        self
    }

    /// Pushes so many of the promised pages. Waits until they are promised.
    pub(crate) async fn stream(&self, pages: usize) {
        for _ in 0..pages {
            let (replies, page) = loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if let Some(next) = self.next_page() {
                    break next;
                }
                changed.await;
            };
            self.push(replies, Outcome::Page(page)).await;
        }
    }

    fn next_page(&self) -> Option<(Option<Replies<InstanceProtocol>>, instance::CheckpointPage)> {
        let mut inner = self.lock();
        if inner.rest.is_empty() {
            return None;
        }
        let page = inner.page.min(inner.rest.len());
        let later = inner.rest.split_off(page);
        let checkpoints = std::mem::replace(&mut inner.rest, later);
        let next_cursor = u64::from(!inner.rest.is_empty());
        Some((inner.replies.clone(), instance::CheckpointPage { checkpoints, next_cursor }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn core<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        let looked = look(&mut self.lock().core);
        self.changed.notify_waiters();
        looked
    }

    /// Waits until a process has registered so often.
    pub(crate) async fn registered(&self, times: u32) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.registrations() >= times {
                return;
            }
            changed.await;
        }
    }

    /// Ends the connection of the process that registered last.
    pub(crate) fn cut_off(&self) {
        if let Some(replies) = &self.lock().replies {
            replies.close(Closing::ShuttingDown, "a test");
        }
    }

    pub(crate) fn registrations(&self) -> u32 {
        self.lock().registrations
    }

    /// Does something to the instance from outside, and pushes the inbox.
    pub(crate) async fn act(&self, action: Action) {
        let (replies, inbox) = {
            let mut inner = self.lock();
            inner.core.act_now(action);
            (inner.replies.clone(), inner.core.inbox())
        };
        self.push(replies, Outcome::Inbox(inbox)).await;
    }

    /// A newer attempt was claimed.
    pub(crate) async fn fence(&self) {
        self.lock().over = true;
        let replies = self.lock().replies.clone();
        let error = refusal("FENCED", false);
        self.push(replies, error).await;
    }

    async fn push(&self, replies: Option<Replies<InstanceProtocol>>, outcome: Outcome) {
        if let Some(replies) = replies {
            // The process may have left: its next connection hears it.
            let _ = replies.push(outcome.into()).await;
        }
    }

    /// A core that serves this instance, on a port of its own.
    pub(crate) fn serve(&self) -> Server {
        let authority = Authority::open_or_create(self.pki.path()).unwrap();
        let identity = authority.identity(Role::Core).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = server_endpoint::<InstanceProtocol>(any, &identity, None).unwrap();
        let address = endpoint.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let (accepting, instance) = (endpoint.clone(), self.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = accepting.accept().await {
                let instance = instance.clone();
                connections.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        instance.connection(connection).await;
                    }
                });
            }
        });
        Server {
            inner: Arc::clone(&self.inner),
            changed: Arc::clone(&self.changed),
            endpoint,
            address,
            authority_pem: authority.certificate_pem().to_owned(),
            _tasks: tasks,
        }
    }

    async fn connection(&self, connection: quinn::Connection) {
        let Ok(mut callee) = Callee::<InstanceProtocol>::accept(connection).await else {
            return;
        };
        callee.trust();
        let mut answering = JoinSet::new();
        while let Ok(Some(call)) = callee.next().await {
            let operation = call.frame.operation.clone().expect("a request asks for something");
            let fault = (self.lock().faults)(&operation);
            if fault == Fault::LoseBefore {
                return self.lose(call);
            }
            if let Fault::Refuse(code) = fault {
                let retryable = dormouse_proto::code::Code::parse(code)
                    .is_some_and(|code| code.retry() == dormouse_proto::code::Retry::Later);
                answering.spawn(reply(call, refusal(code, retryable)));
                continue;
            }
            let outcome = self.handle(&operation, callee.replies());
            self.changed.notify_waiters();
            match (fault, outcome) {
                (Fault::LoseAfter, _) => return self.lose(call),
                (_, Some(outcome)) => drop(answering.spawn(reply(call, outcome))),
                (_, None) => {
                    let (_, answer) = call.into_parts();
                    answer.dismiss();
                }
            }
        }
    }

    /// With its last holders gone the connection ends.
    fn lose(&self, call: Call<InstanceProtocol>) {
        call.into_parts().1.dismiss();
        self.lock().replies = None;
    }

    fn handle(&self, operation: &Operation, replies: Replies<InstanceProtocol>) -> Option<Outcome> {
        let mut inner = self.lock();
        match operation {
            Operation::Register(register) => {
                if register.token != TOKEN {
                    return Some(refusal("UNAUTHENTICATED", false));
                }
                if register.attempt < inner.core.attempt || inner.over || inner.core.ended.is_some() {
                    return Some(refusal("FENCED", false));
                }
                inner.registrations += 1;
                inner.replies = Some(replies);
                let mut registered = inner.core.registered();
                let rest = registered.checkpoints.split_off(inner.page.min(registered.checkpoints.len()));
                registered.next_cursor = if rest.is_empty() { 0 } else { inner.page as u64 };
                registered.streamed = register.stream && inner.streams && !rest.is_empty();
                if registered.streamed {
                    inner.rest = rest;
                }
                Some(Outcome::Registered(registered))
            }
            Operation::ListCheckpoints(list) => {
                let all = inner.core.registered().checkpoints;
                let from = usize::try_from(list.cursor).unwrap();
                let to = from.saturating_add(inner.page).min(all.len());
                let next_cursor = if to == all.len() { 0 } else { to as u64 };
                let checkpoints = all[from..to].to_vec();
                Some(Outcome::Page(instance::CheckpointPage { checkpoints, next_cursor }))
            }
            other => match inner.core.handle(other) {
                Answer::Outcome(outcome) => Some(*outcome),
                Answer::Crash | Answer::Nothing => None,
            },
        }
    }
}

async fn reply(call: Call<InstanceProtocol>, outcome: Outcome) {
    // A client that has left needs no answer.
    let _ = call.reply(outcome.into()).await;
}

fn refusal(code: &str, retryable: bool) -> Outcome {
    let message = "a test said so".to_owned();
    Outcome::Error(instance::Error { code: code.to_owned(), message, retryable })
}

impl Server {
    /// The launch document of the instance's next attempt.
    pub(crate) fn launch(&self) -> LaunchDocument {
        let mut inner = self.inner.lock().unwrap();
        let launched = inner.core.launch();
        self.changed.notify_waiters();
        LaunchDocument {
            format: 1,
            instance_id: launched.instance_id,
            attempt: launched.attempt,
            workflow: launched.workflow,
            token: TOKEN.to_vec(),
            core_addresses: vec![self.address.to_string()],
            authority_pem: self.authority_pem.clone(),
            addresses_fd: -1,
            idle_before_suspend_micros: 50_000,
            ..LaunchDocument::default()
        }
    }

    /// Ends this core; its clients hear it.
    pub(crate) fn stop(self) {
        self.endpoint.close(3_u32.into(), b"stopping");
    }
}

/// A wire between a client and core that can be cut: afterwards nothing passes, and nobody is told.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let near = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        far.connect(server).await.unwrap();
        let address = near.local_addr().unwrap();
        let client = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        let (from, to, seen) = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&client));
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok((n, peer)) = from.recv_from(&mut datagram).await {
                *seen.lock().unwrap() = Some(peer);
                let _ = to.send(&datagram[..n]).await;
            }
        });
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok(n) = far.recv(&mut datagram).await {
                let peer = *client.lock().unwrap();
                if let Some(peer) = peer {
                    let _ = near.send_to(&datagram[..n], peer).await;
                }
            }
        });
        Self { address, tasks }
    }

    pub(crate) fn cut(&mut self) {
        self.tasks.abort_all();
    }
}
