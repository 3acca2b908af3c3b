//! `certs issue | show | replace`: the cluster's authority and what it has signed.
//!
//! It works on folders, not on services: certificates are needed before the first of them can start. No key is ever
//! printed.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use dormouse_core::{authority, config::Flags, server::host_name, store::Store};
use dormouse_management_sdk::Timestamp;
use dormouse_proto::identity::{Authority, IdentityError, Leaf, Role};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::Ctx;
use crate::{
    args::{Certs, Format, IssueCerts},
    config::{DatabaseOnly, sources},
    exit::{Exit, Usage},
    output::{now, print, print_json, printable, rfc3339, say, span, table},
};

pub(crate) async fn certs(ctx: &Ctx, args: Certs) -> anyhow::Result<Exit> {
    match args {
        Certs::Issue(args) => issue(ctx, args).await,
        Certs::Show { dir } => show(ctx, dir).await,
        Certs::Replace { dir, flags } => replace(ctx, dir, flags).await,
    }
}

async fn issue(ctx: &Ctx, args: IssueCerts) -> anyhow::Result<Exit> {
    check_name(&args.name)?;
    let default = ctx.global.certs()?;
    let format = ctx.screen.format;
    let issued = spawn_blocking(move || {
        let authority = authority_of(args.authority.as_deref(), &default)?;
        authority.issue(&args.out, &args.name, args.client)?;
        if format == Format::Table {
            say(&told(&args, &authority));
        }
        read(&args.out)
    });
    print_contents(ctx, &issued.await??)?;
    Ok(Exit::Done)
}

/// A folder that was named may be a new one: naming it is the decision. The default one is where services make
/// theirs, and a typo there must not found another cluster.
fn authority_of(named: Option<&Path>, default: &Path) -> anyhow::Result<Authority> {
    match named {
        Some(dir) => {
            let authority = Authority::open_or_create(dir)?;
            if authority.is_new() {
                say(&format!("{} holds a new authority now; keep its authority.key safe", dir.display()));
            }
            Ok(authority)
        }
        None => Authority::open(default)?.with_context(|| {
            Usage(format!(
                "there is no authority in {}; run this where the cluster's first service made it, or name a folder for \
                 a new one with --authority",
                default.display()
            ))
        }),
    }
}

fn told(args: &IssueCerts, authority: &Authority) -> String {
    let dir = args.out.display();
    let mut text = format!(
        "{dir} holds certificates for {}; copy it to that machine, readable by the services' user alone, and start them \
         with --certs DIR",
        args.name
    );
    if args.client {
        text.push_str("; administrator.pem and .key give every right in the cluster");
    }
    if let Ok(fingerprint) = authority.fingerprint() {
        text.push_str(&format!("\nclients trust the cluster by --ca {fingerprint}"));
    }
    text
}

/// The name goes into certificates, tables and shells.
fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let message =
            format!("NAME is {name:?}; it must have 1 to 64 of A–Z a–z 0–9 . _ -, such as a host's name");
        return Err(Usage(message).into());
    }
    Ok(())
}

async fn show(ctx: &Ctx, dir: Option<PathBuf>) -> anyhow::Result<Exit> {
    let dir = match dir {
        Some(dir) => dir,
        None => ctx.global.certs()?,
    };
    let contents = spawn_blocking(move || read(&dir)).await??;
    print_contents(ctx, &contents)?;
    if ctx.screen.format == Format::Table {
        say(&format!("clients elsewhere: --ca {}, and a token in DORMOUSE_TOKEN", contents.fingerprint));
    }
    Ok(Exit::Done)
}

async fn replace(ctx: &Ctx, dir: Option<PathBuf>, flags: Flags<DatabaseOnly>) -> anyhow::Result<Exit> {
    let settings = sources(&ctx.global, flags)?.load()?;
    let data_dir = settings.data_dir()?;
    let dir = match dir {
        Some(dir) => dir,
        None => settings.certs(&data_dir)?,
    };
    let ours = dir.clone();
    let opened = spawn_blocking(move || Authority::open(&ours)).await??;
    let Some(ours) = opened else { bail!(no_authority(&dir)) };
    let store = Store::open(settings.store_options(&data_dir)).await?;
    let replaced = authority::replace(&ours, &store, &host_name()).await;
    store.close().await;
    if ctx.screen.format == Format::Table {
        say(if replaced? {
            "the cluster has this authority now; issue certificates of it to every machine before its next start"
        } else {
            "the cluster has this authority already"
        });
    } else {
        replaced?;
    }
    show(ctx, Some(dir)).await
}

