//! The bytes of images in the database, in chunks, so that a cluster needs nothing else.
//!
//! A chunk is a small transaction of its own. None of them means anything until
//! `image.chunks` is set, in the transaction that finds all of them there; whoever reads bytes
//! compares their digest with the image's name all the same. What broken uploads and deleted
//! names leave behind is swept in small steps.
//!
//! On SQLite images are files of the one node, and nothing here is called.

use super::{
    Store,
    commit::Request,
    error::{Error, Result},
    images::NewImage,
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::id::Digest;

/// Bytes of each chunk but the last. Part of what is stored: another size makes other chunks.
pub const IMAGE_CHUNK_BYTES: usize = 1 << 20;

/// Chunks that one step of a sweep deletes.
const SWEEP: u32 = 8;
/// So long may an upload take from its begin to the name that points at it.
const UNNAMED: std::time::Duration = std::time::Duration::from_hours(1);

/// What the database knows of an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBytes {
    /// How many they are.
    pub size: u64,
    /// Into how many chunks they are cut: 1, 2, 3 …; 0: they are not, or not yet, here.
    pub chunks: u32,
    /// What machines execute them.
    pub architecture: String,
}

/// Into how many chunks so many bytes are cut.
pub fn image_chunks(size: u64) -> u32 {
    u32::try_from(size.div_ceil(IMAGE_CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
}

/// Whoever begins anew while the bytes are not whole gets the whole time again.
const BEGIN: Stmt = stmt!(
    "INSERT INTO image (digest, size, workflows, sdk_version, architecture, created_at)
     VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (digest) DO UPDATE SET created_at = $6 WHERE image.chunks = 0"
);
const LOOK: Stmt = stmt!("SELECT size, chunks, architecture FROM image WHERE digest = $1");
/// Chunks behind the end: those of a release that cut otherwise.
const DELETE_SURPLUS: Stmt = stmt!("DELETE FROM image_chunk WHERE digest = $1 AND number > $2");
/// Bytes that are there are written again only if they are others: a chunk was damaged.
const PUT: Stmt = stmt!(
    "INSERT INTO image_chunk (digest, number, data)
     SELECT digest, $2, $3 FROM image WHERE digest = $1
         ON CONFLICT (digest, number) DO UPDATE SET data = $3 WHERE image_chunk.data <> $3"
);
const COMPLETE: Stmt = stmt!(
    "UPDATE image SET chunks = $2
      WHERE digest = $1
        AND $2 = (SELECT COUNT(*) FROM image_chunk WHERE digest = $1)
        AND $2 = (SELECT MAX(number) FROM image_chunk WHERE digest = $1)
        AND size = (SELECT CAST(SUM(LENGTH(data)) AS BIGINT) FROM image_chunk WHERE digest = $1)"
);
const LOCK: Stmt = stmt!("SELECT chunks FROM image WHERE digest = $1 {for_update}");
const GET: Stmt = stmt!("SELECT digest, data FROM image_chunk WHERE digest = $1 AND number = $2");
const DOUBT: Stmt = stmt!("UPDATE image SET chunks = 0 WHERE digest = $1");
const WITHOUT_BYTES: Stmt = stmt!(
    "SELECT digest FROM image
      WHERE chunks = 0 AND digest > $1 AND EXISTS (SELECT 1 FROM image_name n WHERE n.digest = image.digest)
      ORDER BY digest LIMIT 0 + $2"
);
const NEEDED: Stmt = stmt!(
    "SELECT (EXISTS (SELECT 1 FROM image WHERE digest = $1)
             OR EXISTS (SELECT 1 FROM instance WHERE image_digest = $1 AND ended_at IS NULL)) AS needed"
);

macro_rules! nobody_needs {
    ($digest:literal) => {
        concat!(
            " AND NOT EXISTS (SELECT 1 FROM image_name n WHERE n.digest = ",
            $digest,
            ") AND NOT EXISTS (SELECT 1 FROM instance i WHERE i.image_digest = ",
            $digest,
            " AND i.ended_at IS NULL)"
        )
    };
}

const SWEEPABLE: Stmt = stmt!(concat!(
    "SELECT digest FROM image WHERE created_at <= $1",
    nobody_needs!("image.digest"),
    " ORDER BY digest LIMIT 1 {take_skip_locked}"
));
/// Asked again under the lock, which keeps new names away.
const SWEEP_BYTES: Stmt =
    stmt!(concat!("UPDATE image SET chunks = 0, created_at = 0 WHERE digest = $1", nobody_needs!("$1")));
const SWEEP_CHUNKS: Stmt = stmt!(
    "DELETE FROM image_chunk WHERE digest = $1
        AND number IN (SELECT number FROM image_chunk WHERE digest = $1 ORDER BY number LIMIT 0 + $2)"
);
const SWEEP_IMAGE: Stmt = stmt!("DELETE FROM image WHERE digest = $1");

/// Bytes that are said to be whole and are not (somebody deleted a chunk) are to come again.
const UNCOMPLETE: Stmt = stmt!(
    "UPDATE image SET chunks = 0
      WHERE digest = $1 AND chunks > 0
        AND (chunks <> (SELECT COUNT(*) FROM image_chunk WHERE digest = $1)
             OR size <> (SELECT CAST(COALESCE(SUM(LENGTH(data)), 0) AS BIGINT) FROM image_chunk WHERE digest = $1))"
);

/// Makes the bytes of an image usable: all chunks are there and as many bytes as its size.
/// Locks the image's row.
pub(super) async fn complete(tx: &mut Tx<'_>, digest: &Digest, chunks: u32) -> Result<()> {
    let text = digest.to_string();
    let row = tx.fetch_optional(&LOCK, args![&text]).await?;
    match row.map(|row| row.small("chunks")).transpose()? {
        Some(known) if known == chunks => Ok(()),
        Some(_) if tx.execute(&COMPLETE, args![&text, chunks]).await? == 1 => Ok(()),
        Some(_) | None => Err(Error::ImageIncomplete { digest: *digest }),
    }
}

/// Takes the image's row for its deletion: no name comes to it until the transaction's end.
pub(super) async fn take(tx: &mut Tx<'_>, digest: &str) -> Result<()> {
    const TAKE: Stmt = stmt!("SELECT digest FROM image WHERE digest = $1 {for_delete}");
    tx.fetch_optional(&TAKE, args![digest]).await.map(drop)
}

/// Gives up bytes that nothing refers to: without chunks the row goes at once, else the next
/// sweep takes it. Answers whether nothing refers to them.
pub(super) async fn give_up(tx: &mut Tx<'_>, digest: &str) -> Result<bool> {
    const DELETE: Stmt = stmt!(concat!(
        "DELETE FROM image WHERE digest = $1
            AND NOT EXISTS (SELECT 1 FROM image_chunk WHERE digest = $1)",
        nobody_needs!("$1")
    ));
    take(tx, digest).await?;
    Ok(tx.execute(&DELETE, args![digest]).await? == 1 || tx.execute(&SWEEP_BYTES, args![digest]).await? == 1)
}

struct Begin {
    image: NewImage,
    workflows: String,
}

impl Request for Begin {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let NewImage { digest, size, sdk_version, architecture, .. } = &self.image;
        let now = tx.now().await?;
        let text = digest.to_string();
        tx.execute(&BEGIN, args![&text, *size, &self.workflows, sdk_version, architecture, now]).await?;
        tx.execute(&UNCOMPLETE, args![&text]).await?;
        let chunks = tx.fetch_one(&LOOK, args![&text]).await?.small("chunks")?;
        if chunks == 0 {
            tx.execute(&DELETE_SURPLUS, args![&text, image_chunks(*size)]).await?;
        }
        Ok(chunks > 0)
    }
}

