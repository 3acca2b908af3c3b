//! Tenants, what they may use, and the tokens that let their controllers in.

use std::{fmt, time::Duration};

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, Timestamp, client::unexpected};

/// How much a tenant may have; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Instances that run or are being launched at once, in the whole cluster. More wait.
    pub running: Option<u64>,
    /// Instances that are stored, ended ones included. More starts are refused.
    pub stored: Option<u64>,
    /// Starts in one second; a burst of as many is let through at once.
    pub starts_per_second: Option<u64>,
}

/// A tenant: the boundary that no read and no write crosses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// 1–64 of `a–z 0–9 - _ .`.
    pub name: String,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// What it may use.
    pub quotas: Quotas,
    /// Instances that run or are being launched.
    pub running: u64,
    /// Instances that are stored, ended ones included.
    pub stored: u64,
}

/// What a token allows; each role may do all that those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks, changes nothing.
    Reader,
    /// Also starts, steers and deletes instances, pushes and deletes images.
    #[default]
    Operator,
    /// Also makes and revokes tokens of its tenant, and prunes.
    Admin,
}

impl Role {
    /// Every role, least first.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Operator, Self::Admin];

    /// The word for it: `reader`, `operator` or `admin`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Reads [`Role::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Whose instances and images it sees.
    pub tenant: String,
    /// Unique in its tenant.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it ends by itself; `None`: it does not.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked; `None`: it was not.
    pub revoked_at: Option<Timestamp>,
}

/// What a new token shall be.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// Whose; empty: the client's own tenant.
    pub tenant: String,
    /// Its name; empty: the services choose one.
    pub name: String,
    /// What it allows. Nobody can give away more than they have.
    pub role: Role,
    /// How long it is valid, to the microsecond; `None`: until it is revoked.
    pub valid: Option<Duration>,
}

/// A token that was just made. Its `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct CreatedToken {
    /// All but the secret.
    pub token: TokenInfo,
    /// Told this once: the services keep only its hash.
    pub secret: String,
}

impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedToken").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Quotas {
    fn from_wire(quotas: wire::Quotas) -> Self {
        let some = |quota: u64| (quota > 0).then_some(quota);
        Self {
            running: some(quotas.running),
            stored: some(quotas.stored),
            starts_per_second: some(quotas.starts_per_second),
        }
    }

    /// On the wire 0 stands for none, so a quota of 0 must not get there.
    fn into_wire(self) -> Result<wire::Quotas, Error> {
        let named = [
            ("quotas.running", self.running),
            ("quotas.stored", self.stored),
            ("quotas.starts_per_second", self.starts_per_second),
        ];
        if let Some((field, _)) = named.into_iter().find(|(_, quota)| *quota == Some(0)) {
            return Err(Error::Argument(format!("{field} is 0; give at least 1, or none for no quota")));
        }
        Ok(wire::Quotas {
            running: self.running.unwrap_or(0),
            stored: self.stored.unwrap_or(0),
            starts_per_second: self.starts_per_second.unwrap_or(0),
        })
    }
}

impl Tenant {
    fn from_wire(tenant: wire::Tenant) -> Self {
        Self {
            name: tenant.name,
            created_at: Timestamp::optional(tenant.created_at),
            quotas: Quotas::from_wire(tenant.quotas.unwrap_or_default()),
            running: tenant.running,
            stored: tenant.stored,
        }
    }
}

impl TokenInfo {
    fn from_wire(token: wire::Token) -> Result<Self, String> {
        let role =
            Role::parse(&token.role).ok_or_else(|| format!("a token has the role {:?}", token.role))?;
        Ok(Self {
            tenant: token.tenant,
            name: token.name,
            role,
            created_at: Timestamp::optional(token.created_at),
            expires_at: Timestamp::optional(token.expires_at),
            revoked_at: Timestamp::optional(token.revoked_at),
        })
    }
}

/// A tenant that an answer holds.
fn tenant(outcome: Outcome) -> Result<Tenant, String> {
    match outcome {
        Outcome::Tenant(tenant) => Ok(Tenant::from_wire(tenant)),
        other => Err(unexpected(&other)),
    }
}

