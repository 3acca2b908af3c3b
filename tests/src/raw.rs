//! A client of the instance protocol that obeys nobody: it keeps old sessions open, repeats what was
//! answered and sends what no SDK would.

use dormouse_proto::{
    call::{Caller, InstanceProtocol, Protocol, Pushes},
    endpoint::{self, ConnectError},
    instance::{
        self as wire, Checkpoint, Completed, CustomEvent, Failed, Failure, GetCheckpoint, GetInstanceStatus,
        Heartbeat, Hello, InstanceEvent, ListCheckpoints, OperationName, Payload, PollSignals, Progress,
        RegisterInstance, Registered, SignalAck, Standby, Suspend, Wait, checkpoint::Value,
        client_frame::Operation, instance_event::Event, server_frame::Outcome, stored_checkpoint,
    },
    launch::LaunchDocument,
};
/// A connection to core, with nothing said on it but Hello.
pub struct RawClient {
    caller: Caller<InstanceProtocol>,
    _pushes: Pushes<InstanceProtocol>,
    endpoint: quinn::Endpoint,
}

impl RawClient {
    /// Connects to the core that the document names.
    pub async fn connect(document: &LaunchDocument) -> Self {
        Self::try_connect(document).await.expect("core answers")
    }

    async fn try_connect(document: &LaunchDocument) -> Result<Self, ConnectError> {
        let endpoint = endpoint::client_endpoint().expect("a socket");
        let address = document.core_addresses.first().expect("the document names a core");
        let config = endpoint::client_config::<InstanceProtocol>(&document.authority_pem, None).expect("TLS");
        let connection = endpoint::connect(&endpoint, config, address, endpoint::CORE_NAME).await?;
        let hello = Hello { protocol_version: InstanceProtocol::VERSION, client: "raw".to_owned() };
        let hello = Operation::Hello(hello).into();
        let (caller, pushes) = Caller::open(connection, hello).await.expect("a stream");
        Ok(Self { caller, _pushes: pushes, endpoint })
    }

    /// Registers if core answers now.
    pub async fn try_register(document: &LaunchDocument) -> Option<Self> {
        let client = Self::try_connect(document).await.ok()?;
        matches!(client.ask(registration(document)).await, Ok(Outcome::Registered(_))).then_some(client)
    }

    /// Connects and registers as the document says.
    pub async fn register(document: &LaunchDocument) -> (Self, Registered) {
        let client = Self::connect(document).await;
        match client.ask(registration(document)).await {
            Ok(Outcome::Registered(registered)) => (client, registered),
            other => panic!("registration was answered {other:?}"),
        }
    }

    /// Sends one operation; the error is the refusal, or why there is no answer.
    pub async fn ask(&self, operation: Operation) -> Result<Outcome, wire::Error> {
        let answer = self.caller.call(operation.into()).await;
        match answer.map(|frame| frame.outcome) {
            Ok(Some(Outcome::Error(error))) => Err(error),
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => panic!("an answer without outcome"),
            // A fenced session's connection may simply be closed.
            Err(lost) => {
                Err(wire::Error { code: LOST.to_owned(), message: lost.to_string(), retryable: true })
            }
        }
    }
}

impl std::fmt::Debug for RawClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawClient({:?})", self.endpoint.local_addr())
    }
}

impl RawClient {
    /// The port that core sends its answers to.
    pub fn port(&self) -> u16 {
        self.endpoint.local_addr().expect("it is bound").port()
    }

    /// How many checkpoints a registration handed over, with its further pages.
    pub async fn all_checkpoints(&self, registered: Registered) -> usize {
        let (mut count, mut cursor) = (registered.checkpoints.len(), registered.next_cursor);
        while cursor != 0 {
            match self.ask(Operation::ListCheckpoints(ListCheckpoints { cursor })).await {
                Ok(Outcome::Page(page)) => {
                    count += page.checkpoints.len();
                    cursor = page.next_cursor;
                }
                other => panic!("a page was answered {other:?}"),
            }
        }
        count
    }
}

/// The code of a request whose connection was closed instead of an answer.
pub const LOST: &str = "LOST";

/// The registration that the document allows.
pub fn registration(document: &LaunchDocument) -> Operation {
    Operation::Register(RegisterInstance {
        token: document.token.clone(),
        instance_id: document.instance_id.clone(),
        attempt: document.attempt,
        stream: false,
    })
}

/// A sign of life, which is not answered to who is registered.
pub fn heartbeat() -> Operation {
    event(Event::Heartbeat(Heartbeat {}))
}

