//! Whether what sessions were told may be out of date: one look for all sessions of a core.

use std::collections::HashMap;

use super::{
    Store,
    commit::Request,
    error::Result,
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::id::InstanceKey;

/// Keys as a JSON array: a set of any size is one argument, and one plan.
const LOOK: Stmt = stmt!(
    "SELECT i.key, i.version,
            (SELECT COALESCE(MAX(s.number), 0) FROM signal s WHERE s.instance = i.key) AS newest_signal,
            (SELECT COUNT(*) FROM signal s WHERE s.instance = i.key AND s.consumed_by IS NULL) AS unread
       FROM instance i WHERE i.key IN ({keys})"
);

/// Instances that one look is about: none takes long.
const TOGETHER: usize = 500;

/// Differs from an earlier one of the same instance if anything changed that its session is told: its
/// row, or its signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    revision: u64,
    newest_signal: u64,
    unread: u64,
}

struct Look {
    instances: Vec<InstanceKey>,
}

impl Request for Look {
    type Answer = Vec<(InstanceKey, Stamp)>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let keys: Vec<i64> = self.instances.iter().map(|key| key.0).collect();
        let keys = serde_json::to_string(&keys).expect("numbers are JSON");
        let rows = tx.fetch(&LOOK, args![&keys]).await?;
        rows.iter()
            .map(|row| {
                let stamp = Stamp {
                    revision: row.number("version")?,
                    newest_signal: row.number("newest_signal")?,
                    unread: row.number("unread")?,
                };
                Ok((row.instance("key")?, stamp))
            })
            .collect()
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

impl Store {
    /// The stamps of these instances; of one that is gone there is none.
    pub async fn stamps(&self, instances: &[InstanceKey]) -> Result<HashMap<InstanceKey, Stamp>> {
        let mut stamps = HashMap::with_capacity(instances.len());
        for some in instances.chunks(TOGETHER) {
            stamps.extend(self.read(Look { instances: some.to_vec() }).await?);
        }
        Ok(stamps)
    }
}