struct Put {
    digest: Digest,
    number: u32,
    data: Vec<u8>,
}

impl Request for Put {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        let digest = self.digest.to_string();
        tx.execute(&PUT, args![&digest, self.number, &self.data]).await.map(drop)
    }
}

struct Complete {
    digest: Digest,
    chunks: u32,
}

impl Request for Complete {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        complete(tx, &self.digest, self.chunks).await
    }
}

struct Look {
    digest: Digest,
}

impl Request for Look {
    type Answer = Option<ImageBytes>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let row = tx.fetch_optional(&LOOK, args![&self.digest.to_string()]).await?;
        row.map(|row| {
            Ok(ImageBytes {
                size: row.number("size")?,
                chunks: row.small("chunks")?,
                architecture: row.text("architecture")?,
            })
        })
        .transpose()
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

struct Get {
    digest: Digest,
    number: u32,
}

impl Request for Get {
    type Answer = Option<Vec<u8>>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let row = tx.fetch_optional(&GET, args![&self.digest.to_string(), self.number]).await?;
        row.map(|row| row.blob("data")).transpose()
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

struct Doubt {
    digest: Digest,
}

impl Request for Doubt {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        tx.execute(&DOUBT, args![&self.digest.to_string()]).await.map(drop)
    }
}

struct WithoutBytes {
    after: Option<Digest>,
    limit: u32,
}

impl Request for WithoutBytes {
    type Answer = Vec<Digest>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let after = self.after.map(|digest| digest.to_string()).unwrap_or_default();
        let rows = tx.fetch(&WITHOUT_BYTES, args![&after, self.limit]).await?;
        rows.iter().map(|row| row.digest("digest")).collect()
    }
}

