//! The core replicas.

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, Timestamp, client::unexpected};

/// One running core service, or one that was killed and is not forgotten yet.
#[derive(Clone, Debug)]
pub struct Core {
    /// Its id, kept in its data directory.
    pub id: String,
    /// The machine's name.
    pub name: String,
    /// Where processes connect.
    pub address: String,
    /// Its release.
    pub version: String,
    /// Instances whose process was connected to it at its last sign of life.
    pub sessions: u64,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// Its last sign of life; on SQLite its start, for there it shows none.
    pub last_sign_at: Option<Timestamp>,
    /// It takes no new sessions and sends those that it has elsewhere.
    pub draining: bool,
    /// The answering node has watched it for its whole lease without a sign of life.
    pub silent: bool,
}

impl Core {
    fn from_wire(core: wire::Core) -> Self {
        Self {
            id: core.id,
            name: core.name,
            address: core.address,
            version: core.version,
            sessions: core.sessions,
            started_at: Timestamp::optional(core.started_at),
            last_sign_at: Timestamp::optional(core.last_sign_at),
            draining: core.draining,
            silent: core.silent,
        }
    }
}

impl Client {
    /// Every core replica of the cluster, by name.
    pub async fn cores(&self) -> Result<Vec<Core>, Error> {
        self.call(Operation::Cores(wire::ListCores {}), |outcome| match outcome {
            Outcome::Cores(list) => Ok(list.cores.into_iter().map(Core::from_wire).collect()),
            other => Err(unexpected(&other)),
        })
        .await
    }
}
