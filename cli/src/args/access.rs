//! Flags of the commands about who may do what: tenants with their quotas, and tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use dormouse_management_sdk::Role;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Create a tenant; the same again changes nothing
    Create {
        /// Its name: 1 to 64 of a-z 0-9 - _ .
        name: String,
        #[command(flatten)]
        quotas: QuotaFlags,
    },
    /// List the tenants and what they use
    List,
    /// Change the quotas of a tenant, or show them; what is not given stays
    Quota {
        /// The tenant's name
        name: String,
        #[command(flatten)]
        quotas: QuotaFlags,
    },
}

/// A number from 1 on, or "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(pub(crate) Option<u64>);

#[derive(Debug, Args)]
pub(crate) struct QuotaFlags {
    /// Instances that run at once in the whole cluster, or none for no quota; more wait
    #[arg(long, value_name = "N", value_parser = parse_quota)]
    pub(crate) max_running: Option<Quota>,
    /// Instances that are stored, ended ones too, or none; more starts are refused
    #[arg(long, value_name = "N", value_parser = parse_quota)]
    pub(crate) max_stored: Option<Quota>,
    /// Starts in one second, or none; more are refused until there is room
    #[arg(long, value_name = "N", value_parser = parse_quota)]
    pub(crate) starts_per_second: Option<Quota>,
}

impl QuotaFlags {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.max_running.is_none() && self.max_stored.is_none() && self.starts_per_second.is_none()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print its secret, this once
    Create(TokenCreate),
    /// List the tokens of a tenant, revoked and expired ones too
    List {
        /// Whose; without it, your own tenant's
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
    /// Revoke a token: it lets nobody in any more, and puts out who is in
    Revoke {
        /// The token's name
        name: String,
        /// Whose; without it, your own tenant's
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The secret alone goes to stdout, everything else to stderr:
    DORMOUSE_TOKEN=$(dormouse token create --tenant acme --role reader --expires 90d)")]
pub(crate) struct TokenCreate {
    /// Whose instances it lets in to; without it, your own tenant's
    #[arg(long, value_name = "T")]
    pub(crate) tenant: Option<String>,
    /// Its name, for `token list` and `token revoke`: 1 to 64 of a-z 0-9 - _ . [default: chosen]
    #[arg(long, value_name = "N")]
    pub(crate) name: Option<String>,
    /// What it allows: reader, operator or admin
    #[arg(long, value_name = "ROLE", default_value = "operator", value_parser = parse_role)]
    pub(crate) role: Role,
    /// How long it is valid, such as 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) expires: Option<Duration>,
}

fn parse_quota(text: &str) -> Result<Quota, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("it must be at least 1, or none for no quota".to_owned()),
        Ok(quota) => Ok(Quota(Some(quota))),
        Err(_) if text == "none" => Ok(Quota(None)),
        Err(_) => Err("it must be a number, or none for no quota".to_owned()),
    }
}

fn parse_role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "it must be reader, operator or admin".to_owned())
}