struct Unneeded {
    digests: Vec<Digest>,
}

impl Request for Unneeded {
    type Answer = Vec<Digest>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let mut unneeded = Vec::new();
        for digest in &self.digests {
            if !tx.fetch_one(&NEEDED, args![&digest.to_string()]).await?.flag("needed")? {
                unneeded.push(*digest);
            }
        }
        Ok(unneeded)
    }
}

struct Sweep;

impl Request for Sweep {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let before = tx.now().await? - UNNAMED;
        let Some(row) = tx.fetch_optional(&SWEEPABLE, args![before]).await? else { return Ok(false) };
        let digest = row.text("digest")?;
        // None: it got a name between the look and the lock.
        if tx.execute(&SWEEP_BYTES, args![&digest]).await? == 1
            && tx.execute(&SWEEP_CHUNKS, args![&digest, SWEEP]).await? < u64::from(SWEEP)
        {
            tx.execute_one(&SWEEP_IMAGE, args![&digest]).await?;
        }
        Ok(true)
    }
}

impl Store {
    /// Says which image's bytes are to come, before its first chunk. True: they are all here.
    /// What is begun and gets no name within an hour is swept.
    pub async fn begin_image_bytes(&self, image: &NewImage) -> Result<bool> {
        let workflows = serde_json::to_string(&image.workflows).expect("a list of names is JSON");
        self.write_node(Begin { image: image.clone(), workflows }).await
    }

    /// Stores chunk `number` (1, 2, 3 …) of an image; the same again changes nothing. Without
    /// effect where the image was swept meanwhile: its completion then says so.
    pub async fn put_image_chunk(&self, digest: Digest, number: u32, data: Vec<u8>) -> Result<()> {
        // Beside the checkpoints of some instances, not before the claims of all.
        self.writer_of(&digest).call(Put { digest, number, data }).await
    }

    /// Makes the bytes of an image that has a name already usable; as `put_image` does for a
    /// new one. Refused if they are not whole.
    pub async fn complete_image_bytes(&self, digest: Digest, chunks: u32) -> Result<()> {
        self.write_node(Complete { digest, chunks }).await
    }

    /// What is known about an image's bytes; none: no such image.
    pub async fn image_bytes(&self, digest: Digest) -> Result<Option<ImageBytes>> {
        self.read(Look { digest }).await
    }

    /// One chunk; none: it is not there.
    pub async fn image_chunk(&self, digest: Digest, number: u32) -> Result<Option<Vec<u8>>> {
        self.read(Get { digest, number }).await
    }

    /// The chunks that are stored do not give the digest: nobody shall fetch them until a node
    /// that has the bytes has stored them again.
    pub async fn doubt_image_bytes(&self, digest: Digest) -> Result<()> {
        self.write_node(Doubt { digest }).await
    }

    /// Images with a name whose bytes are not in the database, in the order of their digests.
    pub async fn images_without_bytes(&self, after: Option<Digest>, limit: u32) -> Result<Vec<Digest>> {
        self.read(WithoutBytes { after, limit }).await
    }

    /// Which of these files nobody needs: no image has that digest, and no instance that has
    /// not ended runs it. Ask about few at a time.
    pub async fn unneeded_images(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        self.read(Unneeded { digests }).await
    }

    /// One small step of removing bytes that no name points at; false: nothing is left to do.
    pub async fn sweep_images(&self) -> Result<bool> {
        self.write_node(Sweep).await
    }
}
