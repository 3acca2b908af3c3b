//! A client of the management protocol that shows whatever credential a test gives it, and asks for
//! everything that there is.

use std::{fs, path::Path};

use dormouse_management_sdk::Role;
use dormouse_proto::{
    call::{Caller, ManagementProtocol, Protocol},
    endpoint::{self, Identity},
    management::{
        self as wire, ClientFrame, Error, Hello, Quotas, client_frame::Operation, server_frame::Outcome,
    },
};

use crate::raw::LOST;

/// What it shows.
#[derive(Clone, Debug)]
pub enum Key {
    /// Neither certificate nor token.
    None,
    /// The certificate of this name in the folder `pki` of a data directory.
    Certificate(String),
    /// A token's secret, and no certificate.
    Token(String),
}

/// Its connection.
pub struct Keyholder {
    caller: Caller<ManagementProtocol>,
    _endpoint: quinn::Endpoint,
}

impl Keyholder {
    /// Connects to the services of a data directory and says hello; the error is why it was not let in, as
    /// far as that is told before it asks for something.
    pub async fn connect(data: &Path, key: &Key) -> Result<Self, Error> {
        Self::connect_as(data, data, key).await
    }

    /// The same, with certificates of another directory.
    pub async fn connect_as(data: &Path, own: &Path, key: &Key) -> Result<Self, Error> {
        let read = |path: &str| fs::read_to_string(data.join(path)).expect("the services wrote it");
        let identity = match key {
            Key::Certificate(name) => {
                let pki = own.join("pki");
                let (certificate, key) = (pki.join(format!("{name}.pem")), pki.join(format!("{name}.key")));
                Some(Identity::load(&certificate, &key).expect("there is such a certificate"))
            }
            Key::None | Key::Token(_) => None,
        };
        let token = match key {
            Key::Token(token) => token.clone(),
            Key::None | Key::Certificate(_) => String::new(),
        };
        let config =
            endpoint::client_config::<ManagementProtocol>(&read("pki/authority.pem"), identity.as_ref());
        let address = read("environment.address");
        let endpoint = endpoint::client_endpoint().expect("a socket");
        let connecting =
            endpoint::connect(&endpoint, config.expect("TLS"), address.trim(), endpoint::ENVIRONMENT_NAME);
        let connection = connecting.await.map_err(lost)?;
        let hello =
            Hello { protocol_version: ManagementProtocol::VERSION, client: "keyholder".to_owned(), token };
        let hello = ClientFrame { id: 0, operation: Some(Operation::Hello(hello)) };
        let (caller, _) = Caller::open(connection, hello).await.map_err(lost)?;
        Ok(Self { caller, _endpoint: endpoint })
    }

    /// Sends one operation; the error is the refusal, or why there is no answer.
    pub async fn ask(&self, operation: Operation) -> Result<Outcome, Error> {
        let answer = self.caller.call(ClientFrame { id: 0, operation: Some(operation) }).await;
        match answer.map_err(lost)?.outcome {
            Some(Outcome::Error(error)) => Err(error),
            Some(outcome) => Ok(outcome),
            None => panic!("an answer without outcome"),
        }
    }
}

/// A connection that was closed says why, if it was refused.
fn lost(error: impl std::error::Error) -> Error {
    let message = crate::controller::chain(&error);
    let code = if message.contains("UNAUTHENTICATED") || is_tls(&message) { "UNAUTHENTICATED" } else { LOST };
    Error { code: code.to_owned(), message, retryable: false }
}

/// TLS itself has no codes of ours: it says that it does not know the certificate.
fn is_tls(message: &str) -> bool {
    message.contains("certificate") || message.contains("alert")
}

/// The least role that may ask for something; none: only the administrator of the cluster.
pub type Least = Option<Role>;

