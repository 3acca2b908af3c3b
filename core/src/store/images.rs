//! Images by digest, and the names and versions of each tenant that point at them.

use super::{
    Notice, Store,
    commit::Request,
    error::{Error, Result},
    image_chunks,
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::{Digest, Name, Tenant},
    time::Micros,
};

/// A version of a tenant's image, and what is known about its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Name,
    /// Its bytes.
    pub digest: Digest,
    /// How many they are.
    pub size: u64,
    /// The entry points it holds, as read from the binary; empty: unknown.
    pub workflows: Vec<Name>,
    /// The SDK it was built with; may be empty.
    pub sdk_version: String,
    /// What machines execute it.
    pub architecture: String,
    /// When this version was stored.
    pub created_at: Micros,
    /// Processes of it that stand ready on each node.
    pub spares: u32,
    /// Instances that one process of it may serve, one after the other; 1: no reuse.
    pub reuse: u32,
}

/// What is stored with a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Whose name it is.
    pub tenant: Tenant,
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Name,
    /// The bytes; they must be stored already.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Entry points.
    pub workflows: Vec<Name>,
    /// The SDK.
    pub sdk_version: String,
    /// The architecture.
    pub architecture: String,
    /// Into how many chunks the bytes were cut and stored; 0: they are a file of the node only,
    /// as on SQLite.
    pub chunks: u32,
}

/// What a deletion of image versions did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedImages {
    /// Versions that are gone.
    pub versions: u64,
    /// Digests that nothing refers to any more: their bytes may go.
    pub unused: Vec<Digest>,
}

macro_rules! columns {
    () => {
        "n.name, n.version, n.digest, n.created_at, n.spares, n.reuse, i.size, i.workflows, i.sdk_version, i.architecture"
    };
}

const INSERT_IMAGE: Stmt = stmt!(
    "INSERT INTO image (digest, size, workflows, sdk_version, architecture, created_at)
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (digest) DO NOTHING"
);
const INSERT_NAME: Stmt = stmt!(
    "INSERT INTO image_name (tenant, name, version, number, digest, created_at)
     SELECT $1, $2, $3, COALESCE(MAX(number), 0) + 1, $4, $5
       FROM image_name WHERE tenant = $1 AND name = $2
     ON CONFLICT (tenant, name, version) DO NOTHING"
);
const GET: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM image_name n JOIN image i ON i.digest = n.digest
      WHERE n.tenant = $1 AND n.name = $2 AND n.version = $3"
));
const GET_NEWEST: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM image_name n JOIN image i ON i.digest = n.digest
      WHERE n.tenant = $1 AND n.name = $2 ORDER BY n.number DESC LIMIT 1"
));
macro_rules! hold {
    ($which:literal) => {
        stmt!(concat!(
            "SELECT n.version, n.digest, i.workflows FROM image_name n JOIN image i ON i.digest = n.digest
              WHERE n.tenant = $1 AND n.name = $2 ",
            $which,
            " {for_share_of_n}"
        ))
    };
}
/// Holds the version until the start that uses it is committed: a deletion waits for it.
const HOLD: Stmt = hold!("AND n.version = $3");
const HOLD_NEWEST: Stmt = hold!("ORDER BY n.number DESC LIMIT 1");
const LIST: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM image_name n JOIN image i ON i.digest = n.digest WHERE n.tenant = $1 ORDER BY n.name, n.number DESC"
));
const LIST_NAME: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM image_name n JOIN image i ON i.digest = n.digest
      WHERE n.tenant = $1 AND n.name = $2 ORDER BY n.number DESC"
));
const LOCK_VERSIONS: Stmt = stmt!(
    "SELECT version, digest FROM image_name WHERE tenant = $1 AND name = $2 ORDER BY version {for_update}"
);
const IN_USE: Stmt = stmt!(
    "SELECT COUNT(*) AS n FROM instance
      WHERE tenant = $1 AND image_name = $2 AND image_version = $3 AND ended_at IS NULL"
);
const DELETE_NAME: Stmt = stmt!("DELETE FROM image_name WHERE tenant = $1 AND name = $2 AND version = $3");

