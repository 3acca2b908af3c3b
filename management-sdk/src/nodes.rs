//! The services themselves: their health and their nodes.

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, Timestamp, client::unexpected};

/// What the services say about themselves.
#[derive(Clone, Debug)]
pub struct Health {
    /// Their release.
    pub version: String,
    /// `sqlite` or `postgres`.
    pub database: String,
    /// The node that answered.
    pub node: String,
    /// The database's clock.
    pub now: Timestamp,
    /// One sentence each; empty: all is well.
    pub problems: Vec<String>,
    /// How many processes the node may run.
    pub slots: u32,
    /// How many it runs.
    pub slots_in_use: u32,
    /// Where core listens for workflows.
    pub core_address: String,
}

/// One running environment.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// The machine's name.
    pub name: String,
    /// Where its management server listens.
    pub address: String,
    /// How many processes it may run.
    pub slots: u32,
    /// How many it runs.
    pub running: u32,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it last renewed its lease.
    pub last_sign_at: Option<Timestamp>,
    /// It takes nothing new.
    pub draining: bool,
    /// Its release.
    pub version: String,
    /// Why it claims nothing; `None`: it does.
    pub not_claiming: Option<String>,
}

impl Node {
    fn from_wire(node: wire::Node) -> Self {
        Self {
            id: node.id,
            name: node.name,
            address: node.address,
            slots: node.slots,
            running: node.running,
            started_at: Timestamp::optional(node.started_at),
            last_sign_at: Timestamp::optional(node.last_sign_at),
            draining: node.draining,
            version: node.version,
            not_claiming: (!node.not_claiming.is_empty()).then_some(node.not_claiming),
        }
    }
}

impl Client {
    /// Whether the services are well.
    pub async fn health(&self) -> Result<Health, Error> {
        self.call(Operation::Health(wire::Health {}), |outcome| match outcome {
            Outcome::Health(report) => Ok(Health {
                version: report.version,
                database: report.database,
                node: report.node,
                now: Timestamp::from_micros(report.now),
                problems: report.problems,
                slots: report.slots,
                slots_in_use: report.slots_in_use,
                core_address: report.core_address,
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Every node of the cluster.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.call(Operation::Nodes(wire::ListNodes {}), |outcome| match outcome {
            Outcome::Nodes(list) => Ok(list.nodes.into_iter().map(Node::from_wire).collect()),
            other => Err(unexpected(&other)),
        })
        .await
    }
}
