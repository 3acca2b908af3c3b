//! Tokens: the credentials of controllers, each of one tenant and with one role.
//!
//! Only the hash of a secret is stored; the caller makes the secret and shows it once. A token
//! is valid until it is revoked or expires, by the database's clock (invariant 10). Whoever
//! remembers a token forgets it at [`Notice::Tokens`].

use std::time::Duration;

use super::{
    Notice, Store,
    commit::Request,
    error::{Error, Result},
    sql::{Row, Stmt, Tx, args, stmt},
    tenants,
};
use crate::domain::{
    access::{Role, TokenName},
    id::{Tenant, TokenHash},
    time::Micros,
};

/// What a new token shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Whose it is.
    pub tenant: Tenant,
    /// Its name, unique among the tenant's.
    pub name: TokenName,
    /// What it allows; never [`Role::Cluster`].
    pub role: Role,
    /// How long it is valid; none: until it is revoked.
    pub valid: Option<Duration>,
    /// Of its secret.
    pub hash: TokenHash,
}

/// A token as it is stored: all but its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub tenant: Tenant,
    /// Its name.
    pub name: TokenName,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Micros,
    /// From when on it is not valid any more; none: it does not expire.
    pub expires_at: Option<Micros>,
    /// When it was revoked.
    pub revoked_at: Option<Micros>,
}

/// Whether a token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// For so long still, if nobody revokes it; none: for ever.
    Valid {
        /// Until it expires.
        left: Option<Duration>,
    },
    /// Not any more.
    Revoked {
        /// Since when.
        at: Micros,
    },
    /// Not any more.
    Expired {
        /// Since when.
        at: Micros,
    },
}

impl Token {
    /// Whether it counts at `now`, by the database's clock.
    pub fn standing(&self, now: Micros) -> Standing {
        match (self.revoked_at, self.expires_at) {
            (Some(at), _) => Standing::Revoked { at },
            (None, Some(at)) if at <= now => Standing::Expired { at },
            (None, expires_at) => Standing::Valid { left: expires_at.map(|at| at.since(now)) },
        }
    }
}

const LOCK: Stmt = stmt!(
    "SELECT tenant, name, role, created_at, expires_at, revoked_at, hash
       FROM token WHERE tenant = $1 AND name = $2 {for_update}"
);
const LIST: Stmt = stmt!(
    "SELECT tenant, name, role, created_at, expires_at, revoked_at
       FROM token WHERE tenant = $1 ORDER BY name"
);
const COUNT: Stmt = stmt!("SELECT COUNT(*) AS n FROM token WHERE tenant = $1");
const LOOK_UP: Stmt = stmt!(
    "SELECT tenant, name, role, created_at, expires_at, revoked_at, COALESCE($2, {clock}) AS now
       FROM token WHERE hash = $1"
);
const INSERT: Stmt = stmt!(
    "INSERT INTO token (hash, tenant, name, role, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)"
);
const REPLACE: Stmt = stmt!("DELETE FROM token WHERE tenant = $1 AND name = $2");
const REVOKE: Stmt =
    stmt!("UPDATE token SET revoked_at = $1 WHERE tenant = $2 AND name = $3 AND revoked_at IS NULL");

struct Create {
    token: NewToken,
    /// Tokens that a tenant may have.
    most: u64,
}

