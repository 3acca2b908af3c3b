//! The core replicas, as this node sees them.

use std::collections::BTreeSet;

use dormouse_core::{domain::id::ReplicaId, store::Replica};
use dormouse_proto::{call::Refusal, management as wire};

use super::server::{Context, refuse};

impl Context {
    pub(super) async fn cores(&self) -> Result<wire::CoreList, Refusal> {
        let silent = self.this_node().silent_cores;
        let replicas = self.store().replicas().await.map_err(|error| refuse(&error))?;
        Ok(wire::CoreList { cores: replicas.into_iter().map(|replica| core(replica, &silent)).collect() })
    }
}

fn core(replica: Replica, silent: &BTreeSet<ReplicaId>) -> wire::Core {
    let Replica { lease, name, address, version, report, started_at, renewed_at, .. } = replica;
    wire::Core {
        silent: silent.contains(&lease.replica),
        id: lease.replica.to_string(),
        name,
        address,
        version,
        started_at: started_at.0,
        last_sign_at: renewed_at.0,
        sessions: report.sessions,
        draining: report.draining,
    }
}