/// An image that a start holds.
pub(super) struct FoundImage {
    pub(super) name: Name,
    pub(super) version: Name,
    pub(super) digest: Digest,
    workflows: Vec<Name>,
}

impl FoundImage {
    /// The entry point that a start means.
    pub(super) fn workflow(&self, asked: Option<&Name>) -> Result<Name> {
        let found = match asked {
            None if self.workflows.len() == 1 => self.workflows.first(),
            // What the binary does not list cannot be judged here: the process says it.
            Some(asked) if self.workflows.is_empty() || self.workflows.contains(asked) => Some(asked),
            None | Some(_) => None,
        };
        found.cloned().ok_or_else(|| Error::NoWorkflow {
            asked: asked.map(Name::to_string).unwrap_or_default(),
            image: format!("{}:{}", self.name, self.version),
            held: self.workflows.iter().map(Name::to_string).collect(),
        })
    }
}

fn call(name: &Name, version: Option<&Name>) -> String {
    version.map_or_else(|| name.to_string(), |version| format!("{name}:{version}"))
}

fn read_workflows(row: &Row) -> Result<Vec<Name>> {
    let text = row.text("workflows")?;
    serde_json::from_str(&text).map_err(|error| row.unreadable("workflows", error.to_string()))
}

fn read(row: &Row) -> Result<Image> {
    Ok(Image {
        name: row.name("name")?,
        version: row.name("version")?,
        digest: row.digest("digest")?,
        size: row.number("size")?,
        workflows: read_workflows(row)?,
        sdk_version: row.text("sdk_version")?,
        architecture: row.text("architecture")?,
        created_at: row.at("created_at")?,
        spares: row.small("spares")?,
        reuse: row.small("reuse")?,
    })
}

pub(super) async fn get(
    tx: &mut Tx<'_>,
    tenant: &Tenant,
    name: &Name,
    version: Option<&Name>,
) -> Result<Image> {
    let row = match version {
        Some(version) => tx.fetch_optional(&GET, args![tenant, name, version]).await?,
        None => tx.fetch_optional(&GET_NEWEST, args![tenant, name]).await?,
    };
    let row = row.ok_or_else(|| Error::NoImage { name: call(name, version) })?;
    read(&row)
}

/// Finds the version that a start means and holds it until the transaction's end.
pub(super) async fn hold(
    tx: &mut Tx<'_>,
    tenant: &Tenant,
    name: &Name,
    version: Option<&Name>,
) -> Result<FoundImage> {
    let row = match version {
        Some(version) => tx.fetch_optional(&HOLD, args![tenant, name, version]).await?,
        None => tx.fetch_optional(&HOLD_NEWEST, args![tenant, name]).await?,
    };
    let row = row.ok_or_else(|| Error::NoImage { name: call(name, version) })?;
    Ok(FoundImage {
        name: name.clone(),
        version: row.name("version")?,
        digest: row.digest("digest")?,
        workflows: read_workflows(&row)?,
    })
}

struct Put {
    image: NewImage,
    workflows: String,
}

impl Request for Put {
    /// The stored version, and whether it existed.
    type Answer = (Image, bool);

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let image = &self.image;
        let now = tx.now().await?;
        if let Some(row) = tx.fetch_optional(&GET, args![&image.tenant, &image.name, &image.version]).await? {
            let same = self.same(read(&row)?)?;
            self.complete(tx).await?;
            return Ok(same);
        }
        let digest = image.digest.to_string();
        let row = args![&digest, image.size, &self.workflows, &image.sdk_version, &image.architecture, now];
        tx.execute(&INSERT_IMAGE, row).await?;
        self.complete(tx).await?;
        let row = args![&image.tenant, &image.name, &image.version, &digest, now];
        let existed = tx.execute(&INSERT_NAME, row).await? == 0;
        let stored = get(tx, &image.tenant, &image.name, Some(&image.version)).await?;
        if existed { self.same(stored) } else { Ok((stored, false)) }
    }
}

impl Put {
    /// From now on every node can have the bytes.
    async fn complete(&self, tx: &mut Tx<'_>) -> Result<()> {
        match self.image.chunks {
            0 => Ok(()),
            chunks => image_chunks::complete(tx, &self.image.digest, chunks).await,
        }
    }

