//! `dormouse doctor`: what this machine offers, what is missing, and what to do about it.
//!
//! It only reads. Each check answers one line; a check that cannot find out says so instead of
//! guessing. The services need not run. `data` asks the database instead.

mod data;
mod machine;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::SystemTime,
};

use anstyle::{AnsiColor, Style};
use dormouse_core::server::host_name;
use dormouse_management_sdk::Client;
use dormouse_proto::identity::{Authority, Role, WARN_BELOW};

use super::{Ctx, client_options};
use crate::{
    args::{Doctor, Format},
    exit::Exit,
    output::{bytes, print, print_json, span},
};

/// Below this a database may fail to grow, in bytes.
const FREE_MIN: u64 = 1 << 30;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Works, but something is worse than it could be.
    Poor,
    /// Does not work.
    Bad,
}

/// One line of the report.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
    /// What was seen.
    pub(super) seen: String,
    /// What to do; empty if nothing.
    pub(super) remedy: String,
}

impl Finding {
    pub(super) fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, seen: seen.into(), remedy: String::new() }
    }

    pub(super) fn poor(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Poor, seen: seen.into(), remedy: remedy.into() }
    }

    pub(super) fn bad(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Bad, seen: seen.into(), remedy: remedy.into() }
    }
}

pub(crate) async fn doctor(ctx: &Ctx, args: Doctor) -> anyhow::Result<Exit> {
    if args.data {
        return data::data(ctx, args).await;
    }
    let dir = ctx.global.directory()?;
    let mut findings = machine::findings();
    findings.push(data_directory(&dir));
    findings.extend(free_space(&dir));
    findings.extend(certificates(&ctx.global.certs()?));
    findings.extend(services(ctx).await);
    match ctx.screen.format {
        Format::Json => print_json(&findings.iter().map(document).collect::<Vec<_>>())?,
        Format::Ids => print(&troubled(&findings).map(|f| format!("{}\n", f.what)).collect::<String>())?,
        Format::Table => print(&report(&findings))?,
    }
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if bad { Exit::Internal } else { Exit::Done })
}

fn troubled(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.verdict != Verdict::Good)
}

/// The folder that holds everything.
fn data_directory(dir: &Path) -> Finding {
    const WHAT: &str = "data directory";
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(metadata) if !metadata.is_dir() => {
            Finding::bad(WHAT, format!("{shown} is no folder"), "name another with --data-dir")
        }
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            let mode = metadata.permissions().mode() & 0o777;
            Finding::bad(
                WHAT,
                format!("{shown} has mode {mode:o}: others can read the keys in it"),
                format!("chmod 700 {shown}"),
            )
        }
        Ok(metadata) if metadata.uid() != nix::unistd::geteuid().as_raw() => Finding::poor(
            WHAT,
            format!("{shown} belongs to user {}", metadata.uid()),
            "run this as the user that runs the services",
        ),
        Ok(_) => Finding::good(WHAT, shown.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::good(WHAT, format!("{shown} does not exist yet; the first `dormouse up` makes it"))
        }
        Err(error) => Finding::bad(WHAT, format!("{shown}: {error}"), "name another with --data-dir"),
    }
}

/// Room for the database and the images: of the folder, or of what will hold it.
fn free_space(dir: &Path) -> Option<Finding> {
    const WHAT: &str = "free space";
    let existing = dir.ancestors().find(|dir| dir.exists())?;
    let free = match nix::sys::statvfs::statvfs(existing) {
        Ok(stat) => stat.blocks_available() * stat.fragment_size(),
        Err(error) => return Some(Finding::poor(WHAT, format!("unknown: {error}"), "")),
    };
    let seen = format!("{} at {}", bytes(free), existing.display());
    Some(if free < FREE_MIN {
        Finding::poor(WHAT, seen, "make room: the services refuse work when the disk is full")
    } else {
        Finding::good(WHAT, seen)
    })
}

/// The authority and what it has issued. Nothing is made here.
fn certificates(pki: &Path) -> Vec<Finding> {
    const WHAT: &str = "certificates";
    let authority = match Authority::open(pki) {
        Ok(Some(authority)) => authority,
        Ok(None) => return vec![Finding::good(WHAT, "none yet; the first `dormouse up` makes them")],
        Err(error) => return vec![Finding::bad(WHAT, error.to_string(), "")],
    };
    let mut findings = Vec::new();
    match authority.authority_expiry() {
        Ok(at) => findings.push(expiry(
            "authority",
            at,
            "make a new one as docs/certificates.md says under \"A new authority\"",
        )),
        Err(error) => findings.push(Finding::bad("authority", error.to_string(), "")),
    }
    let roles = [
        ("core's certificate", Role::Core),
        ("environment's certificate", Role::Environment),
        ("administrator's certificate", Role::Administrator),
    ];
    let here = pki.display();
    for (what, role) in roles {
        let client = if role == Role::Administrator { " --client" } else { "" };
        let remedy = if authority.has_key() {
            "running services renew it; start them with `dormouse up`".to_owned()
        } else {
            format!(
                "where the authority's key is, run `dormouse certs issue {} --out DIR{client}`; copy what DIR holds \
                 into {here}: running services take it over",
                host_name()
            )
        };
        match authority.leaf(role) {
            Ok(Some(leaf)) if !leaf.usable && !leaf.has_expired() => {
                findings.push(Finding::bad(what, "is of another authority, or its key is missing", remedy));
            }
            Ok(Some(leaf)) => findings.push(expiry(what, leaf.expires, &remedy)),
            Ok(None) if authority.has_key() => {
                findings.push(Finding::good(what, "none yet; made when it is needed"));
            }
            // Tokens do as well.
            Ok(None) if role == Role::Administrator => findings.push(Finding::good(what, "none here")),
            Ok(None) => findings.push(Finding::bad(what, "is missing", remedy)),
            Err(error) => findings.push(Finding::bad(what, error.to_string(), "")),
        }
    }
    findings
}

