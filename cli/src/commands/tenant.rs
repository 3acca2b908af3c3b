//! `tenant create | list | quota`.

use dormouse_management_sdk::{Quotas, Tenant, Timestamp};
use serde::Serialize;

use super::Ctx;
use crate::{
    args::{Format, Quota, QuotaFlags, Tenant as Args},
    exit::Exit,
    output::{print, print_json, rfc3339, say, span},
};

pub(crate) async fn tenant(ctx: &Ctx, args: Args) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    match args {
        Args::Create { name, quotas } => {
            let created = client.create_tenant(&name, changed(Quotas::default(), &quotas)).await?;
            let said =
                format!("tenant {name} exists; let somebody in with: dormouse token create --tenant {name}");
            told(ctx, &created, &said)?;
        }
        Args::List => {
            let tenants = client.tenants().await?;
            let now = client.health().await?.now;
            ctx.screen.list(
                &tenants,
                &["NAME", "RUNNING", "STORED", "STARTS/S", "CREATED"],
                |tenant| row(tenant, now),
                |tenant| tenant.name.clone(),
                Document::of,
                "there is no tenant",
            )?;
        }
        Args::Quota { name, quotas } => {
            let tenants = client.tenants().await?;
            // The services name what is missing better than we could.
            let now = tenants.iter().find(|tenant| tenant.name == name);
            let set = match now {
                Some(now) if quotas.is_empty() => now.clone(),
                now => {
                    let now = now.map(|now| now.quotas).unwrap_or_default();
                    client.set_quotas(&name, changed(now, &quotas)).await?
                }
            };
            let Quotas { running, stored, starts_per_second } = set.quotas;
            let said = format!(
                "tenant {name}: {} running (quota {}), {} stored (quota {}), starts per second: {}",
                set.running,
                or_none(running),
                set.stored,
                or_none(stored),
                or_none(starts_per_second)
            );
            told(ctx, &set, &said)?;
        }
    }
    Ok(Exit::Done)
}

/// What is not given stays as it is.
fn changed(now: Quotas, flags: &QuotaFlags) -> Quotas {
    let new = |flag: Option<Quota>, now: Option<u64>| match flag {
        None => now,
        Some(Quota(quota)) => quota,
    };
    Quotas {
        running: new(flags.max_running, now.running),
        stored: new(flags.max_stored, now.stored),
        starts_per_second: new(flags.starts_per_second, now.starts_per_second),
    }
}

fn told(ctx: &Ctx, tenant: &Tenant, said: &str) -> anyhow::Result<()> {
    match ctx.screen.format {
        Format::Json => print_json(&Document::of(tenant)),
        Format::Ids => print(&format!("{}\n", tenant.name)),
        Format::Table => {
            say(said);
            Ok(())
        }
    }
}

fn row(tenant: &Tenant, now: Timestamp) -> Vec<String> {
    let of = |used: u64, quota: Option<u64>| match quota {
        None => used.to_string(),
        Some(quota) => format!("{used} of {quota}"),
    };
    vec![
        tenant.name.clone(),
        of(tenant.running, tenant.quotas.running),
        of(tenant.stored, tenant.quotas.stored),
        or_none(tenant.quotas.starts_per_second),
        tenant.created_at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default(),
    ]
}

fn or_none(quota: Option<u64>) -> String {
    quota.map_or_else(|| "none".to_owned(), |quota| quota.to_string())
}

/// A tenant in JSON.
#[derive(Serialize)]
struct Document {
    name: String,
    created_at: Option<String>,
    max_running: Option<u64>,
    max_stored: Option<u64>,
    starts_per_second: Option<u64>,
    running: u64,
    stored: u64,
}

impl Document {
    fn of(tenant: &Tenant) -> Self {
        Self {
            name: tenant.name.clone(),
            created_at: tenant.created_at.map(rfc3339),
            max_running: tenant.quotas.running,
            max_stored: tenant.quotas.stored,
            starts_per_second: tenant.quotas.starts_per_second,
            running: tenant.running,
            stored: tenant.stored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_none_takes_away() {
        let now = Quotas { running: Some(3), stored: Some(7), starts_per_second: None };
        let flags = QuotaFlags {
            max_running: Some(Quota(Some(5))),
            max_stored: Some(Quota(None)),
            starts_per_second: None,
        };
        assert_eq!(changed(now, &flags), Quotas { running: Some(5), stored: None, starts_per_second: None });
    }
}