impl Request for Create {
    type Answer = Token;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Token> {
        let NewToken { tenant, name, role, valid, hash } = &self.token;
        // Held, so that two creations see each other.
        tenants::lock(tx, tenant).await?;
        let now = tx.now().await?;
        let found = tx.fetch_optional(&LOCK, args![tenant, name]).await?;
        if let Some(row) = &found {
            let token = read(row)?;
            if row.blob("hash")? == hash.0 {
                return Ok(token); // the same creation, whose answer got lost
            }
            if let Standing::Valid { .. } = token.standing(now) {
                return Err(Error::OtherToken { tenant: tenant.clone(), name: name.clone() });
            }
        } else if tx.fetch_one(&COUNT, args![tenant]).await?.number("n")? >= self.most {
            return Err(Error::AtLimit {
                whose: format!("tenant {tenant}"),
                what: "tokens",
                max: self.most,
                remedy: "give the new one the name of a revoked one, which it replaces",
            });
        }
        if found.is_some() {
            tx.execute_one(&REPLACE, args![tenant, name]).await?;
        }
        let expires_at = valid.map(|valid| now + valid);
        tx.execute_one(&INSERT, args![hash.0.as_slice(), tenant, name, *role, now, expires_at]).await?;
        tx.notify(Notice::Tokens);
        let (tenant, name) = (tenant.clone(), name.clone());
        Ok(Token { tenant, name, role: *role, created_at: now, expires_at, revoked_at: None })
    }
}

struct Revoke {
    tenant: Tenant,
    name: TokenName,
}

impl Request for Revoke {
    type Answer = Token;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Token> {
        let Self { tenant, name } = self;
        let Some(row) = tx.fetch_optional(&LOCK, args![tenant, name]).await? else {
            return Err(Error::NoToken { tenant: tenant.clone(), name: name.clone() });
        };
        let token = read(&row)?;
        if token.revoked_at.is_some() {
            return Ok(token);
        }
        let now = tx.now().await?;
        tx.execute_one(&REVOKE, args![now, tenant, name]).await?;
        tx.notify(Notice::Tokens);
        Ok(Token { revoked_at: Some(now), ..token })
    }
}

struct List {
    tenant: Tenant,
}

impl Request for List {
    type Answer = Vec<Token>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        tenants::must_exist(tx, &self.tenant).await?;
        tx.fetch(&LIST, args![&self.tenant]).await?.iter().map(read).collect()
    }
}

struct LookUp {
    hash: TokenHash,
}

impl Request for LookUp {
    type Answer = Option<(Token, Standing)>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let args = args![self.hash.0.as_slice(), tx.given_now()];
        let Some(row) = tx.fetch_optional(&LOOK_UP, args).await? else { return Ok(None) };
        let token = read(&row)?;
        let standing = token.standing(row.at("now")?);
        Ok(Some((token, standing)))
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

fn read(row: &Row) -> Result<Token> {
    Ok(Token {
        tenant: row.tenant("tenant")?,
        name: row.parsed("name", |text| TokenName::parse(text).ok())?,
        role: row.parsed("role", Role::parse)?,
        created_at: row.at("created_at")?,
        expires_at: row.opt_at("expires_at")?,
        revoked_at: row.opt_at("revoked_at")?,
    })
}

impl Store {
    /// Stores a token. The name of a revoked or expired one may be used again: the new token
    /// takes its place. Refused for a tenant that does not exist.
    pub async fn create_token(&self, token: NewToken) -> Result<Token> {
        if token.role == Role::Cluster {
            let remedy = "give reader, operator or admin; the cluster's administrators have certificates";
            return Err(Error::Invalid { field: "token.role", value: token.role.to_string(), remedy });
        }
        self.write_node(Create { token, most: self.limits().tokens }).await
    }

    /// A tenant's tokens, revoked and expired ones too, by name.
    pub async fn tokens(&self, tenant: &Tenant) -> Result<Vec<Token>> {
        self.read(List { tenant: tenant.clone() }).await
    }

    /// Revokes a token for good; who was revoked before stays as it is.
    pub async fn revoke_token(&self, tenant: &Tenant, name: &TokenName) -> Result<Token> {
        self.write_node(Revoke { tenant: tenant.clone(), name: name.clone() }).await
    }

    /// The token of a secret's hash and whether it counts; none: nobody made it. One look into
    /// an index, by a reader.
    pub async fn token(&self, hash: TokenHash) -> Result<Option<(Token, Standing)>> {
        self.read(LookUp { hash }).await
    }
}