    fn same(&self, stored: Image) -> Result<(Image, bool)> {
        if stored.digest == self.image.digest {
            return Ok((stored, true));
        }
        Err(Error::OtherImage { name: stored.name, version: stored.version, digest: stored.digest })
    }
}

struct Get {
    tenant: Tenant,
    name: Name,
    version: Option<Name>,
}

impl Request for Get {
    type Answer = Image;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Image> {
        get(tx, &self.tenant, &self.name, self.version.as_ref()).await
    }
}

struct List {
    tenant: Tenant,
    name: Option<Name>,
}

impl Request for List {
    type Answer = Vec<Image>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let rows = match &self.name {
            Some(name) => tx.fetch(&LIST_NAME, args![&self.tenant, name]).await?,
            None => tx.fetch(&LIST, args![&self.tenant]).await?,
        };
        rows.iter().map(read).collect()
    }
}

struct Delete {
    tenant: Tenant,
    name: Name,
    version: Option<Name>,
}

impl Request for Delete {
    type Answer = DeletedImages;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<DeletedImages> {
        let versions = self.lock_unused(tx).await?;
        let mut digests = Vec::new();
        for (version, digest) in &versions {
            tx.execute_one(&DELETE_NAME, args![&self.tenant, &self.name, version]).await?;
            if !digests.contains(digest) {
                digests.push(*digest);
            }
        }
        tx.notify(Notice::Images);
        let mut unused = Vec::new();
        for digest in digests {
            if image_chunks::give_up(tx, &digest.to_string()).await? {
                unused.push(digest);
            }
        }
        Ok(DeletedImages { versions: versions.len() as u64, unused })
    }
}

impl Delete {
    /// The versions that are meant, locked; refused while an instance needs one. Counted after
    /// the lock: a start that held the version before is committed then.
    async fn lock_unused(&self, tx: &mut Tx<'_>) -> Result<Vec<(Name, Digest)>> {
        let mut versions = Vec::new();
        for row in tx.fetch(&LOCK_VERSIONS, args![&self.tenant, &self.name]).await? {
            let version = row.name("version")?;
            if self.version.as_ref().is_none_or(|asked| *asked == version) {
                versions.push((version, row.digest("digest")?));
            }
        }
        let name = call(&self.name, self.version.as_ref());
        if versions.is_empty() {
            return Err(Error::NoImage { name });
        }
        let mut instances = 0;
        for (version, _) in &versions {
            let used = tx.fetch_one(&IN_USE, args![&self.tenant, &self.name, version]).await?;
            instances += used.number("n")?;
        }
        if instances > 0 {
            return Err(Error::ImageInUse { name, instances });
        }
        Ok(versions)
    }
}

impl Store {
    /// Points a name and version at bytes that are stored, on PostgreSQL by
    /// [`Store::put_image_chunk`]. The same again is answered with
    /// `true`; other bytes under the same version are refused with ALREADY_EXISTS.
    pub async fn put_image(&self, image: NewImage) -> Result<(Image, bool)> {
        super::check_text("image.sdk_version", &image.sdk_version)?;
        super::check_text("image.architecture", &image.architecture)?;
        let workflows = serde_json::to_string(&image.workflows).expect("a list of names is JSON");
        self.write_node(Put { image, workflows }).await
    }

    /// A version of an image; without a version its newest.
    pub async fn image(&self, tenant: &Tenant, name: &Name, version: Option<&Name>) -> Result<Image> {
        self.read(Get { tenant: tenant.clone(), name: name.clone(), version: version.cloned() }).await
    }

    /// All versions of a name or of all names, newest first within a name.
    pub async fn images(&self, tenant: &Tenant, name: Option<&Name>) -> Result<Vec<Image>> {
        self.read(List { tenant: tenant.clone(), name: name.cloned() }).await
    }

    /// Deletes a version, or all of a name. Refused while instances that have not ended use one.
    pub async fn delete_image(
        &self,
        tenant: &Tenant,
        name: &Name,
        version: Option<&Name>,
    ) -> Result<DeletedImages> {
        let (tenant, name, version) = (tenant.clone(), name.clone(), version.cloned());
        self.write_node(Delete { tenant, name, version }).await
    }
}