/// One of every operation but Hello, the registration of `document` among them. It is exhaustive:
/// an operation that is added must be added here.
pub fn every_operation(document: &LaunchDocument) -> Vec<Operation> {
    let name = || Some(OperationName { name: "x".to_owned(), key: String::new(), slot: 0 });
    let all = vec![
        registration(document),
        save("x", b"forged"),
        take("x", "go"),
        feel_cancel("x"),
        due_in("x", 1),
        Operation::GetCheckpoint(GetCheckpoint { operation: name() }),
        Operation::ListCheckpoints(ListCheckpoints { cursor: 0 }),
        suspend_for("go"),
        progress(1),
        custom("forged"),
        complete(b"forged"),
        fail("FORGED"),
        Operation::GetStatus(GetInstanceStatus {}),
        poll(),
        Operation::SignalAck(SignalAck { number: 1 }),
        Operation::Standby(forged_spare()),
    ];
    for operation in &all {
        match operation {
            Operation::Hello(_) => panic!("a hello is no request"),
            Operation::Register(_)
            | Operation::Checkpoint(_)
            | Operation::GetCheckpoint(_)
            | Operation::ListCheckpoints(_)
            | Operation::Suspend(_)
            | Operation::Event(_)
            | Operation::GetStatus(_)
            | Operation::PollSignals(_)
            | Operation::SignalAck(_)
            | Operation::Standby(_) => {}
        }
    }
    all
}

/// What a spare would show, with a proof that no node has made.
fn forged_spare() -> Standby {
    Standby { node: "node".to_owned(), epoch: 1, tenant: "default".to_owned(), number: 1, proof: vec![7; 32] }
}

/// Saves raw bytes under a name.
pub fn save(name: &str, data: &[u8]) -> Operation {
    checkpoint(name, "checkpoint", Value::Payload(payload(data)))
}

/// Takes the oldest signal of a name as the result of an operation.
pub fn take(operation: &str, signal: &str) -> Operation {
    checkpoint(operation, "signal", Value::TakeSignal(signal.to_owned()))
}

/// Feels a cancel at an operation.
pub fn feel_cancel(operation: &str) -> Operation {
    checkpoint(operation, "cancelled", Value::FeelCancel(true))
}

fn checkpoint(name: &str, kind: &str, value: Value) -> Operation {
    Operation::Checkpoint(Checkpoint {
        operation: Some(OperationName { name: name.to_owned(), key: String::new(), slot: 0 }),
        kind: kind.to_owned(),
        value: Some(value),
        note: String::new(),
    })
}

/// Suspends until a signal of this name.
pub fn suspend_for(signal: &str) -> Operation {
    let wait = Wait { name: signal.to_owned(), signal: Some(signal.to_owned()), ..Wait::default() };
    Operation::Suspend(Suspend { waits: vec![wait] })
}

/// Saves the moment that lies so many microseconds ahead, as a sleep's due time.
pub fn due_in(operation: &str, micros: i64) -> Operation {
    checkpoint(operation, "due", Value::DueInMicros(micros))
}

/// Asks for the inbox.
pub fn poll() -> Operation {
    Operation::PollSignals(PollSignals {})
}

/// Reports progress.
pub fn progress(done: u64) -> Operation {
    event(Event::Progress(Progress { done, total: 0, message: "raw".to_owned() }))
}

/// Writes an event of its own.
pub fn custom(name: &str) -> Operation {
    event(Event::Custom(CustomEvent { name: name.to_owned(), payload: Some(payload(b"x")) }))
}

/// Ends COMPLETED.
pub fn complete(output: &[u8]) -> Operation {
    event(Event::Completed(Completed { output: Some(payload(output)) }))
}

/// Ends FAILED.
pub fn fail(code: &str) -> Operation {
    let failure =
        Failure { code: code.to_owned(), message: "raw".to_owned(), retryable: false, details: Vec::new() };
    event(Event::Failed(Failed { failure: Some(failure) }))
}

fn event(event: Event) -> Operation {
    Operation::Event(InstanceEvent { event: Some(event) })
}

fn payload(data: &[u8]) -> Payload {
    Payload { data: data.to_vec().into(), encoding: "raw".to_owned(), type_name: String::new() }
}

/// What an answer to a checkpoint says is stored: nothing; what was sent, just now; or these bytes,
/// from before or out of a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// There was no signal to take.
    Nothing,
    /// The request's own bytes: they do not travel back.
    Sent,
    /// These.
    Bytes(Vec<u8>),
}

/// Reads that answer.
pub fn stored(answer: Outcome) -> Stored {
    let Outcome::Checkpoint(answer) = answer else { panic!("a checkpoint was answered {answer:?}") };
    match answer.stored.map(|stored| stored.value) {
        None => Stored::Nothing,
        Some(None) if !answer.existed => Stored::Sent,
        Some(Some(stored_checkpoint::Value::Payload(payload))) => Stored::Bytes(payload.data.into()),
        Some(other) => panic!("stored is {other:?}"),
    }
}

/// How many operations a protocol's definition has.
#[cfg(test)]
pub(crate) fn operations(proto: &str) -> usize {
    let (_, rest) = proto.split_once("oneof operation {").expect("the frame of a client");
    let (block, _) = rest.split_once('}').expect("it ends");
    block.lines().filter(|line| line.contains(" = ") && !line.trim_start().starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, mem::discriminant};

    use super::*;

    #[test]
    fn every_operation_is_among_them() {
        let all = every_operation(&LaunchDocument::default());
        let kinds: HashSet<_> = all.iter().map(discriminant).collect();
        let proto = include_str!("../../proto/proto/instance.proto");
        assert_eq!(kinds.len() + 1, operations(proto), "all but hello");
    }
}
