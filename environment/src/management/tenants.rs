//! Tenants, their quotas and their tokens.
//!
//! The secret of a token is made here and leaves in one answer; neither the store nor the log
//! ever sees it.

use std::time::Duration;

use dormouse_core::{
    domain::{
        access::{Quotas, Role, TokenName, TokenSecret},
        id::{ParseError, Tenant},
        time::Micros,
    },
    store::{NewToken, TenantUse, Token},
};
use dormouse_proto::{call::Refusal, management as wire};

use super::{
    parse::invalid,
    rights,
    server::{Context, random, refuse},
};

impl Context {
    pub(super) async fn create_tenant(&self, request: wire::CreateTenant) -> Result<wire::Tenant, Refusal> {
        let (tenant, quotas) = (parse_tenant(&request.name)?, parse_quotas(request.quotas));
        let created = self.store().create_tenant(tenant, quotas).await;
        created.map(|tenant| describe(&tenant)).map_err(|error| refuse(&error))
    }

    pub(super) async fn list_tenants(&self) -> Result<wire::TenantList, Refusal> {
        let tenants = self.store().tenants().await.map_err(|error| refuse(&error))?;
        Ok(wire::TenantList { tenants: tenants.iter().map(describe).collect() })
    }

    pub(super) async fn set_quotas(&self, request: wire::SetQuotas) -> Result<wire::Tenant, Refusal> {
        let (tenant, quotas) = (parse_tenant(&request.name)?, parse_quotas(request.quotas));
        let set = self.store().set_quotas(&tenant, quotas).await;
        set.map(|tenant| describe(&tenant)).map_err(|error| refuse(&error))
    }

    pub(super) async fn create_token(
        &self,
        request: wire::CreateToken,
    ) -> Result<wire::TokenCreated, Refusal> {
        let tenant = self.whose(&request.tenant)?;
        let name = match request.name.as_str() {
            "" => TokenName::from_random(random()?),
            name => parse_token(name)?,
        };
        let role = self.grantable(&request.role)?;
        let valid = valid(request.valid_micros)?;
        let secret = TokenSecret::from_random(random()?);
        let token = NewToken { tenant, name, role, valid, hash: secret.hash() };
        let token = self.store().create_token(token).await.map_err(|error| refuse(&error))?;
        Ok(wire::TokenCreated { token: Some(describe_token(&token)), secret: secret.reveal().to_owned() })
    }

    pub(super) async fn list_tokens(&self, request: wire::ListTokens) -> Result<wire::TokenList, Refusal> {
        let tenant = self.whose(&request.tenant)?;
        let tokens = self.store().tokens(&tenant).await.map_err(|error| refuse(&error))?;
        Ok(wire::TokenList { tokens: tokens.iter().map(describe_token).collect() })
    }

    pub(super) async fn revoke_token(&self, request: wire::RevokeToken) -> Result<wire::Token, Refusal> {
        let (tenant, name) = (self.whose(&request.tenant)?, parse_token(&request.name)?);
        let token = self.store().revoke_token(&tenant, &name).await;
        token.map(|token| describe_token(&token)).map_err(|error| refuse(&error))
    }

    /// Whose tokens are meant: of the client's own tenant, unless it is the cluster's administrator.
    fn whose(&self, tenant: &str) -> Result<Tenant, Refusal> {
        if tenant.is_empty() || tenant == self.tenant.as_str() {
            return Ok(self.tenant.clone());
        }
        // Before it is looked at: whether that tenant exists is not told.
        if self.credential.role < Role::Cluster {
            return Err(rights::denied(&self.credential, "a token of another tenant", Role::Cluster));
        }
        parse_tenant(tenant)
    }

    /// A role that the client may give away: none above its own.
    fn grantable(&self, role: &str) -> Result<Role, Refusal> {
        let asked = match role {
            "" => Role::Operator,
            role => Role::parse(role).ok_or_else(|| {
                invalid(format!("token.role is {role:?}; it must be reader, operator or admin"))
            })?,
        };
        if asked > self.credential.role {
            let what = format!("a token with the role {asked}");
            return Err(rights::denied(&self.credential, &what, asked));
        }
        Ok(asked)
    }
}

fn parse_tenant(name: &str) -> Result<Tenant, Refusal> {
    Tenant::parse(name).map_err(|error: ParseError| invalid(error.to_string()))
}

fn parse_token(name: &str) -> Result<TokenName, Refusal> {
    TokenName::parse(name).map_err(|error| invalid(error.to_string()))
}

/// 0: no quota. Their bounds are the store's.
fn parse_quotas(quotas: Option<wire::Quotas>) -> Quotas {
    let wire::Quotas { running, stored, starts_per_second } = quotas.unwrap_or_default();
    let some = |quota: u64| (quota > 0).then_some(quota);
    Quotas { running: some(running), stored: some(stored), starts_per_second: some(starts_per_second) }
}

/// The longest that a token with an end may be valid; without one it is valid until it is revoked.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// 0: until it is revoked.
fn valid(micros: i64) -> Result<Option<Duration>, Refusal> {
    match u64::try_from(micros) {
        Ok(0) => Ok(None),
        Ok(micros) if Duration::from_micros(micros) <= LONGEST => Ok(Some(Duration::from_micros(micros))),
        Ok(_) | Err(_) => Err(invalid(format!(
            "token.valid is {micros} µs; it must be positive and at most 100 years, or 0 for ever"
        ))),
    }
}

fn describe(tenant: &TenantUse) -> wire::Tenant {
    let Quotas { running, stored, starts_per_second } = tenant.quotas;
    let or_zero = |quota: Option<u64>| quota.unwrap_or(0);
    wire::Tenant {
        name: tenant.tenant.to_string(),
        created_at: tenant.created_at.0,
        quotas: Some(wire::Quotas {
            running: or_zero(running),
            stored: or_zero(stored),
            starts_per_second: or_zero(starts_per_second),
        }),
        running: tenant.running,
        stored: tenant.stored,
    }
}

fn describe_token(token: &Token) -> wire::Token {
    let or_zero = |at: Option<Micros>| at.map_or(0, |at| at.0);
    wire::Token {
        tenant: token.tenant.to_string(),
        name: token.name.to_string(),
        role: token.role.as_str().to_owned(),
        created_at: token.created_at.0,
        expires_at: or_zero(token.expires_at),
        revoked_at: or_zero(token.revoked_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_quota_and_no_end() {
        assert_eq!(parse_quotas(None), Quotas::NONE);
        let quotas = wire::Quotas { running: 0, stored: 7, starts_per_second: 0 };
        assert_eq!(parse_quotas(Some(quotas)), Quotas { stored: Some(7), ..Quotas::NONE });
        assert_eq!(valid(0).expect("for ever"), None);
        assert_eq!(valid(1_000_000).expect("a second"), Some(Duration::from_secs(1)));
        for bad in [-1, i64::MIN, i64::MAX] {
            assert!(valid(bad).is_err(), "{bad}");
        }
    }
}
