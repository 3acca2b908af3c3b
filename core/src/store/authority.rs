//! The cluster's authority: its certificate, in the one row of `cluster`.
//!
//! Whoever writes it first has decided; everybody else compares (see [`crate::authority`]). The key is never here.

use super::{
    Store,
    commit::Request,
    error::{Error, Result},
    random_number,
    sql::{Row, Stmt, Tx, args, stmt},
};

/// The authority that the database knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAuthority {
    /// Its certificate.
    pub pem: String,
    /// The host where its key was made; empty: it is not known.
    pub host: String,
}

/// A certificate of ours has some hundred bytes.
const MAX_PEM: usize = 16 * 1024;

const FIND: Stmt = stmt!("SELECT authority_pem, authority_host FROM cluster WHERE one = 1");
/// On a conflict the row is locked before its condition is looked at, so one of two writers sees the other's.
const CLAIM: Stmt = stmt!(
    "INSERT INTO cluster (one, id, authority_pem, authority_host, created_at) VALUES (1, $1, $2, $3, $4)
         ON CONFLICT (one) DO UPDATE SET authority_pem = $2, authority_host = $3
      WHERE cluster.authority_pem IS NULL"
);
/// Whoever claimed it had not the key, and did not know the host.
const NAME_HOST: Stmt = stmt!(
    "UPDATE cluster SET authority_host = $2 WHERE one = 1 AND authority_pem = $1 AND authority_host = ''"
);
const REPLACE: Stmt =
    stmt!("UPDATE cluster SET authority_pem = $2, authority_host = $3 WHERE one = 1 AND authority_pem = $1");

fn read(row: &Row) -> Result<Option<ClusterAuthority>> {
    let Some(pem) = row.opt_text("authority_pem")? else { return Ok(None) };
    Ok(Some(ClusterAuthority { pem, host: row.text("authority_host")? }))
}

async fn find(tx: &mut Tx<'_>) -> Result<Option<ClusterAuthority>> {
    let row = tx.fetch_optional(&FIND, args![]).await?;
    row.map_or(Ok(None), |row| read(&row))
}

struct Find;

impl Request for Find {
    type Answer = Option<ClusterAuthority>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        find(tx).await
    }
}

struct Claim {
    id: String,
    authority: ClusterAuthority,
}

impl Request for Claim {
    type Answer = ClusterAuthority;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<ClusterAuthority> {
        let ClusterAuthority { pem, host } = &self.authority;
        // The usual start writes nothing.
        match find(tx).await? {
            Some(known) if known.pem != *pem || !known.host.is_empty() || host.is_empty() => {
                return Ok(known);
            }
            Some(_) => drop(tx.execute(&NAME_HOST, args![pem, host]).await?),
            None => {
                let now = tx.now().await?;
                tx.execute(&CLAIM, args![&self.id, pem, host, now]).await?;
            }
        }
        find(tx).await?.ok_or_else(|| Error::Broken { table: "cluster".to_owned(), rows: 0 })
    }
}

struct Replace {
    old: String,
    new: ClusterAuthority,
}

impl Request for Replace {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        Ok(tx.execute(&REPLACE, args![&self.old, &self.new.pem, &self.new.host]).await? == 1)
    }
}

impl Store {
    /// The cluster's authority; `None`: no service has started on this database yet.
    pub async fn authority(&self) -> Result<Option<ClusterAuthority>> {
        self.write_node(Find).await
    }

    /// Makes `authority` the cluster's if it has none, and answers the one it has: who writes first wins. An empty
    /// host does not overwrite a known one. May be repeated.
    pub async fn claim_authority(&self, authority: ClusterAuthority) -> Result<ClusterAuthority> {
        check(&authority)?;
        let id = format!("{:016x}{:016x}", random_number()?, random_number()?);
        self.write_node(Claim { id, authority }).await
    }

    /// Puts `new` in the place of the authority `old`; false: the cluster has another one, and keeps it. Services that
    /// run go on with `old` until they are restarted.
    pub async fn replace_authority(&self, old: &str, new: ClusterAuthority) -> Result<bool> {
        check(&new)?;
        self.write_node(Replace { old: old.to_owned(), new }).await
    }
}

fn check(authority: &ClusterAuthority) -> Result<()> {
    if authority.pem.len() > MAX_PEM {
        let (field, len) = ("authority.pem", authority.pem.len());
        return Err(Error::TooLarge { field, len, max: MAX_PEM });
    }
    super::check_text("authority.host", &authority.host)
}