impl Client {
    /// Creates a tenant; for the cluster's administrator. One that exists with the same quotas is
    /// answered as it is, with others it is refused with ALREADY_EXISTS.
    pub async fn create_tenant(&self, name: &str, quotas: Quotas) -> Result<Tenant, Error> {
        let request = wire::CreateTenant { name: name.to_owned(), quotas: Some(quotas.into_wire()?) };
        self.call(Operation::CreateTenant(request), tenant).await
    }

    /// All tenants by name, with what they use; for the cluster's administrator.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, Error> {
        self.call(Operation::Tenants(wire::ListTenants {}), |outcome| match outcome {
            Outcome::Tenants(list) => Ok(list.tenants.into_iter().map(Tenant::from_wire).collect()),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Sets all quotas of a tenant at once; for the cluster's administrator. What runs or is
    /// stored beyond a lower quota stays.
    pub async fn set_quotas(&self, name: &str, quotas: Quotas) -> Result<Tenant, Error> {
        let request = wire::SetQuotas { name: name.to_owned(), quotas: Some(quotas.into_wire()?) };
        self.call(Operation::SetQuotas(request), tenant).await
    }

    /// Makes a token. Its secret is told by this answer only: if that gets lost, revoke the token
    /// and make another. A name can be used again once its token is revoked or has expired.
    pub async fn create_token(&self, token: NewToken) -> Result<CreatedToken, Error> {
        let valid_micros = match token.valid {
            None => 0,
            Some(valid) => i64::try_from(valid.as_micros()).unwrap_or(i64::MAX).max(1),
        };
        let role = token.role.as_str().to_owned();
        let request = wire::CreateToken { tenant: token.tenant, name: token.name, role, valid_micros };
        self.call(Operation::CreateToken(request), |outcome| match outcome {
            Outcome::TokenCreated(created) => {
                let token = created.token.ok_or("a new token without its name")?;
                Ok(CreatedToken { token: TokenInfo::from_wire(token)?, secret: created.secret })
            }
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// The tokens of a tenant by name, revoked and expired ones too; `None`: of the client's own.
    pub async fn tokens(&self, tenant: Option<&str>) -> Result<Vec<TokenInfo>, Error> {
        let request = wire::ListTokens { tenant: tenant.unwrap_or_default().to_owned() };
        self.call(Operation::Tokens(request), |outcome| match outcome {
            Outcome::Tokens(list) => list.tokens.into_iter().map(TokenInfo::from_wire).collect(),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Revokes a token at once, also for the connections that use it. Doing it again changes
    /// nothing. `None`: a token of the client's own tenant.
    pub async fn revoke_token(&self, tenant: Option<&str>, name: &str) -> Result<TokenInfo, Error> {
        let tenant = tenant.unwrap_or_default().to_owned();
        let request = wire::RevokeToken { tenant, name: name.to_owned() };
        self.call(Operation::RevokeToken(request), |outcome| match outcome {
            Outcome::Token(token) => TokenInfo::from_wire(token),
            other => Err(unexpected(&other)),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_survive_the_wire_and_zero_is_refused() {
        let quotas = Quotas { running: Some(3), stored: None, starts_per_second: Some(1) };
        assert_eq!(Quotas::from_wire(quotas.into_wire().expect("no zero")), quotas);
        let error = Quotas { stored: Some(0), ..Quotas::default() }.into_wire().expect_err("zero");
        assert!(error.to_string().starts_with("quotas.stored is 0"), "{error}");
    }

    #[test]
    fn a_secret_is_not_printed_by_accident() {
        let token = TokenInfo {
            tenant: "acme".into(),
            name: "ci".into(),
            role: Role::Reader,
            created_at: None,
            expires_at: None,
            revoked_at: None,
        };
        let text = format!("{:?}", CreatedToken { token, secret: "dmt_SECRET".into() });
        assert!(text.contains("ci") && !text.contains("SECRET"), "{text}");
    }
}
