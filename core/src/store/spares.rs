//! Processes that are kept: how many spares a version of an image has on each node, how often a process of it
//! is used again, and the key by which a node's spares prove themselves.
//!
//! Nobody writes for a single spare: who stands ready is the business of one node, and goes with it.

use dormouse_proto::standby::SpareKey;

use super::{
    Notice, Store,
    commit::Request,
    error::{Error, Result},
    images::{self, Image},
    nodes::{self, NodeLease},
    sql::{Stmt, Tx, args, stmt},
};
use crate::{
    domain::id::{Digest, Name, NodeId, Tenant},
    limits::{REUSE, SPARES_OF_IMAGE},
};

const SET: Stmt =
    stmt!("UPDATE image_name SET spares = $1, reuse = $2 WHERE tenant = $3 AND name = $4 AND version = $5");
const KEPT: Stmt = stmt!(
    "SELECT tenant, name, version, digest, spares, reuse FROM image_name
      WHERE spares > 0 OR reuse > 1 ORDER BY tenant, name, version"
);
const GIVE_KEY: Stmt = stmt!("UPDATE node SET spare_key = $1 WHERE id = $2");
const KEY: Stmt = stmt!("SELECT epoch, spare_key FROM node WHERE id = $1 AND NOT lost");

/// How processes of a version are kept; what is not named stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Processes that stand ready on each node.
    pub spares: Option<u32>,
    /// Instances that one process may serve; 1: no reuse.
    pub reuse: Option<u32>,
}

/// A version of whose processes something is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose version it is; its processes serve nobody else.
    pub tenant: Tenant,
    /// The image's name.
    pub image: Name,
    /// The version.
    pub version: Name,
    /// Its bytes.
    pub digest: Digest,
    /// Processes that stand ready on each node.
    pub spares: u32,
    /// Instances that one process may serve; 1: no reuse.
    pub reuse: u32,
}

struct SetOptions {
    tenant: Tenant,
    name: Name,
    version: Option<Name>,
    options: ImageOptions,
}

impl Request for SetOptions {
    type Answer = Image;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Image> {
        let Self { tenant, name, version, options } = self;
        let image = images::get(tx, tenant, name, version.as_ref()).await?;
        let spares = options.spares.unwrap_or(image.spares);
        let reuse = options.reuse.unwrap_or(image.reuse);
        if (spares, reuse) != (image.spares, image.reuse) {
            let changed = tx.execute(&SET, args![spares, reuse, tenant, name, &image.version]).await?;
            if changed == 0 {
                // Deleted between the look and the lock.
                return Err(Error::NoImage { name: format!("{name}:{}", image.version) });
            }
            tx.notify(Notice::Images);
        }
        Ok(Image { spares, reuse, ..image })
    }
}

struct ListKept;

impl Request for ListKept {
    type Answer = Vec<Kept>;

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let rows = tx.fetch(&KEPT, args![]).await?;
        let read = rows.iter().map(|row| {
            Ok(Kept {
                tenant: row.tenant("tenant")?,
                image: row.name("name")?,
                version: row.name("version")?,
                digest: row.digest("digest")?,
                spares: row.small("spares")?,
                reuse: row.small("reuse")?,
            })
        });
        read.collect()
    }
}

struct GiveKey {
    lease: NodeLease,
    key: SpareKey,
}

impl Request for GiveKey {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        nodes::hold(tx, &self.lease).await?;
        tx.execute_one(&GIVE_KEY, args![self.key.0.as_slice(), &self.lease.node]).await
    }
}

struct FindKey {
    node: NodeId,
}

impl Request for FindKey {
    type Answer = Option<(u64, SpareKey)>;

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let Some(row) = tx.fetch_optional(&KEY, args![&self.node]).await? else { return Ok(None) };
        let Some(bytes) = row.opt_blob("spare_key")? else { return Ok(None) };
        let unreadable = || row.unreadable("spare_key", format!("it has {} bytes", bytes.len()));
        Ok(Some((row.number("epoch")?, SpareKey::of(&bytes).ok_or_else(unreadable)?)))
    }
}

impl Store {
    /// Sets how processes of a version are kept; without a version, of the newest.
    pub async fn set_image_options(
        &self,
        tenant: &Tenant,
        name: &Name,
        version: Option<&Name>,
        options: ImageOptions,
    ) -> Result<Image> {
        for (field, given, max, remedy) in [
            ("image.spares", options.spares, SPARES_OF_IMAGE, "at most 64 stand ready on a node"),
            ("image.reuse", options.reuse, REUSE, "a process serves at most 10000 instances"),
        ] {
            if let Some(value) = given.filter(|given| *given > max) {
                return Err(Error::Invalid { field, value: value.to_string(), remedy });
            }
        }
        // A process serves at least the instance that it was launched for.
        let options = ImageOptions { reuse: options.reuse.map(|reuse| reuse.max(1)), ..options };
        let (tenant, name, version) = (tenant.clone(), name.clone(), version.cloned());
        self.write_node(SetOptions { tenant, name, version, options }).await
    }

    /// The versions of whose processes something is kept, of all tenants.
    pub async fn kept_images(&self) -> Result<Vec<Kept>> {
        self.read(ListKept).await
    }

    /// Makes the key known by which the spares of this lease's node prove themselves.
    pub async fn give_spare_key(&self, lease: &NodeLease, key: SpareKey) -> Result<()> {
        self.write_node(GiveKey { lease: lease.clone(), key }).await
    }

    /// The key of a node, and of which of its leases its spares may be; `None` if it has none, or
    /// has lost its lease.
    pub async fn spare_key(&self, node: &NodeId) -> Result<Option<(u64, SpareKey)>> {
        self.read(FindKey { node: node.clone() }).await
    }
}
