//! `token create | list | revoke`.
//!
//! The secret is all that `create` prints on stdout, so that `TOKEN=$(dormouse token create …)`
//! works; everything else goes to stderr.

use dormouse_management_sdk::{CreatedToken, NewToken, Role, Timestamp, TokenInfo};
use jiff::tz::TimeZone;
use serde::Serialize;

use super::Ctx;
use crate::{
    args::{Format, TokenCommand as Args, TokenCreate},
    exit::Exit,
    output::{local, print, print_json, rfc3339, say, span},
};

pub(crate) async fn token(ctx: &Ctx, args: Args) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    match args {
        Args::Create(TokenCreate { tenant, name, role, expires }) => {
            let new = NewToken {
                tenant: tenant.unwrap_or_default(),
                name: name.unwrap_or_default(),
                role,
                valid: expires,
            };
            print_created(ctx, &client.create_token(new).await?)?;
        }
        Args::List { tenant } => {
            let tokens = client.tokens(tenant.as_deref()).await?;
            let now = client.health().await?.now;
            ctx.screen.list(
                &tokens,
                &["NAME", "TENANT", "ROLE", "STATE", "CREATED"],
                |token| row(token, now),
                |token| token.name.clone(),
                Document::of,
                "no tokens yet: `dormouse token create` makes one",
            )?;
        }
        Args::Revoke { name, tenant } => {
            let token = client.revoke_token(tenant.as_deref(), &name).await?;
            match ctx.screen.format {
                Format::Json => print_json(&Document::of(&token))?,
                Format::Ids => print(&format!("{}\n", token.name))?,
                Format::Table => {
                    say(&format!("token {} of tenant {} lets nobody in any more", token.name, token.tenant));
                }
            }
        }
    }
    Ok(Exit::Done)
}

fn print_created(ctx: &Ctx, created: &CreatedToken) -> anyhow::Result<()> {
    let CreatedToken { token, secret } = created;
    if ctx.screen.format == Format::Json {
        #[derive(Serialize)]
        struct Created<'a> {
            #[serde(flatten)]
            token: Document,
            secret: &'a str,
        }
        return print_json(&Created { token: Document::of(token), secret });
    }
    print(&format!("{secret}\n"))?;
    let until = match token.expires_at {
        None => "until it is revoked".to_owned(),
        Some(at) => format!("until {}", local(at, &TimeZone::system())),
    };
    say(&format!(
        "token {} lets {} of tenant {} in {until}; its secret is shown this once: give it to clients in \
         DORMOUSE_TOKEN",
        token.name,
        with_article(token.role),
        token.tenant
    ));
    Ok(())
}

fn with_article(role: Role) -> &'static str {
    match role {
        Role::Reader => "a reader",
        Role::Operator => "an operator",
        Role::Admin => "an admin",
    }
}

fn row(token: &TokenInfo, now: Timestamp) -> Vec<String> {
    vec![
        token.name.clone(),
        token.tenant.clone(),
        token.role.to_string(),
        state(token, now),
        token.created_at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default(),
    ]
}

/// Whether it lets anybody in, by the services' clock.
fn state(token: &TokenInfo, now: Timestamp) -> String {
    match (token.revoked_at, token.expires_at) {
        (Some(at), _) => format!("revoked {} ago", span(now.since(at))),
        (None, Some(at)) if at <= now => format!("expired {} ago", span(now.since(at))),
        (None, Some(at)) => format!("expires in {}", span(at.since(now))),
        (None, None) => "valid".to_owned(),
    }
}

/// A token in JSON, without its secret.
#[derive(Serialize)]
struct Document {
    name: String,
    tenant: String,
    role: &'static str,
    created_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

impl Document {
    fn of(token: &TokenInfo) -> Self {
        Self {
            name: token.name.clone(),
            tenant: token.tenant.clone(),
            role: token.role.as_str(),
            created_at: token.created_at.map(rfc3339),
            expires_at: token.expires_at.map(rfc3339),
            revoked_at: token.revoked_at.map(rfc3339),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_says_why_a_token_does_not_count() {
        let at = Timestamp::from_micros;
        let token = TokenInfo {
            tenant: "acme".into(),
            name: "ci".into(),
            role: Role::Operator,
            created_at: None,
            expires_at: Some(at(2_000_000)),
            revoked_at: None,
        };
        assert_eq!(state(&token, at(1_000_000)), "expires in 1 s");
        assert_eq!(state(&token, at(62_000_000)), "expired 1 min ago");
        let revoked = TokenInfo { revoked_at: Some(at(1)), ..token };
        assert_eq!(state(&revoked, at(9_000_001)), "revoked 9 s ago");
    }
}
