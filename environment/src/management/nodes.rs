//! The services about themselves: health and nodes; and whether somebody would launch what is due.

use dormouse_core::{
    store::{Drain, Node, RunningQuota},
    timings::{Format, render},
};
use dormouse_proto::{call::Refusal, code::Code, management as wire};

use super::{
    certificates::certificates,
    describe,
    sentence::Capacity,
    server::{Context, ThisNode, refuse},
};
use crate::condition::WithoutSpares;

/// The figures of this process.
pub(super) fn metrics(request: &wire::GetMetrics) -> Result<wire::Metrics, Refusal> {
    let format = match request.format.as_str() {
        "" => Some(Format::Prometheus),
        word => Format::parse(word),
    };
    let Some(format) = format else {
        let message = format!("metrics.format is {:?}; say \"prometheus\" or \"json\"", request.format);
        return Err(Refusal::new(Code::InvalidArgument, message));
    };
    Ok(wire::Metrics { text: render(format) })
}

impl Context {
    pub(super) async fn health(&self) -> Result<wire::HealthReport, Refusal> {
        let this = self.this_node();
        let mut problems = this.problems.clone();
        let theirs = this.without_spares.iter().filter(|image| image.tenant == self.tenant);
        problems.extend(theirs.map(WithoutSpares::sentence));
        // Asks the database whether it can be written, so that a broken one shows.
        let now = self.store().health().await;
        let now = now.unwrap_or_else(|error| {
            problems.push(error.to_string());
            dormouse_core::domain::time::Micros(0)
        });
        let (certificates, unfit) = certificates(&self.shared.options.authority).await;
        problems.extend(unfit);
        Ok(wire::HealthReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            database: self.store().kind().as_str().to_owned(),
            node: this.id,
            now: now.0,
            problems,
            slots: this.slots,
            slots_in_use: this.report.running,
            core_address: this.core_address,
            tenant: self.tenant.to_string(),
            role: self.credential.role.as_str().to_owned(),
            certificates,
        })
    }

    pub(super) async fn nodes(&self) -> Result<wire::NodeList, Refusal> {
        let this = self.this_node();
        let nodes = self.store().nodes().await.map_err(|error| refuse(&error))?;
        Ok(wire::NodeList { nodes: nodes.iter().map(|node| describe::node(node, &this)).collect() })
    }

    /// Any node may be asked about any: the wish stands in the row, and its node is told.
    pub(super) async fn drain_node(&self, request: wire::DrainNode) -> Result<wire::Node, Refusal> {
        let drain = if request.suspend { Drain::Suspend } else { Drain::Wait };
        self.ask_drain(&request.id, drain).await
    }

    pub(super) async fn undrain_node(&self, request: wire::UndrainNode) -> Result<wire::Node, Refusal> {
        self.ask_drain(&request.id, Drain::No).await
    }

    async fn ask_drain(&self, id: &str, drain: Drain) -> Result<wire::Node, Refusal> {
        let node = self.store().ask_drain(id, drain).await.map_err(|error| refuse(&error))?;
        Ok(describe::node(&node, &self.this_node()))
    }

    /// Whether a due wake of the client's tenant would be claimed now.
    /// `limited`: the tenant may have a quota of running instances.
    pub(super) async fn capacity(&self, limited: bool) -> Result<Capacity, Refusal> {
        if limited {
            let quota = self.store().running_quota(&self.tenant).await.map_err(|error| refuse(&error))?;
            if let Some(RunningQuota { running, max }) = quota
                && running >= max
            {
                return Ok(Capacity::TenantFull { tenant: self.tenant.to_string(), max });
            }
        }
        if self.this_node().has_room() {
            return Ok(Capacity::Free);
        }
        let nodes = self.store().nodes().await.map_err(|error| refuse(&error))?;
        Ok(judge(&nodes, &self.this_node()))
    }

    pub(super) fn this_node(&self) -> ThisNode {
        (self.shared.parts.this_node)()
    }
}

fn judge(nodes: &[Node], this: &ThisNode) -> Capacity {
    let claims = |node: &&Node| describe::not_claiming(node, this).is_none();
    let has_slots = |node: &Node| describe::report(node, this).running < node.slots;
    if nodes.iter().filter(claims).any(has_slots) {
        Capacity::Free
    } else if nodes.iter().any(|node| claims(&node)) {
        Capacity::Full
    } else {
        let why = |node: &Node| {
            describe::not_claiming(node, this)
                .map(|why| format!("{} ({}): {why}", node.name, node.lease.node))
        };
        Capacity::NobodyClaims(nodes.iter().filter_map(why).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dormouse_core::{
        domain::{id::NodeId, time::Micros},
        store::{NodeLease, NodeReport},
    };

    use super::*;

    fn node(id: &str, report: NodeReport) -> Node {
        Node {
            lease: NodeLease { node: NodeId::parse(id).expect("an id"), epoch: 1 },
            renewals: 0,
            lease_length: Duration::from_secs(15),
            lost: false,
            name: "host".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            version: "0".to_owned(),
            slots: 2,
            report,
            drain: Drain::No,
            started_at: Micros(0),
            renewed_at: Micros(0),
        }
    }

    fn this() -> ThisNode {
        let (report, problems) = (NodeReport { running: 1, ..NodeReport::default() }, Vec::new());
        ThisNode {
            id: "here".to_owned(),
            slots: 2,
            report,
            core_address: String::new(),
            silent_cores: std::collections::BTreeSet::new(),
            problems,
            without_spares: std::sync::Arc::default(),
        }
    }

    fn running(running: u32) -> NodeReport {
        NodeReport { running, ..NodeReport::default() }
    }

    #[test]
    fn one_sentence_says_why_nothing_is_claimed() {
        let draining = NodeReport {
            draining: true,
            not_claiming: "draining: waits for 1 processes".to_owned(),
            ..running(1)
        };
        let lost = Node { lost: true, ..node("b", running(2)) };
        for (node, sentence) in [
            (node("a", running(1)), ""),
            (node("a", running(2)), "all its 2 slots are taken"),
            (node("a", draining), "draining: waits for 1 processes"),
            (lost, "its lease is lost: it gave no sign for as long as it lasts, and others took over"),
            // The row is older than what the node knows of itself.
            (node("here", running(2)), ""),
        ] {
            assert_eq!(describe::node(&node, &this()).not_claiming, sentence);
        }
    }

    #[test]
    fn a_due_wake_finds_the_node_that_claims() {
        let drained = NodeReport { draining: true, ..running(0) };
        let lost = Node { lost: true, ..node("b", running(0)) };
        assert_eq!(judge(&[], &this()), Capacity::NobodyClaims(Vec::new()));
        assert_eq!(judge(&[node("a", running(2)), node("here", running(2))], &this()), Capacity::Free);
        assert_eq!(judge(&[node("a", running(2)), node("b", drained.clone())], &this()), Capacity::Full);
        let Capacity::NobodyClaims(why) = judge(&[node("a", drained), lost], &this()) else {
            panic!("somebody")
        };
        assert_eq!(why[0], "host (a): draining");
        assert!(why[1].starts_with("host (b): its lease is lost"), "{why:?}");
    }
}