fn expiry(what: &'static str, at: SystemTime, remedy: &str) -> Finding {
    match at.duration_since(machine::now()) {
        Err(_) => Finding::bad(what, "has expired", remedy),
        Ok(left) if left < WARN_BELOW => Finding::poor(what, format!("expires in {}", span(left)), remedy),
        Ok(left) => Finding::good(what, format!("valid for {}", span(left))),
    }
}

/// What the services say of themselves, if they run.
async fn services(ctx: &Ctx) -> Vec<Finding> {
    const WHAT: &str = "services";
    let target = match ctx.global.target() {
        Ok(target) => target,
        Err(error) => return vec![Finding::bad(WHAT, error.to_string(), "")],
    };
    let health = match Client::connect_with(target, client_options()).await {
        Ok(client) => client.health().await,
        Err(error) => Err(error),
    };
    match health {
        Ok(health) => {
            let mut findings: Vec<_> =
                health.problems.iter().map(|problem| Finding::bad(WHAT, problem.clone(), "")).collect();
            findings.push(Finding::good(
                WHAT,
                format!(
                    "release {} on {}, node {}, core at {}, {} of {} slots in use",
                    health.version,
                    health.database,
                    health.node,
                    health.core_address,
                    health.slots_in_use,
                    health.slots
                ),
            ));
            findings
        }
        Err(error) if error.unreachable() => {
            vec![Finding::good(WHAT, "do not run here; `dormouse up` starts them")]
        }
        Err(error) => vec![Finding::bad(WHAT, error.to_string(), "")],
    }
}

fn document(finding: &Finding) -> serde_json::Value {
    serde_json::json!({
        "check": finding.what,
        "verdict": word(finding.verdict),
        "seen": finding.seen,
        "remedy": finding.remedy,
    })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Poor => "poor",
        Verdict::Bad => "bad",
    }
}

fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (mark, color) = match finding.verdict {
            Verdict::Good => ("✓", AnsiColor::Green),
            Verdict::Poor => ("!", AnsiColor::Yellow),
            Verdict::Bad => ("✗", AnsiColor::Red),
        };
        let style = Style::new().bold().fg_color(Some(color.into()));
        text.push_str(&format!("{style}{mark}{style:#} {:<width$}  {}\n", finding.what, finding.seen));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("  {:<width$}  → {}\n", "", finding.remedy));
        }
    }
    let troubles = troubled(findings).count();
    text.push_str(&match troubles {
        0 => "\nAll is well.\n".to_owned(),
        1 => "\nOne thing could be better.\n".to_owned(),
        n => format!("\n{n} things could be better.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_data_directory_that_others_can_read_is_bad_and_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("changed");
        let finding = data_directory(dir.path());
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.remedy.starts_with("chmod 700 "), "{finding:?}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("changed");
        assert_eq!(data_directory(dir.path()).verdict, Verdict::Good);
        assert_eq!(data_directory(&dir.path().join("not yet")).verdict, Verdict::Good);
    }

    #[test]
    fn looking_at_certificates_makes_none() {
        let dir = tempfile::tempdir().expect("a folder");
        certificates(&dir.path().join("pki"));
        assert!(!dir.path().join("pki").exists());
    }

    #[test]
    fn an_expiry_is_bad_when_it_is_over_and_poor_when_it_is_near() {
        let now = machine::now();
        assert_eq!(expiry("x", now - Duration::from_secs(1), "").verdict, Verdict::Bad);
        assert_eq!(expiry("x", now + WARN_BELOW / 2, "").verdict, Verdict::Poor);
        assert_eq!(expiry("x", now + WARN_BELOW * 2, "").verdict, Verdict::Good);
    }

    #[test]
    fn a_remedy_stands_under_what_it_mends() {
        let text = report(&[Finding::good("a", "fine"), Finding::bad("long name", "broken", "mend it")]);
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(plain.contains("✓ a          fine\n"), "{plain}");
        assert!(plain.contains("✗ long name  broken\n             → mend it\n"), "{plain}");
    }
}
