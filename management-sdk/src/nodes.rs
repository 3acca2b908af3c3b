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
    /// Of the node's machine: what expires when.
    pub certificates: Vec<Certificate>,
    /// Whose instances and images this client sees.
    pub tenant: String,
    /// What it may do: `reader`, `operator`, `admin` or `cluster`.
    pub role: String,
}

/// A certificate of the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// `authority`, `core`, `environment` or `administrator`.
    pub name: String,
    /// When nobody accepts it any more.
    pub expires_at: Timestamp,
}

impl Certificate {
    fn from_wire(certificate: wire::Certificate) -> Self {
        let wire::Certificate { name, expires_at } = certificate;
        Self { name, expires_at: Timestamp::from_micros(expires_at) }
    }
}

/// What was asked of a node, until it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Drain {
    /// Nothing: it claims.
    No,
    /// To claim nothing, and to wait for what runs.
    Wait,
    /// To claim nothing, and to hand back what runs.
    Suspend,
}

impl Drain {
    /// The word on the wire and on the screen.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Wait => "wait",
            Self::Suspend => "suspend",
        }
    }

    /// A word of a later release asks for no claims too.
    fn from_wire(word: &str) -> Self {
        match word {
            "" | "no" => Self::No,
            "suspend" => Self::Suspend,
            _ => Self::Wait,
        }
    }
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
    /// It takes nothing new, because it was asked to drain: it has heard it.
    pub draining: bool,
    /// What is asked of it; it stays over its restart.
    pub drain: Drain,
    /// Its lease was taken from it: it is gone, or cut off, and others go on with its instances.
    pub lost: bool,
    /// Its release.
    pub version: String,
    /// Why it claims nothing now, in one sentence; `None`: it does.
    pub not_claiming: Option<String>,
    /// Load average of its machine's last minute, in thousandths.
    pub load_milli: u64,
    /// Memory of its machine that more processes may take, in bytes.
    pub memory_free_bytes: u64,
    /// What confines its processes, and where it keeps images: a short phrase each.
    pub in_force: Vec<String>,
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
            drain: Drain::from_wire(&node.drain),
            lost: node.lost,
            version: node.version,
            not_claiming: (!node.not_claiming.is_empty()).then_some(node.not_claiming),
            load_milli: node.load_milli,
            memory_free_bytes: node.memory_free_bytes,
            in_force: node.in_force,
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
                certificates: report.certificates.into_iter().map(Certificate::from_wire).collect(),
                tenant: report.tenant,
                role: report.role,
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// How long requests and launches took in the process that answers, since its start: of all tenants together,
    /// as the text that Prometheus reads.
    pub async fn metrics(&self) -> Result<String, Error> {
        self.read_metrics("prometheus").await
    }

    /// As [`Self::metrics`], as one JSON object with exact sums and finer buckets.
    pub async fn metrics_json(&self) -> Result<String, Error> {
        self.read_metrics("json").await
    }

    async fn read_metrics(&self, format: &str) -> Result<String, Error> {
        let request = wire::GetMetrics { format: format.to_owned() };
        self.call(Operation::Metrics(request), |outcome| match outcome {
            Outcome::Metrics(wire::Metrics { text }) => Ok(text),
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

    /// Asks a node to claim nothing more, and to wait for what runs; with `suspend` to end what
    /// runs and hand it back, so that others go on with it: what it had saved is kept, and no
    /// crash is counted. Any node may be asked about any. It stays so over the node's restart.
    ///
    /// `node` is its id, a unique beginning of it, or its name. Answers at once: the node is
    /// drained when it says `draining` and runs nothing.
    pub async fn drain_node(&self, node: &str, suspend: bool) -> Result<Node, Error> {
        let request = wire::DrainNode { id: node.to_owned(), suspend };
        self.call(Operation::DrainNode(request), one).await
    }

    /// Lets a node claim again.
    pub async fn undrain_node(&self, node: &str) -> Result<Node, Error> {
        let request = wire::UndrainNode { id: node.to_owned() };
        self.call(Operation::UndrainNode(request), one).await
    }
}

fn one(outcome: Outcome) -> Result<Node, String> {
    match outcome {
        Outcome::Node(node) => Ok(Node::from_wire(node)),
        other => Err(unexpected(&other)),
    }
}