/// What a folder holds, for people and programs.
#[derive(Debug, Serialize)]
struct Contents {
    dir: PathBuf,
    fingerprint: String,
    /// Whether certificates can be made here.
    has_key: bool,
    certificates: Vec<Certificate>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    name: &'static str,
    /// To whom it was issued.
    holder: Option<String>,
    expires_at: String,
    usable: bool,
    #[serde(skip)]
    expires: Timestamp,
}

impl Certificate {
    fn of(leaf: Leaf) -> Self {
        let expires = timestamp(leaf.expires);
        Self {
            name: leaf.role.file(),
            holder: leaf.holder,
            expires_at: rfc3339(expires),
            usable: leaf.usable && expires > now(),
            expires,
        }
    }

    fn state(&self) -> String {
        match (self.expires > now(), self.usable) {
            (false, _) => "has expired".to_owned(),
            (true, false) => "not usable: of another authority, or its key is missing".to_owned(),
            (true, true) => format!("valid for {}", span(self.expires.since(now()))),
        }
    }
}

fn read(dir: &Path) -> anyhow::Result<Contents> {
    let Some(authority) = Authority::open(dir)? else { bail!(no_authority(dir)) };
    let expires = timestamp(authority.authority_expiry()?);
    let mut certificates = vec![Certificate {
        name: "authority",
        holder: None,
        expires_at: rfc3339(expires),
        usable: true,
        expires,
    }];
    let leaves = Role::ALL.into_iter().filter_map(|role| authority.leaf(role).transpose());
    certificates
        .extend(leaves.map(|leaf| leaf.map(Certificate::of)).collect::<Result<Vec<_>, IdentityError>>()?);
    Ok(Contents {
        dir: dir.to_owned(),
        fingerprint: authority.fingerprint()?.to_string(),
        has_key: authority.has_key(),
        certificates,
    })
}

fn print_contents(ctx: &Ctx, contents: &Contents) -> anyhow::Result<()> {
    match ctx.screen.format {
        Format::Json => print_json(contents),
        Format::Ids => print(&format!("{}\n", contents.fingerprint)),
        Format::Table => {
            let row = |certificate: &Certificate| {
                let holder = certificate.holder.as_deref().map(printable).unwrap_or_default();
                vec![certificate.name.to_owned(), holder, certificate.state(), certificate.expires_at.clone()]
            };
            let rows = contents.certificates.iter().map(row);
            let key = if contents.has_key {
                "its key is here: certificates renew themselves"
            } else {
                "its key is elsewhere"
            };
            let text = table(&["CERTIFICATE", "FOR", "STATE", "EXPIRES"], rows);
            print(&format!("{text}\nauthority {}\n{key}\n", contents.fingerprint))
        }
    }
}

fn no_authority(dir: &Path) -> Usage {
    Usage(format!("{} holds no certificates (no authority.pem); name the folder that does", dir.display()))
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_machines() {
        for good in ["a", "node-1.example.org", "N_1"] {
            check_name(good).expect(good);
        }
        for wrong in ["", "a b", "a/b", "ä", "a\n", &"a".repeat(65)] {
            assert_eq!(Exit::of_error(&check_name(wrong).expect_err(wrong)), Exit::Usage);
        }
    }

    #[test]
    fn a_folder_for_another_machine_can_serve_and_not_issue() {
        let dir = tempfile::tempdir().expect("a folder");
        let (home, out) = (dir.path().join("authority"), dir.path().join("out"));
        assert!(authority_of(None, &home).is_err(), "a default folder is not made");
        assert!(!home.exists());
        let authority = authority_of(Some(&home), &home).expect("a new one");
        authority.issue(&out, "oak", false).expect("issued");
        let contents = read(&out).expect("read");
        let names: Vec<_> = contents.certificates.iter().map(|found| found.name).collect();
        assert_eq!(names, ["authority", "core", "environment"]);
        assert!(!contents.has_key && contents.certificates.iter().all(|found| found.usable));
        assert_eq!(contents.certificates[1].holder.as_deref(), Some("oak"));
        assert_eq!(contents.fingerprint, read(&home).expect("read").fingerprint);
    }
}
