//! The services about themselves: health and nodes; and whether somebody would launch what is due.

use dormouse_core::store::Node;
use dormouse_proto::{call::Refusal, management as wire};

use super::{
    describe,
    sentence::Capacity,
    server::{Context, ThisNode, refuse},
};

impl Context {
    pub(super) async fn health(&self) -> Result<wire::HealthReport, Refusal> {
        let this = self.this_node();
        let mut problems = this.problems.clone();
        // Asks the database, so that a broken one shows.
        let now = self.store().now().await;
        let now = now.unwrap_or_else(|error| {
            problems.push(error.to_string());
            dormouse_core::domain::time::Micros(0)
        });
        Ok(wire::HealthReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            database: self.store().kind().as_str().to_owned(),
            node: this.id,
            now: now.0,
            problems,
            slots: this.slots,
            slots_in_use: this.in_use,
            core_address: this.core_address,
            tenant: self.tenant.to_string(),
            role: self.credential.role.as_str().to_owned(),
            ..wire::HealthReport::default()
        })
    }

    pub(super) async fn nodes(&self) -> Result<wire::NodeList, Refusal> {
        let this = self.this_node();
        let nodes = self.store().nodes().await.map_err(|error| refuse(&error))?;
        Ok(wire::NodeList { nodes: nodes.iter().map(|node| describe::node(node, &this)).collect() })
    }

    /// Whether a due wake would be claimed now.
    pub(super) async fn capacity(&self) -> Result<Capacity, Refusal> {
        let nodes = self.store().nodes().await.map_err(|error| refuse(&error))?;
        Ok(judge(&nodes, &self.this_node()))
    }

    pub(super) fn this_node(&self) -> ThisNode {
        (self.shared.parts.this_node)()
    }
}

fn judge(nodes: &[Node], this: &ThisNode) -> Capacity {
    let nodes: Vec<_> = nodes.iter().map(|node| describe::node(node, this)).collect();
    let claiming: Vec<_> =
        nodes.iter().filter(|node| node.not_claiming.is_empty() && !node.draining).collect();
    if claiming.iter().any(|node| node.running < node.slots) {
        Capacity::Free
    } else if claiming.is_empty() {
        let why = |node: &wire::Node| match (node.draining, node.not_claiming.as_str()) {
            (true, _) => format!("{} is draining", node.name),
            (false, reason) => format!("{}: {reason}", node.name),
        };
        Capacity::NobodyClaims(nodes.iter().map(why).collect())
    } else {
        Capacity::Full
    }
}