/// One of every operation but Hello, about instance `id` and image `image`, with the least role that may ask
/// for it. It is exhaustive: an operation that is added must be added here, and somebody must decide.
pub fn every_operation(id: &str, image: &str) -> Vec<(Operation, Least)> {
    let (id, image) = (id.to_owned(), image.to_owned());
    let upload = wire::BeginUpload { name: image.clone(), version: "9".into(), size: 1, digest: vec![7; 32] };
    let start = wire::StartInstance { id: id.clone(), image: image.clone(), ..Default::default() };
    let quotas = Some(Quotas { running: 1, stored: 1, starts_per_second: 1 });
    let all = vec![
        Operation::Health(wire::Health {}),
        Operation::Metrics(wire::GetMetrics::default()),
        Operation::ListImages(wire::ListImages { name: String::new() }),
        Operation::GetImage(wire::GetImage { name: image.clone(), version: String::new() }),
        Operation::Get(wire::GetInstance { id: id.clone() }),
        Operation::List(wire::ListInstances::default()),
        Operation::Count(wire::CountInstances::default()),
        Operation::Wait(wire::WaitInstance { id: id.clone(), for_micros: 1, seen_version: 0 }),
        Operation::Checkpoints(wire::ListCheckpoints { id: id.clone(), ..Default::default() }),
        Operation::Events(wire::ListEvents { id: id.clone(), ..Default::default() }),
        Operation::Attempts(wire::ListAttempts { id: id.clone() }),
        Operation::Logs(wire::ReadLogs { id: id.clone(), stream: "stdout".into(), ..Default::default() }),
        Operation::Nodes(wire::ListNodes {}),
        Operation::Cores(wire::ListCores {}),
        Operation::BeginUpload(upload),
        Operation::UploadChunk(wire::UploadChunk { upload: 1, offset: 0, data: vec![7] }),
        Operation::FinishUpload(wire::FinishUpload { upload: 1 }),
        Operation::Start(start),
        Operation::Signal(wire::SignalInstance { id: id.clone(), name: "go".into(), ..Default::default() }),
        Operation::Pause(wire::PauseInstance { id: id.clone() }),
        Operation::Resume(wire::ResumeInstance { id: id.clone() }),
        Operation::Cancel(wire::CancelInstance { id: id.clone() }),
        Operation::Stop(wire::StopInstance { id: id.clone() }),
        Operation::Delete(wire::DeleteInstance { id }),
        Operation::SetImage(wire::SetImage {
            name: image.clone(),
            version: String::new(),
            options: Some(wire::ImageOptions { spares: Some(1), reuse: None }),
        }),
        Operation::DeleteImage(wire::DeleteImage { name: image, version: String::new() }),
        Operation::CreateToken(wire::CreateToken { role: "reader".into(), ..Default::default() }),
        Operation::Tokens(wire::ListTokens { tenant: String::new() }),
        Operation::RevokeToken(wire::RevokeToken { tenant: String::new(), name: "nobody".into() }),
        Operation::Prune(wire::PruneInstances { dry_run: true, older_than_micros: 0 }),
        Operation::DrainNode(wire::DrainNode { id: "nobody".into(), suspend: false }),
        Operation::UndrainNode(wire::UndrainNode { id: "nobody".into() }),
        Operation::CreateTenant(wire::CreateTenant { name: "forged".into(), quotas }),
        Operation::Tenants(wire::ListTenants {}),
        Operation::SetQuotas(wire::SetQuotas { name: "nobody".into(), quotas }),
    ];
    all.into_iter().map(|operation| (operation.clone(), least(&operation))).collect()
}

fn least(operation: &Operation) -> Least {
    match operation {
        Operation::Hello(_) => panic!("a hello is no request"),
        Operation::Health(_)
        | Operation::Metrics(_)
        | Operation::ListImages(_)
        | Operation::GetImage(_)
        | Operation::Get(_)
        | Operation::List(_)
        | Operation::Count(_)
        | Operation::Wait(_)
        | Operation::Checkpoints(_)
        | Operation::Events(_)
        | Operation::Attempts(_)
        | Operation::Logs(_)
        | Operation::Nodes(_)
        | Operation::Cores(_) => Some(Role::Reader),
        Operation::BeginUpload(_)
        | Operation::UploadChunk(_)
        | Operation::FinishUpload(_)
        | Operation::DeleteImage(_)
        | Operation::SetImage(_)
        | Operation::Start(_)
        | Operation::Signal(_)
        | Operation::Cancel(_)
        | Operation::Pause(_)
        | Operation::Resume(_)
        | Operation::Stop(_)
        | Operation::Delete(_) => Some(Role::Operator),
        Operation::CreateToken(_)
        | Operation::Tokens(_)
        | Operation::RevokeToken(_)
        | Operation::Prune(_) => Some(Role::Admin),
        Operation::DrainNode(_)
        | Operation::UndrainNode(_)
        | Operation::CreateTenant(_)
        | Operation::Tenants(_)
        | Operation::SetQuotas(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, mem::discriminant};

    use super::*;

    #[test]
    fn every_operation_is_asked_for_once() {
        let all = every_operation("a", "b");
        let kinds: HashSet<_> = all.iter().map(|(operation, _)| discriminant(operation)).collect();
        assert_eq!(kinds.len(), all.len());
        let proto = include_str!("../../proto/proto/management.proto");
        assert_eq!(kinds.len() + 1, crate::raw::operations(proto), "all but hello");
    }
}
